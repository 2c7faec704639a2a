"""Any picture that a person has, as the pixels that vision_encoder reads. Knows nothing of models but the size.

A picture is turned as its camera says (EXIF), its colours become sRGB, it is laid on white where it is transparent,
made smaller or larger until it fits, and padded with white to the exact size: nothing is cut off and nothing is
stretched. The only wing that decodes pictures; it needs Pillow.
"""

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.errors import RFError
from runtime.pictures.flatten import flatten
from runtime.pictures.notes import Notes, read_notes
from runtime.pictures.png import read_file, require_safe_size

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

Picture: TypeAlias = "str | Path | bytes | npt.NDArray[np.uint8]"  # a file, its content, or [H, W, 3] red, green, blue

# What people have. Pillow knows more, and starts Ghostscript for some of them.
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")


def load_pixels(picture: Picture, height: int, width: int) -> npt.NDArray[np.float32]:
    """Read a picture.

    Args:
        picture: A file of any kind that Pillow reads, its content, or an array.
        height: Of the result.
        width: Of the result.

    Returns:
        [3, height, width], red, green and blue from -1 to 1.

    Raises:
        RFError: It is no picture, damaged, too large to be opened safely, or grey whose range nobody knows.
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
    from PIL import Image, UnidentifiedImageError

    notes = Notes()
    try:
        content, notes = read_notes(picture if isinstance(picture, bytes) else read_file(picture))
        with _decoder(content) as image:
            num_wide = notes.samples.channels if notes.samples else 1  # pixels of the decoder for one of the picture
            require_safe_size(image.width // num_wide, image.height)
            image.draft("RGB", (4 * side, 4 * side))  # a large JPEG is decoded at a fraction of its size
            image.load()
            # The file in an icon may be larger than the icon says.
            require_safe_size(image.width // num_wide, image.height)
            return flatten(image, content, notes, name)
    except RFError:
        raise
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
        what = "or of a kind that is not read" if isinstance(error, SyntaxError) else "and cannot be read"
        why = f"{error}, {notes.samples.bits} bits for each number" if notes.samples else error
        raise RFError(f"{name} is damaged {what} ({why}). Save it again, as a PNG file of 8 or 16 bits.") from error


def _decoder(content: bytes) -> "ImageFile":
    """What Image.open gives, without its warning of many pixels: warnings belong to the whole process."""
    from PIL import Image, UnidentifiedImageError

    Image.init()  # registers the formats that this Pillow has
    failure: Exception = UnidentifiedImageError()
    for kind in _FORMATS:
        decode, accepts = Image.OPEN.get(kind, (None, None))
        known = decode is not None and (accepts is None or accepts(content[:16]))
        if isinstance(known, str):  # why this Pillow cannot
            failure = OSError(known)
        elif decode is not None and known:
            try:
                return decode(io.BytesIO(content), "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                failure = error if accepts else failure
    raise failure


def _fit(image: "Image", height: int, width: int) -> "Image":
    """The whole picture as large as fits, in the middle of white."""
    from PIL import Image

    scale = min(height / image.height, width / image.width)
    size = (min(max(round(image.width * scale), 1), width), min(max(round(image.height * scale), 1), height))
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if size == (width, height):
        return image
    ground = Image.new("RGB", (width, height), "white")
    ground.paste(image, ((width - size[0]) // 2, (height - size[1]) // 2))
    return ground
