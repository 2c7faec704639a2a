"""One external-data file for several graphs: a tensor that they share is stored once. Knows nothing of meanings."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

ALIGNMENT: Final = 4096  # of tensors that are worth a page, so that a runtime can map them; others are packed close
MIN_EXTERNAL_BYTES: Final = 1024  # smaller tensors stay in the graph


class WeightFile:
    """Collects the initialisers of graphs, written as they come; those that lie in another file are copied too.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: Path, location: str) -> None:
        """Args: folder: where the graphs go; location: path of the file, relative to `folder`."""
        self._folder, self._location = folder, location
        self._offsets: dict[str | bytes, int] = {}  # of names, or of hashes
        self.path = folder / location
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("wb")

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def save(self, model: ir.Model, file_name: str, prefix: str = "") -> Path:
        """Write a graph whose larger initialisers lie in the file; returns its path.

        Args:
            model: The graph.
            file_name: Of the graph, in the folder.
            prefix: Move only initialisers whose names begin with it. In all graphs such a name means the same tensor,
                so that nothing is hashed to find it again, and each begins a page.
        """
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < MIN_EXTERNAL_BYTES or not name.startswith(prefix):
                continue
            key = name if prefix else hashlib.sha256(_raw(tensor).data).digest()
            if key not in self._offsets:
                self._offsets[key] = self._write(_raw(tensor), paged=bool(prefix))
            value.const_value = ir.ExternalTensor(
                self._location,
                self._offsets[key],
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
                base_dir=self._folder,
            )
        self._file.flush()
        path = self._folder / file_name
        ir.save(model, path)
        return path

    def _write(self, data: npt.NDArray[np.uint8], *, paged: bool) -> int:
        self._file.write(bytes(-self._file.tell() % (ALIGNMENT if paged or len(data) >= 16 * ALIGNMENT else 64)))
        offset = self._file.tell()
        self._file.write(data.data)
        return offset


def _raw(tensor: ir.TensorProtocol) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor as a file holds them, in its own memory where that is contiguous."""
    if tensor.dtype.bitwidth < 8:  # numbers of 4 bits are packed, two in a byte
        return np.frombuffer(tensor.tobytes(), np.uint8)
    array: npt.NDArray[Any] = np.ascontiguousarray(tensor.numpy())
    return array.reshape(-1).view(np.uint8)
