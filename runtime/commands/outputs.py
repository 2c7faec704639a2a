"""The files that `generate` writes: a picture or a sheet, one file per picture, a strip of steps.

Where they go is checked before anything is drawn. Knows nothing of drawing.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from runtime.commands import parameters as arg

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from runtime.events import PictureEvent

    Frame: TypeAlias = tuple[npt.NDArray[np.uint8], str]  # what a picture looked like on the way, and when


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where to write, as the options say: --output, --each, --preview."""

    output: Path
    each: Path | None
    preview: Path | None

    def require(self, num_pictures: int) -> None:
        """Refuse what could not be written afterwards; raises click.UsageError."""
        if self.output == arg.STDOUT and sys.stdout.isatty():
            raise click.BadParameter(
                "stdout is a terminal; lead the picture into a file or a program", param_hint="--output"
            )
        arg.require_writable(self.output, "--output")
        arg.require_writable(self.preview, "--preview")
        _require_folder(self.each)
        seen = set()
        for path in filter(None, (self.output, self.preview, *self._each_file(num_pictures))):
            real = os.path.realpath(path)
            if real in seen:
                raise click.UsageError(f"{path} is named for two outputs; give each of them a path of its own")
            seen.add(real)

    def write(
        self,
        pictures: "Sequence[PictureEvent]",
        strips: "Sequence[Sequence[Frame]]",
        parameters: Sequence[Mapping[str, Any]],
    ) -> list[str]:
        """Write pictures with their parameters, and their strips; returns the names of the files."""
        from runtime.pictures.sheet import contact_sheet

        together = {"pictures": parameters}
        if len(pictures) == 1:
            _save(self.output, pictures[0].picture, parameters[0])
        else:
            _save(self.output, contact_sheet([p.picture for p in pictures], [p.prompt for p in pictures]), together)
        if self.each is not None:
            self.each.mkdir(parents=True, exist_ok=True)
        for path, picture, its in zip(self._each_file(len(pictures)), pictures, parameters, strict=False):
            _save(path, picture.picture, its)
        if self.preview is not None:
            frames = [frame for strip in strips for frame in strip]
            sheet = contact_sheet([f[0] for f in frames], [f[1] for f in frames], columns=len(strips[0]))
            _save(self.preview, sheet, together)
        return [str(path) for path in (self.output, *self._each_file(len(pictures)), self.preview) if path]

    def _each_file(self, num_pictures: int) -> list[Path]:
        return [] if self.each is None else [self.each / f"{i:03}.png" for i in range(num_pictures)]


def _save(path: Path, picture: "npt.NDArray[np.uint8]", parameters: Mapping[str, Any]) -> None:
    from runtime.pictures.png import save_png

    if path != arg.STDOUT:
        save_png(path, picture, parameters)
        return
    save_png(sys.stdout.buffer, picture, parameters)
    sys.stdout.buffer.flush()


def _require_folder(path: Path | None) -> None:
    """Refuse a folder for pictures that could not be made, or written into."""
    if path is None:
        return
    there = arg.nearest_existing(path.absolute())
    if not there.is_dir():
        raise click.BadParameter(f"{there} is a file, or a link that leads nowhere", param_hint="--each")
    if not os.access(there, os.W_OK | os.X_OK):
        raise click.BadParameter(f"nothing can be written into {there}", param_hint="--each")
