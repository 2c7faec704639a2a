"""Moves the weights of several optimised ONNX files into one file that holds equal bytes once.

Knows nothing of what the weights mean. ONNX Runtime saves an optimised graph with its weights in one external
file, each as it was and, as `prepacked_<n>` entries, in the layouts that its kernels read. The entries have the
form (onnxruntime/core/framework/tensor_external_data_info.cc)

    key|offset;length;checksum|offset;length;checksum ...

Here the offsets are written anew. Graphs of one model share their attention, and packed the same way it gives the
same bytes. Large blobs start on page boundaries, so that a session maps them and several sessions, also of several
processes, share the pages.
"""

import hashlib
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from engines.external_data import read_model

ALIGNMENT: Final = 65536  # the granularity of mapping on Windows; 4096 elsewhere
_PREPACKED: Final = re.compile(r"(?P<key>[^|]+)(?P<blobs>(\|\d+;\d+;\d+)+)")


class WeightPool:
    """One file of blobs; equal blobs are stored once.

    Attributes:
        path: The file.
        num_bytes_shared: Bytes that did not have to be stored again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes_shared = 0
        self._file = path.open("xb")
        self._offsets: dict[bytes, int] = {}

    def __enter__(self) -> "WeightPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, blob: memoryview) -> int:
        """The offset of a blob, which is written unless it is there."""
        digest = hashlib.sha256(blob).digest()
        if digest in self._offsets:
            self.num_bytes_shared += len(blob)
            return self._offsets[digest]
        end = self._file.tell()
        offset = end + -end % _alignment(len(blob))
        self._file.seek(offset)
        self._file.write(blob)
        self._offsets[digest] = offset
        return offset

    def absorb(self, source: Path, out: Path) -> None:
        """Move the external weights of an ONNX file into the pool.

        Args:
            source: The ONNX file, its external file beside it; both are deleted.
            out: Where the ONNX file goes that refers to the pool, in the pool's folder.
        """
        model = read_model(source)
        for data_path, tensors in _by_file(model, source.parent):
            with (
                data_path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as view,
            ):
                for tensor in tensors:
                    self._move(tensor, view)
            data_path.unlink()
        out.write_bytes(model.SerializeToString())
        source.unlink()

    def _move(self, tensor: Any, data: memoryview) -> None:
        values = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(values["offset"]), int(values["length"])
        for entry in tensor.external_data:  # a key `prepacked_<n>` may be there more than once
            if entry.key == "location":
                entry.value = self.path.name
            elif entry.key == "offset":
                entry.value = str(self.add(data[offset : offset + length]))
            elif entry.key.startswith("prepacked_"):
                entry.value = self._move_prepacked(entry.value, data)

    def _move_prepacked(self, value: str, data: memoryview) -> str:
        match = _PREPACKED.fullmatch(value)
        if match is None:
            raise ValueError(f"unknown form of prepacked weights: {value!r}")
        blobs = []
        for blob in match["blobs"][1:].split("|"):
            offset, length, checksum = map(int, blob.split(";"))
            blobs.append(f"{self.add(data[offset : offset + length])};{length};{checksum}")
        return "|".join([match["key"], *blobs])


def _alignment(num_bytes: int) -> int:
    """Small blobs are packed close: a page for each would waste more than it shares."""
    return ALIGNMENT if num_bytes >= ALIGNMENT else 64


def _by_file(model: Any, folder: Path) -> Iterator[tuple[Path, list[Any]]]:
    files: dict[str, list[Any]] = {}
    for tensor in model.graph.initializer:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
        if location is not None:
            files.setdefault(location, []).append(tensor)
    for location, tensors in files.items():
        yield folder / location, tensors
