"""One external-data file for all graphs of a precision: a parameter is stored once, whoever uses it.

Knows nothing of what the tensors mean. Tensors start on page boundaries, so that a runtime can map them.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir

ALIGNMENT = 4096
MIN_EXTERNAL_BYTES = 1024  # smaller tensors stay in the graph file


class SharedWeights:
    """Collects the initialisers of several graphs into one file, written as they come."""

    def __init__(self, folder: Path, location: str) -> None:
        """Args: folder: where the graphs go; location: path of the data file, relative to `folder`."""
        self._folder, self._location = folder, location
        self._offsets: dict[str, tuple[int, int]] = {}
        path = folder / location
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("wb")

    def __enter__(self) -> "SharedWeights":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def save(self, model: ir.Model, file_name: str) -> None:
        """Write a graph whose parameters refer to the shared file; adds those not yet in it."""
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or not name.startswith("model.") or tensor.nbytes < MIN_EXTERNAL_BYTES:
                continue
            offset, length = self._store(name, tensor)
            value.const_value = ir.ExternalTensor(
                self._location,
                offset,
                length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape),
                name=name,
                base_dir=self._folder,
            )
        ir.save(model, self._folder / file_name)

    def _store(self, name: str, tensor: ir.TensorProtocol) -> tuple[int, int]:
        if name not in self._offsets:
            self._stream.write(b"\0" * (-self._stream.tell() % ALIGNMENT))
            offset = self._stream.tell()
            data = np.ascontiguousarray(tensor.numpy())
            self._stream.write(data.reshape(-1).view(np.uint8).data)
            self._stream.flush()
            self._offsets[name] = offset, data.nbytes
        return self._offsets[name]
