"""Any picture that a person has, as the pixels that vision_encoder reads. Knows nothing of models but the size.

A picture is turned as its camera says (EXIF), laid on white where it is transparent, made smaller or larger until it
fits, and padded with white to the exact size: nothing is cut off and nothing is stretched. The only module of
understanding that needs Pillow.
"""

import io
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.errors import RFError

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | Path | bytes | npt.NDArray[np.uint8]"  # a file, its content, or [H, W, 3] red, green, blue

_WHITE: Final = (255, 255, 255)
# What people have. Pillow knows more, and starts Ghostscript for some of them.
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")
_ROWS_AT_ONCE: Final = 64
_FILTERING: Final = threading.Lock()  # warning filters belong to the whole process


def load_pixels(picture: Picture, height: int, width: int) -> npt.NDArray[np.float32]:
    """Read a picture.

    Args:
        picture: A file of any kind that Pillow reads, its content, or an array.
        height: Of the result.
        width: Of the result.

    Returns:
        [3, height, width], red, green and blue from -1 to 1.

    Raises:
        RFError: It is no picture, damaged, or too large to be opened safely.
    """
    if isinstance(picture, np.ndarray):
        image = _from_array(picture)
    else:
        name = "the picture" if isinstance(picture, bytes) else str(picture)
        image = _open(picture, name, max(height, width))
    fitted = np.asarray(_fit(image, height, width), np.float32)
    return np.ascontiguousarray(fitted.transpose(2, 0, 1) / np.float32(127.5) - 1)


def _from_array(array: npt.NDArray[np.uint8]) -> "Image":
    from PIL import Image

    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise RFError(f"A picture must be uint8 of shape [height, width, 3], got {array.dtype} {array.shape}.")
    return Image.fromarray(array)


def _open(picture: str | Path | bytes, name: str, side: int) -> "Image":
    """Decode a file: red, green and blue, upright and without transparency."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _FILTERING, warnings.catch_warnings():
            # Of odd metadata, which is no reason to refuse a picture, and of its size, which is looked at below.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
            Image.init()  # registers the formats that this Pillow has
            with Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
                require_safe_size(image)
                image.draft("RGB", (4 * side, 4 * side))  # a large JPEG is decoded at a fraction of its size
                image.load()
                return _flatten(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise RFError(f"{name} does not exist. Give the path of a picture.") from None
    except IsADirectoryError:
        raise RFError(f"{name} is a folder. Give the path of a picture.") from None
    except PermissionError:
        raise RFError(f"{name} may not be read. Change its permissions, or copy it.") from None
    except UnidentifiedImageError:
        raise RFError(f"{name} is no picture of a known kind. Give a PNG, JPEG, WebP, GIF, TIFF or BMP file.") from None
    except Image.DecompressionBombError:
        raise RFError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS} pixels, which would fill the memory. Make it smaller."
        ) from None
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes of them
        raise RFError(f"{name} is damaged and cannot be read ({error}). Save it again.") from error


def require_safe_size(image: "Image") -> None:
    """Refuse what Pillow only warns of: more pixels than its limit. It refuses twice as many by itself."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"it has more than {Image.MAX_IMAGE_PIXELS} pixels")


def _flatten(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, (*_WHITE, 255))
    return Image.alpha_composite(ground, with_alpha).convert("RGB")


def _eight_bits(values: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint8]:
    """Grey of 16 bits, or of numbers whose range is not told: 0 to 1, to 255 or to 65535, whichever holds them."""
    largest = float(np.fmax.reduce(values, axis=None, initial=0))
    limit = 65535 if mode.startswith("I") or largest > 255 else 255 if largest > 1 else 1
    result = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), _ROWS_AT_ONCE):  # a whole picture of float64 would take eight times its pixels
        numbers = np.nan_to_num(values[row : row + _ROWS_AT_ONCE].astype(np.float64), nan=0.0)
        result[row : row + _ROWS_AT_ONCE] = np.rint(np.clip(numbers / limit, 0, 1) * 255)
    return result


def _fit(image: "Image", height: int, width: int) -> "Image":
    """The whole picture as large as fits, in the middle of white."""
    from PIL import Image

    scale = min(height / image.height, width / image.width)
    size = (min(max(round(image.width * scale), 1), width), min(max(round(image.height * scale), 1), height))
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if size == (width, height):
        return image
    ground = Image.new("RGB", (width, height), _WHITE)
    ground.paste(image, ((width - size[0]) // 2, (height - size[1]) // 2))
    return ground
