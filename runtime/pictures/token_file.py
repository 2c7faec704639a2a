"""The representation tokens of one picture as a JSON document, alone or inside the picture's PNG file.

    {"format": "rf-export-tokens", "format_version": 1, "checkpoint": "<sha256>", "height": 48, "width": 48, "rows": 4,
     "columns": 4, "prompt": "a red car", "seed": 7, "rep_ids": [[501, 7, 7, 90], ...]}

`checkpoint` names the model whose codes these are: every bundle of that checkpoint takes them, whatever its precision.
Knows nothing of how tokens are drawn.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.bundle.manifest import Manifest
from runtime.bundle.strict_json import Section, read_json
from runtime.errors import RFError
from runtime.events import PictureEvent
from runtime.noise import MAX_SEED
from runtime.pictures.png import read_parameters

FORMAT: Final = "rf-export-tokens"
FORMAT_VERSION: Final = 1
PNG_KEY: Final = "tokens"  # in the parameters of a PNG file
_PNG_START: Final = b"\x89PNG"


@dataclass(frozen=True, kw_only=True, eq=False)
class RepGrid:
    """The tokens of a picture, and what it was drawn from; a picture that nobody drew has an empty prompt."""

    checkpoint: str  # SHA-256
    height: int
    width: int
    prompt: str
    seed: int
    rep_ids: npt.NDArray[np.int64]  # [rows, columns]

    @classmethod
    def of(cls, event: PictureEvent, manifest: Manifest) -> "RepGrid":
        """The tokens of a picture that was drawn."""
        height, width = event.picture.shape[:2]
        return cls(
            checkpoint=manifest.checkpoint["sha256"],
            height=height,
            width=width,
            prompt=event.prompt,
            seed=event.seed,
            rep_ids=event.rep_ids.reshape(manifest.model.rep_grid(height, width)),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        rows, columns = self.rep_ids.shape
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "checkpoint": self.checkpoint,
            "height": self.height,
            "width": self.width,
            "rows": rows,
            "columns": columns,
            "prompt": self.prompt,
            "seed": self.seed,
            "rep_ids": self.rep_ids.tolist(),
        }

    @classmethod
    def from_dict(cls, content: Any, where: str) -> "RepGrid":
        """Read a document; raises RFError naming `where` and what is wrong."""
        top = Section(content, where)
        top.string("format", (FORMAT,))
        version = top.integer("format_version", 0)
        if version != FORMAT_VERSION:
            raise RFError(f"{where}: format_version is {version}, and this version reads {FORMAT_VERSION}.")
        shape = (top.integer("rows", 1), top.integer("columns", 1))
        grid = cls(
            checkpoint=top.string("checkpoint"),
            height=top.integer("height", 1),
            width=top.integer("width", 1),
            prompt=top.string("prompt"),
            seed=top.integer("seed", 0),
            rep_ids=_ids(top.array("rep_ids"), shape, where),
        )
        top.done()
        if grid.seed > MAX_SEED:
            raise RFError(f"{where}: 'seed' must be below 2**64, found {grid.seed}.")
        return grid

    def require_fit(self, manifest: Manifest, where: str) -> None:
        """Refuse tokens that this model does not know; raises RFError."""
        model = manifest.model
        if self.checkpoint != manifest.checkpoint["sha256"]:
            raise RFError(
                f"{where} holds tokens of another model (checkpoint {self.checkpoint[:16]}, this bundle is of "
                f"{manifest.checkpoint['sha256'][:16]}): codes mean nothing to a model that did not learn them."
            )
        try:
            expected = model.rep_grid(self.height, self.width)
        except ValueError as error:
            raise RFError(f"{where}: this model draws no {self.height} x {self.width} pixels: {error}.") from error
        if self.rep_ids.shape != expected:
            raise RFError(
                f"{where}: {self.height} x {self.width} pixels have {expected[0]} x {expected[1]} tokens, found "
                f"{self.rep_ids.shape[0]} x {self.rep_ids.shape[1]}."
            )
        if self.rep_ids.max() >= model.rep_vocab_size:
            raise RFError(f"{where}: rep_ids must be 0 to {model.rep_vocab_size - 1}, found {self.rep_ids.max()}.")


def read_grid(path: Path) -> RepGrid:
    """Read what `tokens --json` printed, or a PNG file that `generate` wrote.

    Raises:
        RFError: The file is neither, holds several pictures, or is damaged.
    """
    if _is_png(path):
        grid = stored_grid(path)
        if grid is None:
            raise RFError(f"{path} holds no tokens: rf-export generate did not write it. Give a file that it wrote.")
        return grid
    document = read_json(path)
    if isinstance(document, list):
        raise RFError(f"{path} holds the tokens of {len(document)} pictures. Give those of one.")
    return RepGrid.from_dict(document, str(path))


def _is_png(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_PNG_START)) == _PNG_START
    except OSError:
        return False


def stored_grid(path: Path) -> RepGrid | None:
    """The tokens in a PNG file that `generate` wrote, or None; raises RFError where they are damaged or many."""
    parameters = read_parameters(path) if _is_png(path) else {}
    if "pictures" in parameters:
        raise RFError(f"{path} is a sheet of several pictures. Draw them with --each, and give one of those files.")
    return RepGrid.from_dict(parameters[PNG_KEY], f"{path}: {PNG_KEY}") if PNG_KEY in parameters else None


def _ids(rows: list[Any], shape: tuple[int, int], where: str) -> npt.NDArray[np.int64]:
    """Checked by hand: NumPy would take True, 1.5 and ragged rows."""
    if len(rows) != shape[0] or any(not isinstance(row, list) or len(row) != shape[1] for row in rows):
        raise RFError(f"{where}: 'rep_ids' must be {shape[0]} lists of {shape[1]} numbers.")
    for value in (value for row in rows for value in row):
        if type(value) is not int or not 0 <= value < 2**31:
            raise RFError(f"{where}: 'rep_ids' must be whole numbers >= 0, found {json.dumps(value)[:40]}.")
    return np.array(rows, np.int64)
