"""A decoded picture as red, green and blue of sRGB, upright and on white. Knows nothing of files but their notes."""

import io
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Final

import numpy as np

from runtime.pictures.colour import to_srgb
from runtime.pictures.grey import FLOAT, Samples, eight_bits, full, require_full_range
from runtime.pictures.notes import Notes, orientation

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

_STRAIGHT: Final = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # modes whose colours are multiplied by their opacity
_WITH_OPACITY: Final = {1: {1: "La", 3: "RGBa"}, 2: {1: "LA", 3: "RGBA"}}  # modes, by TIFF's ExtraSamples
_PLAIN: Final = ("L", "RGB", "CMYK", "LAB")


def flatten(image: "Image", content: bytes, notes: Notes, name: str) -> "Image":
    """Apply the notes of a picture.

    Args:
        image: Decoded.
        content: What it was decoded from.
        notes: What its file said beside it.
        name: For messages.

    Returns:
        Mode RGB.

    Raises:
        RFError: Nobody can tell which of its numbers are black and white.
    """
    from PIL import Image

    if notes.samples is not None and notes.samples.colours:
        image, notes = _narrow(image, notes.samples, notes.extra, name), replace(notes, samples=None)
    opaque = _opaque(image, content, notes)
    own = image.info.get("icc_profile")
    flat = to_srgb(_without_opacity(image, notes, name), (own, *notes.profiles) if own else notes.profiles)
    if opaque is not None:
        flat = Image.composite(flat, Image.new("RGB", flat.size, "white"), opaque)
    exif, xmp = (note if isinstance(note, bytes) else b"" for note in map(image.info.get, ("exif", "xmp")))
    turn = _turns().get(notes.orientation if notes.orientation != 1 else orientation(exif, xmp))
    return flat if turn is None else flat.transpose(turn)


def _narrow(image: "Image", samples: Samples, extra: int, name: str) -> "Image":
    """Wide numbers, which the decoder took for pixels of grey each, in 8 bits."""
    from PIL import Image

    values = np.asarray(image)
    values = values.astype(values.dtype.newbyteorder("="), copy=False).reshape(len(values), -1, samples.channels)
    if samples.is_differences:
        values = np.cumsum(values, axis=1, dtype=values.dtype)
    levels = eight_bits(values[..., : samples.colours], samples, name)
    if samples.channels > samples.colours and extra in _WITH_OPACITY and samples.colours < 4:
        whole = replace(samples, low=0, high=full(samples.bits, samples.kind), is_inverted=False)
        opacity = eight_bits(values[..., samples.colours, None], whole, name)
        mode, levels = _WITH_OPACITY[extra][samples.colours], np.concatenate((levels, opacity), axis=2)
    else:
        mode = {1: "L", 3: "RGB", 4: "CMYK"}[samples.colours]
    return Image.frombytes(mode, (levels.shape[1], levels.shape[0]), levels.tobytes())


def _opaque(image: "Image", content: bytes, notes: Notes) -> "Image | None":
    """Mode L, 0 where the picture is transparent; None where nothing is."""
    if notes.alphas:  # as bytes for every colour, which Pillow does not take for the index of one
        image.info["transparency"] = notes.alphas[:256].ljust(256, b"\xff")
    if notes.transparent:
        return _unlike(image, content, notes)
    if not image.has_transparency_data:
        return None
    return _straight(image).convert("RGBA").getchannel("A")


def _straight(image: "Image") -> "Image":
    return image.convert(_STRAIGHT.get(image.mode, image.mode))


def _unlike(image: "Image", content: bytes, notes: Notes) -> "Image":
    """Mode L, 0 where a PNG file has its one transparent colour, compared with all its bits."""
    from PIL import Image, ImageChops

    colour = [value & (1 << notes.depth) - 1 for value in notes.transparent]
    if image.mode.startswith("I"):
        return Image.fromarray(np.where(np.asarray(image) == colour[0], 0, 255).astype(np.uint8))
    channels = list((image.convert("L") if image.mode == "1" else image).split())
    if notes.depth == 16:
        channels += _low_bytes(content).split()
        colour = [value >> 8 for value in colour] + [value & 255 for value in colour]
    elif notes.depth < 8:
        colour = [value * 255 // ((1 << notes.depth) - 1) for value in colour]
    different = (
        channel.point([255 * (level != value) for level in range(256)])
        for channel, value in zip(channels, colour, strict=True)
    )
    return reduce(ImageChops.lighter, different)


def _low_bytes(content: bytes) -> "Image":
    """The lower eight bits of red, green and blue of 16; Pillow gives the upper ones."""
    from PIL import PngImagePlugin

    image = PngImagePlugin.PngImageFile(io.BytesIO(content))
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]  # as if they came in the other order
    image.load()
    return image


def _without_opacity(image: "Image", notes: Notes, name: str) -> "Image":
    """Of a mode that has a colour profile."""
    from PIL import Image

    samples = notes.samples or (Samples(bits=32, kind=FLOAT) if image.mode == "F" else None)
    if image.mode in ("1", "L", "LA", "La"):
        grey = _straight(image).convert("L")
        return grey if samples is None else Image.fromarray(eight_bits(np.asarray(grey), samples, name))
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(eight_bits(np.asarray(image), samples, name))
    plain = image if image.mode in _PLAIN else _straight(image).convert("RGBA").convert("RGB")
    if samples is not None and plain.mode == "RGB":
        require_full_range(plain, samples, name)
    return plain


def _turns() -> "dict[int, Transpose]":
    """What makes a picture upright, by the orientation of EXIF."""
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
