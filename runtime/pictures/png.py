"""PNG files: pictures as their content, how they were made beside the pixels, and the chunks that hold both.

Knows nothing of models, and decodes no pixels.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from runtime.bundle.atomic import write_file
from runtime.errors import RFError

KEYWORD: Final = "rf-export"  # of the text chunk
SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
MAX_UNPACKED: Final = 64 << 20  # of a text or a colour profile, in bytes
_MAX_FILE: Final = 1 << 30
_TEXTS: Final = (b"tEXt", b"zTXt", b"iTXt")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a PNG file."""

    kind: bytes
    whole: memoryview  # with length, kind and checksum

    @property
    def body(self) -> bytes:
        """What it holds."""
        return bytes(self.whole[8:-4])

    @property
    def is_sound(self) -> bool:
        """Whether its checksum fits."""
        return zlib.crc32(self.whole[4:-4]) == int.from_bytes(self.whole[-4:], "big")


def save_png(file: str | Path | IO[bytes], picture: npt.NDArray[np.uint8], parameters: Mapping[str, Any]) -> None:
    """Write a PNG file, as a whole or not at all.

    Args:
        file: A path, whose file is replaced, or a file that is open for writing bytes.
        picture: [H, W, 3].
        parameters: How it was made, kept as JSON in a tEXt chunk named "rf-export".

    Raises:
        RFError: The file cannot be written.
    """
    content = encode_png(picture, parameters)
    if not isinstance(file, str | os.PathLike):
        file.write(content)
        return
    with write_file(Path(file)) as partial:
        partial.write_bytes(content)


def encode_png(picture: npt.NDArray[np.uint8], parameters: Mapping[str, Any] | None = None) -> bytes:
    """The content of a PNG file; see `save_png`."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    if parameters is not None:  # as ASCII, which every reader of tEXt understands
        info.add_text(KEYWORD, json.dumps(parameters, default=_plain_number))
    content = BytesIO()
    Image.fromarray(picture).save(content, format="PNG", pnginfo=info)
    return content.getvalue()


def read_parameters(path: str | Path) -> dict[str, Any]:
    """How a picture was made; empty for a picture of somebody else. Raises RFError for no or a damaged PNG file."""
    try:
        content = read_file(path)
    except (OSError, ValueError) as error:
        raise RFError(f"{path} is not a readable PNG file: {error}.") from error
    return parameters_in(content, str(path))


def parameters_in(content: bytes, where: str) -> dict[str, Any]:
    """The same of the content of a file; messages call it `where`."""
    try:
        found = list(chunks(content))
        _require_header(content, found)
    except ValueError as error:
        raise RFError(f"{where} is not a readable PNG file: {error}.") from error
    mine = [chunk for chunk in found if chunk.kind in _TEXTS and keyword(chunk) == KEYWORD]
    try:
        parameters = json.loads(text(mine[-1])) if mine else {}
    except (ValueError, RecursionError):
        parameters = None
    if not isinstance(parameters, dict):
        raise RFError(
            f"{where} has damaged parameters: its text {KEYWORD!r} is no JSON object. Draw the picture again."
        )
    return parameters


def read_file(path: str | Path) -> bytes:
    """A picture file; raises ValueError where none is so large, and OSError."""
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size  # 0 for a pipe
        content = file.read(size + 1 if size else _MAX_FILE + 1) if size <= _MAX_FILE else b""
    if max(size, len(content)) > _MAX_FILE:
        raise ValueError(f"it is larger than {_MAX_FILE >> 20} MiB")
    return content


def chunks(content: bytes) -> Iterator[Chunk]:
    """The whole chunks behind the signature, up to where the file ends or is cut off."""
    view, at = memoryview(content), len(SIGNATURE)
    while at + 12 <= len(view):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if end > len(view):
            return
        yield Chunk(bytes(view[at + 4 : at + 8]), view[at:end])
        at = end


def keyword(chunk: Chunk) -> str:
    """What the text of a chunk is about."""
    return bytes(chunk.whole[8:88]).partition(b"\0")[0].decode("latin-1")


def text(chunk: Chunk) -> str:
    """The text of a chunk, packed or not; raises ValueError where it is damaged or too long."""
    if not chunk.is_sound:
        raise ValueError("its checksum is wrong")
    content = chunk.body.partition(b"\0")[2]
    if chunk.kind == b"tEXt":
        return content.decode("latin-1")
    if chunk.kind == b"zTXt":
        return unpacked(content[1:]).decode("latin-1")
    is_packed = content[:1] == b"\1"
    content = content[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind the language and the translated keyword
    return (unpacked(content) if is_packed else content).decode("utf-8")


def unpacked(content: bytes) -> bytes:
    """What zlib packed; raises ValueError where it is damaged or too long."""
    unpacking = zlib.decompressobj()
    try:
        result = unpacking.decompress(content, MAX_UNPACKED)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacking.eof:
        raise ValueError(f"it is cut off or takes more than {MAX_UNPACKED >> 20} MiB")
    return result


def require_safe_size(width: int, height: int) -> None:
    """Refuse more pixels than Pillow's limit, of which it only warns; it refuses twice as many by itself."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"it has more than {Image.MAX_IMAGE_PIXELS} pixels")


def _require_header(content: bytes, found: list[Chunk]) -> None:
    from PIL import Image

    if not content.startswith(SIGNATURE):
        raise ValueError("it does not begin as one")
    header = found[0] if found else None
    if header is None or [chunk.kind for chunk in found].count(b"IHDR") != 1:
        raise ValueError("it has no header, or several")
    if header.kind != b"IHDR" or len(header.whole) != 25 or not header.is_sound:
        raise ValueError("its header is damaged")
    try:
        require_safe_size(*(int.from_bytes(header.whole[at : at + 4], "big") for at in (8, 12)))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None


def _plain_number(value: Any) -> Any:
    """A number of numpy as one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"parameters must be plain values, got {type(value).__name__}")
