"""A picture with the grid of its representation tokens, and beside it what its codes stand for elsewhere.

Knows nothing of models: pictures, numbers and texts in, one picture out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

_GAP: Final = 8
_LINE_HEIGHT: Final = 12
_CHARACTER_WIDTH: Final = 6  # of Pillow's built-in font
_MIN_CELL: Final = 48  # side of a cell in the figure: a code of five digits fits
_GRID: Final = (0, 0, 0)
_MARK: Final = (230, 0, 120)


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """A cell of a picture."""

    picture: npt.NDArray[np.uint8]  # [H, W, 3]
    row: int
    column: int


@dataclass(frozen=True, kw_only=True)
class CodeRow:
    """A code: what is known of it, and cells that have it."""

    code: int
    caption: str
    places: Sequence[Place]


def token_figure(
    picture: npt.NDArray[np.uint8],  # [H, W, 3]
    rep_ids: npt.NDArray[np.int64],  # [rows, columns]
    caption: str,
    codes: Sequence[CodeRow] = (),
    marked: npt.NDArray[np.bool_] | None = None,  # [rows, columns]
) -> npt.NDArray[np.uint8]:
    """Draw the picture, then its codes over it, then a line per code of `codes`; `marked` cells get a frame."""
    from PIL import Image, ImageDraw

    cell = picture.shape[0] // rep_ids.shape[0]
    zoom = -(-_MIN_CELL // cell)
    side, height, width = cell * zoom, picture.shape[0] * zoom, picture.shape[1] * zoom
    line = side + _LINE_HEIGHT + _GAP
    most = max((len(row.places) for row in codes), default=0)
    beside = max(most * (side + _GAP), max((len(row.caption) + 12 for row in codes), default=0) * _CHARACTER_WIDTH)
    canvas = Image.new(
        "RGB",
        (2 * (width + _GAP) + _GAP + beside, max(height + _LINE_HEIGHT + _GAP, len(codes) * line) + _GAP),
        "white",
    )
    pen = ImageDraw.Draw(canvas)
    large = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
    canvas.paste(large, (_GAP, _GAP))
    canvas.paste(Image.blend(large, Image.new("RGB", large.size, "white"), 0.6), (2 * _GAP + width, _GAP))
    for (row, column), code in np.ndenumerate(rep_ids):
        x, y = 2 * _GAP + width + column * side, _GAP + row * side
        pen.rectangle((x, y, x + side, y + side), outline=_GRID)
        text = str(code)
        pen.text((x + (side - len(text) * _CHARACTER_WIDTH) // 2, y + side // 2 - 6), text, fill="black")
    for row, column in np.argwhere(marked) if marked is not None else ():
        x, y = 2 * _GAP + width + column * side, _GAP + row * side
        pen.rectangle((x, y, x + side, y + side), outline=_MARK, width=2)
    _write(pen, (_GAP, _GAP + height + 2), caption)
    for number, code_row in enumerate(codes):
        x, y = 2 * (width + _GAP) + _GAP, _GAP + number * line
        _write(pen, (x, y), f"code {code_row.code}: {code_row.caption}")
        for i, place in enumerate(code_row.places):
            crop = surroundings(place, cell, side)
            canvas.paste(Image.fromarray(crop), (x + i * (side + _GAP), y + _LINE_HEIGHT + 2))
    return np.asarray(canvas)


def surroundings(place: Place, cell: int, side: int) -> npt.NDArray[np.uint8]:
    """A cell framed, with half a cell around it, as a square of `side` pixels; grey beyond the picture."""
    from PIL import Image, ImageDraw

    half = cell // 2
    padded = np.pad(place.picture, ((half, half), (half, half), (0, 0)), constant_values=200)
    top, left = place.row * cell, place.column * cell
    crop = Image.fromarray(padded[top : top + cell + 2 * half, left : left + cell + 2 * half])
    crop = crop.resize((side, side), Image.Resampling.NEAREST)
    inset = side * half // (cell + 2 * half)
    ImageDraw.Draw(crop).rectangle((inset, inset, side - inset - 1, side - inset - 1), outline=_MARK)
    return np.asarray(crop)


def _write(pen: "ImageDraw", corner: tuple[int, int], text: str) -> None:
    pen.text(corner, text.encode("latin-1", "replace").decode("latin-1"), fill="black")
