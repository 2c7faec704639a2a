"""What a calibration draws and looks at: prompts and pictures, and which of them it keeps for the gate.

Knows nothing of models.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from calibration.config import CalibrationConfig
from runtime.errors import RFError

_T = TypeVar("_T")


def find_pictures(folder: Path) -> list[Path]:
    """The files of a folder, sorted; raises RFError where there are none."""
    found = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if not found:
        raise RFError(f"{folder} holds no pictures. Give a folder of image files.")
    return found


def split_prompts(
    prompts: Sequence[str], config: CalibrationConfig
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Different prompts with their seeds: those to calibrate with, and those for the gate.

    Raises:
        RFError: there are too few.
    """
    different = list(dict.fromkeys(" ".join(prompt.split()) for prompt in prompts if prompt.strip()))
    if len(different) < config.min_prompts:
        raise RFError(
            f"{len(different)} different prompts are too few to calibrate with, expected at least "
            f"{config.min_prompts}. Give a file with one prompt per line, of the kind that the model will draw."
        )
    return hold_back([(prompt, config.seed + i) for i, prompt in enumerate(different)], config)


def hold_back(items: Sequence[_T], config: CalibrationConfig) -> tuple[list[_T], list[_T]]:
    """Most to calibrate with, and every n-th for the gate."""
    every = max(2, round(1 / config.gate_fraction))
    return [item for i, item in enumerate(items, 1) if i % every], list(items[every - 1 :: every])
