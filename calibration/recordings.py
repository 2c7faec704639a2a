"""Recorded activations on the disk: a calibration goes on where it was interrupted, and another method starts at once.
Knows nothing of graphs.

A `.npz` file without pickles: an array per layer and kind, named `graph|weight|kind`, and `meta`, a JSON text with the
key (what bundle, what prompts, what options), how far the recording got, and the sha256 of all arrays.
"""

import hashlib
import json
import operator
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from calibration.statistics import Activations, Recorded
from runtime.bundle.atomic import write_file
from runtime.errors import RFError

FORMAT: Final = "rf-export-calibration-1"
_META: Final = "meta"


@dataclass(frozen=True)
class Reached:
    """How far a recording got: passes that are complete, and prompts of the one that is not."""

    passes: int = 0
    prompts: int = 0


def save(path: Path, key: Mapping[str, Any], recorded: Recorded, reached: Reached) -> None:
    """Write a cache, as a whole or not at all."""
    arrays = {
        f"{graph}|{weight}|{kind}": array
        for graph, layers in recorded.items()
        for weight, activations in layers.items()
        for kind, array in activations.arrays().items()
    }
    meta = {"format": FORMAT, "key": dict(key), "progress": vars(reached), "sha256": _digest(arrays)}
    with write_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **{_META: np.frombuffer(json.dumps(meta).encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]


def load(path: Path, key: Mapping[str, Any]) -> tuple[Recorded, Reached]:
    """Read a cache.

    Raises:
        RFError: It is damaged, or belongs to another bundle, other prompts or other options.
    """
    try:
        _refuse_bomb(path)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            meta = json.loads(file[_META].tobytes())
            arrays = {name: file[name] for name in file.files if name != _META}
        if meta["format"] != FORMAT or meta["sha256"] != _digest(arrays):
            raise ValueError("its hash does not fit its content")
        recorded = _group(arrays)
        reached = Reached(*map(operator.index, (meta["progress"]["passes"], meta["progress"]["prompts"])))
        if not isinstance(meta["key"], dict):
            raise ValueError("its key is no object")
    except Exception as error:  # readers of zip, NumPy and JSON raise whatever a damaged file makes of them
        raise RFError(f"The calibration cache {path} is damaged ({error}). Delete it and calibrate again.") from error
    different = [name for name, value in key.items() if meta["key"].get(name) != value]
    if different:
        raise RFError(
            f"The calibration cache {path} is of something else: other {', '.join(different)}. Name another --cache, "
            "or delete it and calibrate again."
        )
    return recorded, reached


def _refuse_bomb(path: Path) -> None:
    """Nothing in a cache is compressed, so that its content cannot be larger than the file."""
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("its content is larger than the file")


def _group(arrays: Mapping[str, npt.NDArray[Any]]) -> Recorded:
    parts: dict[str, dict[str, dict[str, npt.NDArray[Any]]]] = {}
    for name, array in arrays.items():
        graph, weight, kind = name.split("|")
        parts.setdefault(graph, {}).setdefault(weight, {})[kind] = array
    return {
        graph: {weight: Activations.from_arrays(kinds) for weight, kinds in layers.items()}
        for graph, layers in parts.items()
    }


def _digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
