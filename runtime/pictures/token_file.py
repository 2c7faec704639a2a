"""The representation tokens of one picture as a JSON document, alone or inside the picture's PNG file.

    {"format": "rf-export-tokens", "format_version": 1, "checkpoint": "<sha256>", "height": 48, "width": 48, "rows": 4,
     "columns": 4, "prompt": "a red car", "seed": 7, "rep_ids": [[501, 7, 7, 90], ...]}

`checkpoint` names the model whose codes these are: every bundle of that checkpoint takes them, whatever its precision.
Knows nothing of how tokens are drawn.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import Meta
from msgspec.structs import asdict

from runtime.bundle.manifest import Manifest
from runtime.bundle.strict_json import NotNegative, Record, read_as, read_document, read_json
from runtime.errors import RFError
from runtime.events import PictureEvent
from runtime.noise import MAX_SEED
from runtime.pictures.png import parameters_in, read_parameters
from runtime.signature import Positive

FORMAT: Final = "rf-export-tokens"
FORMAT_VERSION: Final = 1
PNG_KEY: Final = "tokens"  # in the parameters of a PNG file
_PNG_START: Final = b"\x89PNG"
_Id = Annotated[int, Meta(ge=0, lt=2**31, description="a whole number >= 0 and below 2**31")]


class _Document(Record, frozen=True, kw_only=True):
    checkpoint: str
    height: Positive
    width: Positive
    rows: Positive
    columns: Positive
    prompt: str
    seed: NotNegative
    rep_ids: list[list[_Id]]

    def __post_init__(self) -> None:
        if len(self.rep_ids) != self.rows or any(len(row) != self.columns for row in self.rep_ids):
            raise ValueError(f"'rep_ids' must be {self.rows} lists of {self.columns} numbers")
        if self.seed > MAX_SEED:
            raise ValueError(f"'seed' must be below 2**64, found {self.seed}")


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
        own = {name: value for name, value in vars(self).items() if name != "rep_ids"}
        document = _Document(**own, rows=rows, columns=columns, rep_ids=self.rep_ids.tolist())
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **document.to_dict()}

    @classmethod
    def from_dict(cls, content: Any, where: str) -> "RepGrid":
        """Read a document; raises RFError naming `where` and what is wrong."""
        document = read_document(content, where, FORMAT, FORMAT_VERSION, "Write the tokens")
        values = asdict(read_as(_Document, document, where))
        del values["rows"], values["columns"]
        return cls(**{**values, "rep_ids": np.array(values["rep_ids"], np.int64)})

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
    return _grid_of(read_parameters(path), str(path)) if _is_png(path) else None


def grid_in(content: bytes, where: str) -> RepGrid | None:
    """The same of the content of a PNG file; messages call it `where`."""
    return _grid_of(parameters_in(content, where), where)


def _grid_of(parameters: dict[str, Any], where: str) -> RepGrid | None:
    if "pictures" in parameters:
        told = f"{where} is a sheet of several pictures."
        raise RFError(
            f"{told} Draw them with --each, and give one of those files.", elsewhere=f"{told} Give a file of one."
        )
    return RepGrid.from_dict(parameters[PNG_KEY], f"{where}: {PNG_KEY}") if PNG_KEY in parameters else None
