"""Score the committed sample sheets: cut the twelve pictures out of each PNG and ask the checker.

    python docs/score_sheets.py

The sheets were drawn while the two models trained, from the same prompts and seeds, with and without representation
tokens. Needs no torch.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from rf_export.evaluation.metric import score_pictures
from rf_export.training.scenes import Demand

IMAGES = Path(__file__).parent / "images"
GAP, ZOOM, SIZE, COLUMNS, ROWS = 8, 3, 48, 6, 2  # how runtime/pictures/sheet.py lays twelve pictures out
DEMANDS = (
    Demand(kind="single", items=(("red", "car"),)),
    Demand(kind="single", items=(("blue", "fish"),)),
    Demand(kind="single", items=(("green", "tree"),)),
    Demand(kind="single", items=(("purple", "umbrella"),)),
    Demand(kind="count", items=(("yellow", "star"),) * 2),
    Demand(kind="count", items=(("red", "heart"),) * 3),
    Demand(kind="count", items=(("blue", "balloon"),) * 4),
    Demand(kind="count", items=(("green", "guitar"),) * 2),
    Demand(kind="relation", items=(("pink", "cat"), ("blue", "house")), relation="left of"),
    Demand(kind="relation", items=(("yellow", "key"), ("green", "apple")), relation="above"),
    Demand(kind="two", items=(("red", "mushroom"), ("purple", "cup"))),
    Demand(kind="relation", items=(("blue", "bell"), ("pink", "heart")), relation="right of"),
)  # the captions of rf_export.training.samples.SHEET_PROMPTS


def cut(sheet: np.ndarray) -> np.ndarray:
    """The pictures of a sheet, `[12, 48, 48, 3]`; the rows fill its height."""
    side, row_height = SIZE * ZOOM, (sheet.shape[0] - GAP) // ROWS
    corners = [(GAP + i // COLUMNS * row_height, GAP + i % COLUMNS * (side + GAP)) for i in range(COLUMNS * ROWS)]
    return np.stack([sheet[y : y + side, x : x + side][ZOOM // 2 :: ZOOM, ZOOM // 2 :: ZOOM] for y, x in corners])


def main() -> None:
    """Print a line per sheet."""
    for name in ("with", "without"):
        sheet = np.asarray(Image.open(IMAGES / f"samples-{name}-rep.png").convert("RGB"))
        score = score_pictures(cut(sheet), DEMANDS)
        print(f"{name} representation tokens: {score.overall.successes} of {score.overall.num}")


if __name__ == "__main__":
    main()
