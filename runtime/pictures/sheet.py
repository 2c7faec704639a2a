"""Several pictures on one captioned sheet. Knows nothing of models and files."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

_GAP: Final = 8
_CAPTION_LINES: Final = 2
_LINE_HEIGHT: Final = 12
_CHARACTER_WIDTH: Final = 6  # of Pillow's built-in font
_FRAME: Final = (221, 221, 221)


def contact_sheet(
    pictures: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], *, columns: int = 6, zoom: int = 3
) -> npt.NDArray[np.uint8]:
    """Lay pictures out in rows, each with its caption below.

    Args:
        pictures: [H, W, 3] each, all of one size, at least one.
        captions: One text per picture; what does not fit into two lines is cut.
        columns: Pictures per row.
        zoom: Enlargement, without smoothing.

    Returns:
        [height, width, 3] of the sheet.
    """
    from PIL import Image, ImageDraw

    height, width = pictures[0].shape[0] * zoom, pictures[0].shape[1] * zoom
    columns = min(columns, len(pictures))
    cell_height = height + _CAPTION_LINES * _LINE_HEIGHT + 2 * _GAP
    num_rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * (width + _GAP) + _GAP, num_rows * cell_height + _GAP), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = _GAP + i % columns * (width + _GAP), _GAP + i // columns * cell_height
        enlarged = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
        pen.rectangle((x - 1, y - 1, x + width, y + height), outline=_FRAME)
        canvas.paste(enlarged, (x, y))
        _write(pen, (x, y + height + 3), caption, width // _CHARACTER_WIDTH)
    return np.asarray(canvas)


def _write(pen: "ImageDraw", corner: tuple[int, int], caption: str, num_characters: int) -> None:
    lines = [""]
    for word in caption.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > num_characters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    for i, line in enumerate(lines[:_CAPTION_LINES]):
        printable = line.encode("latin-1", "replace").decode("latin-1")
        pen.text((corner[0], corner[1] + i * _LINE_HEIGHT), printable, fill="black")
