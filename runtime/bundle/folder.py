"""A bundle on the disk: open it, check it, write it.

Knows nothing of graphs beyond their entries in the manifest. Opening checks the manifest in full and the
size of every file; hashes are checked for the files that are going to be read, as far as that is cheap.

    bundle/
      manifest.json
      tokenizer.json
      graphs/<graph>.<precision>.<dialect>.onnx
      graphs/weights/<precision>.bin      below the graphs: ONNX Runtime >= 1.24 reads nothing beside them
      engines/<target>/engine.json, ...    not part of the manifest, see runtime/bundle/engine.py
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from runtime.bundle.atomic import killed_replacement, write_folder
from runtime.bundle.manifest import (
    FORMAT,
    MANIFEST_NAME,
    FileEntry,
    GraphEntry,
    Manifest,
    compute_bundle_id,
    format_manifest,
)
from runtime.bundle.strict_json import LFS_START, read_json, refuse_lfs_pointer
from runtime.errors import RFError
from runtime.signature import GraphName, Precision, Variant

__all__ = [
    "Bundle",
    "Verify",
    "compute_bundle_id",
    "describe_file",
    "open_bundle",
    "write_atomically",
    "write_manifest",
]

Verify: TypeAlias = Literal["auto", "size", "hash"]

# sha256 runs at 1 to 2 GB/s, so this is the most that is hashed unasked: about 0.1 s of a start.
CHEAP_HASH_BYTES: Final = 200_000_000
_PIECE: Final = 2**20  # bytes read at once


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest, which fit together."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Where a file of the manifest's table lies."""
        return self.path / name

    def graph(self, name: GraphName, variant: Variant) -> GraphEntry:
        """The entry of a graph; raises RFError saying what there is."""
        for graph in self.manifest.graphs_of(variant):
            if graph.name == name:
                return graph
        found = sorted({str(graph.variant) for graph in self.manifest.graphs if graph.name == name})
        raise RFError(
            f"{self.path} has no {name} in {variant}; it has {', '.join(found) or 'none'}. "
            f"Choose one of these, or {_remedy(self.path, variant.precision)}."
        )

    def graph_sha256(self, name: GraphName, variant: Variant) -> str:
        """Names the content of a graph with its weights: sha256 of the lines `sha256 path` of its files."""
        lines = [f"{self.manifest.files[file].sha256} {file}\n" for file in self.graph(name, variant).files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def verify(self, names: Iterable[str] | None = None, verify: Verify = "hash") -> None:
        """Check files against the manifest.

        Args:
            names: Paths in the bundle; None for all of them.
            verify: "size" looks at sizes only, "hash" reads every byte, "auto" reads up to 200 MB, the
                smallest files first, and looks at the size of the others.

        Raises:
            RFError: Names the first file that is missing or differs.
        """
        files = self.manifest.files
        check_files(self.path, {name: files[name] for name in dict.fromkeys(names or files)}, verify)


def open_bundle(path: str | Path, *, verify: Verify = "size") -> Bundle:
    """Read and check a bundle.

    Args:
        path: The folder.
        verify: As in `Bundle.verify`, for all files of the bundle.

    Raises:
        RFError: It is no bundle, it is damaged, or it is of another format version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RFError(f"{folder} is not a folder. {_where_it_is(folder)}")
    if not (folder / MANIFEST_NAME).is_file():
        raise RFError(f"{folder} has no {MANIFEST_NAME}, so it is not a bundle. Make one with: rf-export export")
    bundle = Bundle(folder, Manifest.from_dict(read_json(folder / MANIFEST_NAME), str(folder / MANIFEST_NAME)))
    bundle.verify(verify=verify)
    return bundle


def _where_it_is(folder: Path) -> str:
    left = killed_replacement(folder)
    if left is None:
        return "Give the path of an exported bundle."
    return f"A command that was replacing it was killed, and left it whole as {left}. Rename that to {folder}."


def _remedy(path: Path, precision: Precision) -> str:
    if precision in ("int8", "int8-fp16"):
        target = "" if precision == "int8" else " --target tensorrt"
        return f"make the graphs with: rf-export calibrate {path} --prompts FILE{target}"
    return "export the bundle again with the precision that you need"


def check_files(folder: Path, files: dict[str, FileEntry], verify: Verify) -> None:
    """Check files of a folder against their entries; see `Bundle.verify`."""
    budget = {"size": 0, "auto": CHEAP_HASH_BYTES, "hash": float("inf")}[verify]
    inside = os.path.realpath(folder)
    for name, entry in sorted(files.items(), key=lambda item: item[1].size):
        path = folder / name
        if not Path(os.path.realpath(path)).is_relative_to(inside):  # ONNX Runtime follows none either
            raise RFError(
                f"{path} is a link out of the folder. Copy the folder with the files that its links lead to.", "damaged"
            )
        if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for names that are too long
            raise RFError(f"{path} is missing: the folder is incomplete. Copy it again, or make it again.", "damaged")
        size = path.stat().st_size
        if size != entry.size:
            with path.open("rb") as file:
                refuse_lfs_pointer(path, file.read(len(LFS_START)))
            raise RFError(
                f"{path} has {size} bytes and {entry.size} are expected: it is damaged or was cut off. "
                "Copy it again, or make it again.",
                "damaged",
            )
        budget -= size
        if budget >= 0 and describe_file(path) != entry:
            raise RFError(
                f"{path} differs from what was written (sha256): it is damaged or was changed. "
                "Copy it again, or make it again.",
                "damaged",
            )


def describe_file(path: Path) -> FileEntry:
    """Hash and size of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_PIECE):
            digest.update(chunk)
        return FileEntry(sha256=digest.hexdigest(), size=file.tell())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, the last file of a bundle."""
    (folder / MANIFEST_NAME).write_text(format_manifest(manifest), encoding="utf-8")


@contextmanager
def write_atomically(out: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Fill a new bundle that appears at `out` when it is complete: see `runtime.bundle.atomic.write_folder`.

    Args:
        out: Where the bundle is to be. Only a bundle or an empty folder is ever replaced.
        force: Replace a bundle that is there, with its engines.

    Yields:
        The temporary folder to write into.

    Raises:
        RFError: `out` may not be replaced, or the disk is full.
    """
    with write_folder(Path(out), replaceable=_is_bundle, force=force, what="bundle") as folder:
        yield folder


def _is_bundle(folder: Path) -> bool:
    try:
        content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
