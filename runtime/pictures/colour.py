"""Colours of any kind as sRGB, which models learn. Knows nothing of files.

An ICC profile says what the numbers of a picture mean. What PNG and AVIF say in numbers of their own (a gamma, places
of red, green and blue, codes of video) becomes a profile here, so that there is one way to convert.
"""

import io
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from runtime.errors import RFError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageCms import ImageCmsProfile

SRGB: Final = b""  # stands for a profile of sRGB
_MODES: Final = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # colour space of ICC: mode of Pillow
_D65: Final = (0.3127, 0.3290)
_REC709: Final = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
# White, red, green and blue (x, y each) by their code in ITU-T H.273, table 2; 2 is "unspecified".
_PRIMARIES: Final = {
    1: _REC709,
    2: _REC709,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
# Exponents by their code in H.273, table 3. Those of television are shown with the curve of sRGB, as browsers do.
_GAMMAS: Final = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}
_SRGB_CURVES: Final = (1, 2, 6, 7, 13, 14, 15)
_PQ, _HLG = 16, 18
_WHITE_NITS: Final = 203  # of white paper in pictures of high dynamic range (ITU-R BT.2408); brighter becomes white
_HLG_PEAK_NITS: Final = 1000
_SIGNAL: Final = np.linspace(0, 1, 4096)
_BRADFORD: Final = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50: Final = np.array([0.9642, 1.0, 0.8249])


def to_srgb(image: "Image", profiles: Sequence[bytes]) -> "Image":
    """Convert colours.

    Args:
        image: Of a mode without transparency.
        profiles: ICC. The first one counts that is sound and of the kind of the picture; SRGB ends the search.

    Returns:
        Mode RGB.

    Raises:
        RFError: Pillow was built without LittleCMS.
    """
    for profile in profiles[: profiles.index(SRGB)] if SRGB in profiles else profiles:
        converted = _converted(image, profile)
        if converted is not None:
            return converted
    if image.mode == "LAB":
        from PIL import ImageCms

        return _through(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))) or image.convert("RGB")
    return image.convert("RGB")


def _converted(image: "Image", profile: bytes) -> "Image | None":
    from PIL import ImageCms, features

    if not features.check("littlecms2"):
        raise RFError("This Pillow converts no colours: it was built without LittleCMS. Install the one of PyPI.")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(source.profile.xcolor_space.strip(), "")
    except (OSError, ValueError):
        return None
    if image.mode != mode:
        if mode == "RGB" and image.mode not in ("CMYK", "LAB"):
            image = image.convert("RGB")
        elif mode == "L" and _is_grey(image):
            image = image.convert("L")
        else:
            return None
    return _through(image, source)


def _through(image: "Image", source: "ImageCmsProfile") -> "Image | None":
    from PIL import Image, ImageCms

    try:
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if image.mode in ("RGB", "L"):
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)
        probe = Image.fromarray(grid if image.mode == "RGB" else grid[:, :, 0].copy())
        moved = np.asarray(ImageCms.applyTransform(probe, transform), int) - np.asarray(probe.convert("RGB"), int)
        if np.abs(moved).max() <= 1:
            return image.convert("RGB")  # it is sRGB: what differs is rounding
    return ImageCms.applyTransform(image, transform)


def _is_grey(image: "Image") -> bool:
    if image.mode != "RGB":
        return image.mode in ("1", "L")
    red, green, blue = (channel.tobytes() for channel in image.split())
    return red == green == blue


def gamma_profile(gamma: float | None, places: Sequence[float] | None) -> bytes | None:
    """What gAMA and cHRM of a PNG file say.

    Args:
        gamma: The exponent that encoded the picture, such as 1 / 2.2; within 5% of this it means the curve of sRGB.
        places: x and y of white, red, green and blue.

    Returns:
        The profile; None where the numbers mean nothing.
    """
    if gamma is not None and not 0.01 <= gamma <= 100:
        return None
    is_srgb = gamma is None or abs(gamma * 2.2 - 1) <= 0.05
    return _profile(places or _REC709, _srgb_curve(_SIGNAL) if gamma is None or is_srgb else _SIGNAL ** (1 / gamma))


def video_profile(primaries: int, transfer: int, *, is_full_range: bool = True) -> bytes | None:
    """The codes of ITU-T H.273 as a profile; None for unknown ones."""
    signal = _SIGNAL if is_full_range else np.clip((255 * _SIGNAL - 16) / 219, 0, 1)
    if primaries not in _PRIMARIES or transfer not in (*_SRGB_CURVES, *_GAMMAS, _PQ, _HLG):
        return None
    if transfer in _SRGB_CURVES and _PRIMARIES[primaries] == _REC709 and is_full_range:
        return SRGB
    if transfer in _GAMMAS:
        linear = signal ** _GAMMAS[transfer]
    elif transfer == _PQ:
        linear = _pq_nits(signal) / _WHITE_NITS
    elif transfer == _HLG:
        linear = _hlg_nits(signal) / _WHITE_NITS
    else:
        linear = _srgb_curve(signal)
    return _profile(_PRIMARIES[primaries], np.minimum(linear, 1))


def _srgb_curve(signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """IEC 61966-2-1."""
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def _pq_nits(signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """SMPTE ST 2084."""
    power = signal ** (32 / 2523)
    return 10_000 * (np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (8192 / 1305)


def _hlg_nits(signal: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """ITU-R BT.2100, on a screen of 1,000 cd/m2; its gamma of 1.2 is applied to each colour alone."""
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return _HLG_PEAK_NITS * scene**1.2


def _profile(places: Sequence[float], linear: npt.NDArray[np.float64]) -> bytes | None:
    """An ICC profile of version 2: three colours and one curve; None where the colours span nothing."""
    try:
        white, *colours = (
            np.array([x / y, 1, (1 - x - y) / y]) for x, y in zip(places[::2], places[1::2], strict=True)
        )
        columns = np.stack(colours, 1)
        adapted = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / (_BRADFORD @ white)) @ _BRADFORD
        matrix = adapted @ columns * np.linalg.solve(columns, white)
        tags = {b"wtpt": _xyz(white)}
        tags |= {name: _xyz(matrix[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    except (ZeroDivisionError, np.linalg.LinAlgError, struct.error, ValueError, OverflowError):
        return None
    curve = b"curv" + struct.pack(">II", 0, len(linear)) + np.rint(linear * 65535).astype(">u2").tobytes()
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    start, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += name + struct.pack(">II", start + len(content), len(body))
        content += body
    head = struct.pack(">4xI", 0x02100000) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + _xyz(_D50)[8:]
    return struct.pack(">I", start + len(content)) + head + bytes(128 - 4 - len(head)) + table + content


def _xyz(values: npt.NDArray[np.float64]) -> bytes:
    return b"XYZ " + struct.pack(">I3i", 0, *(round(float(value) * 65536) for value in values))
