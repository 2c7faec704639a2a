"""One external-data file for several graphs: equal tensors are stored once. Knows nothing of what they mean."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Final

import onnx_ir as ir

ALIGNMENT: Final = 4096  # of tensors that are worth a page; others are packed close
MIN_EXTERNAL_BYTES: Final = 1024  # smaller tensors stay in the graph


class WeightFile:
    """Collects the initialisers of graphs; those that come from another file are copied too.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: Path, location: str) -> None:
        """Args: folder: where the graphs go; location: path of the file, relative to `folder`."""
        self._folder, self._location = folder, location
        self._offsets: dict[bytes, int] = {}
        self.path = folder / location
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("wb")

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def save(self, model: ir.Model, file_name: str) -> Path:
        """Write a graph whose larger initialisers lie in the file; returns its path."""
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < MIN_EXTERNAL_BYTES:
                continue
            data = tensor.tobytes()
            value.const_value = ir.ExternalTensor(
                self._location,
                self._store(data),
                len(data),
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
                base_dir=self._folder,
            )
        self._file.flush()
        path = self._folder / file_name
        ir.save(model, path)
        return path

    def _store(self, data: bytes) -> int:
        digest = hashlib.sha256(data).digest()
        if digest not in self._offsets:
            self._file.write(bytes(-self._file.tell() % (ALIGNMENT if len(data) >= 16 * ALIGNMENT else 64)))
            self._offsets[digest] = self._file.tell()
            self._file.write(data)
        return self._offsets[digest]
