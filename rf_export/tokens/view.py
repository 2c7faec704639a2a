"""The representation tokens of a picture that a prompt draws, or of a picture file, and the figure that shows them.

What needs the image encoder's codes is handed in, since no bundle holds them. Knows nothing of libraries.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from rf_export.tokens.figure import CodeRow, token_figure
from runtime.errors import RFError
from runtime.events import PictureEvent, to_picture
from runtime.options import GenerationOptions
from runtime.pictures.load import load_pixels
from runtime.pictures.token_file import RepGrid, stored_grid
from runtime.plans import plan_drawing

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline


class CodeGuide(Protocol):
    """What knows the codes of any picture, and what they stand for in training."""

    def encode(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """The codes of a picture, `[3, H, W] -> [rows, columns]`."""

    def explain(self, rep_ids: npt.NDArray[np.int64], num_codes: int) -> Sequence[CodeRow]:
        """The rarest codes of a grid."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A picture and its tokens."""

    picture: npt.NDArray[np.uint8]  # [H, W, 3]
    grid: RepGrid
    name: str

    def figure(self, codes: Sequence[CodeRow]) -> npt.NDArray[np.uint8]:
        """Both together, and what the codes stand for."""
        return token_figure(self.picture, self.grid.rep_ids, self.name, codes)


def look_at(
    pipeline: "Pipeline", source: str, *, seed: int, options: GenerationOptions, guide: CodeGuide | None
) -> Shown:
    """Draw a prompt, or read a file.

    Args:
        pipeline: Draws.
        source: A prompt, or the path of a picture: what exists, or looks like a file name, is a path.
        seed: Of a drawing.
        options: How to draw; a file that `generate` did not write is fitted into this size.
        guide: For such a file.

    Raises:
        RFError: A file that is no picture or holds tokens of another model; or that nobody here can encode.
    """
    manifest = pipeline.bundle.manifest
    if not _is_path(source):
        *_, event = pipeline.generate([source], seed=seed, options=options, previews=False)
        assert isinstance(event, PictureEvent)
        name = f"{source or 'no text'}, seed {seed}"
        return Shown(picture=event.picture, grid=RepGrid.of(event, manifest), name=name)
    plan = plan_drawing(options, manifest)
    grid = stored_grid(Path(source))
    if grid is not None:
        grid.require_fit(manifest, source)
        pixels = load_pixels(source, grid.height, grid.width)
    else:
        pixels = load_pixels(source, plan.height, plan.width)
        if guide is None:
            raise RFError(f"{source} was not drawn by rf-export generate, so its codes are unknown: add --checkpoint.")
        grid = RepGrid(
            checkpoint=manifest.checkpoint["sha256"],
            height=plan.height,
            width=plan.width,
            prompt="",
            seed=0,
            rep_ids=guide.encode(pixels),
        )
    return Shown(picture=to_picture(pixels), grid=grid, name=Path(source).name)


def stack_figures(figures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """One below the other, on white."""
    width = max(figure.shape[1] for figure in figures)
    widened = [np.pad(f, ((0, 0), (0, width - f.shape[1]), (0, 0)), constant_values=255) for f in figures]
    return np.concatenate(widened)


def _is_path(source: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # a prompt may be too long for a file name
        if source and Path(source).exists():  # Path("") is the working folder
            return True
    return " " not in source and Path(source).suffix != ""
