"""Draws the same prompts in fp32 and INT8, one above the other: docs/images/int8.png.

    python docs/int8_sheet.py BUNDLE

BUNDLE is exported from examples/reference/checkpoint and calibrated.
"""

import sys
from pathlib import Path

from rf_export.training.samples import SHEET_PROMPTS
from runtime.pictures.png import save_png
from runtime.pictures.sheet import contact_sheet
from runtime.pipeline import Pipeline

OUT = Path(__file__).parent / "images" / "int8.png"
PROMPTS = SHEET_PROMPTS[:8]


def main(bundle: str) -> None:
    """Draw and save."""
    pictures, captions = [], []
    for precision in ("fp32", "int8"):
        pipeline = Pipeline.load(bundle, precision, num_threads=1)
        for seed, prompt in enumerate(PROMPTS, 7):
            pictures.append(pipeline.draw(prompt, seed=seed))
            captions.append(f"{precision}: {prompt}")
    save_png(OUT, contact_sheet(pictures, captions, columns=len(PROMPTS)), {"prompts": PROMPTS, "first_seed": 7})
    print(OUT)


if __name__ == "__main__":
    main(sys.argv[1])
