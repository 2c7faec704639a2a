"""Runs graphs on the first GPU with ONNX Runtime's CUDA provider, bound to device memory.

Knows nothing of the model. The third way to run a bundle: no engine to build, and the graphs as they are. It shares the
stages, the stream and the memory of drawings with TensorRT's backend; its runs are not captured.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from runtime.backends.cuda.device import CudaDevice
from runtime.backends.cuda.session import Enqueue
from runtime.backends.cuda.stages import DeviceStages
from runtime.backends.cuda.text import DeviceTextRow
from runtime.backends.cuda.workspace import WorkspacePool
from runtime.backends.host.ort import OrtSession, require_utf8, session_options
from runtime.backends.interface import DrawingShape, Session, StageRunner, Target
from runtime.errors import RFError
from runtime.signature import GraphName, ModelSpec, Variant

PROVIDER: Final = "CUDAExecutionProvider"
_DEVICE: Final = "cuda"
_UNLIMITED: Final = 1 << 20  # tokens: a graph takes every length, and the model's own limit is checked elsewhere


class OrtCudaBackend:
    """The CUDA provider of ONNX Runtime; see `runtime.backends.interface.Backend`."""

    needs_engine = False

    def __init__(self, provider: str = PROVIDER, device_type: str = _DEVICE) -> None:
        """Raises RFError where there is no GPU, ModuleNotFoundError where a package is missing."""
        self._provider, self._device_type = provider, device_type
        self._device = CudaDevice()
        self._pool = WorkspacePool()

    def target(self) -> Target:
        """Nothing is compiled for it; the names tell what runs."""
        return Target("ort-cuda", ort.__version__, self._device.gpu.device)

    def open(self, path: Path, *, num_threads: int | None, compiled: bool) -> "OrtCudaSession":
        """Load a graph; see `runtime.backends.interface.Backend.open`."""
        require_utf8(path)
        if hasattr(ort, "preload_dlls"):  # finds the CUDA libraries of NVIDIA's Python packages
            ort.preload_dlls()
        # TF32 would round the products of fp32 graphs to 10 bits, and is on where it is not refused.
        options = {"device_id": "0", "user_compute_stream": str(self._device.stream), "use_tf32": "0"}
        choice = (self._provider, options if self._provider == PROVIDER else {})
        with self._device.exclusive(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the missing provider: the error below says it
            session = ort.InferenceSession(str(path), session_options(num_threads), providers=[choice])
        used = session.get_providers()[0]
        if used != self._provider:  # it falls back to the CPU without an error
            raise RFError(
                f"ONNX Runtime {ort.__version__} does not run on the GPU: it chose {used}. Expected {self._provider}: "
                "install onnxruntime-gpu instead of onnxruntime, with the CUDA and cuDNN of its release notes.",
                "missing",
            )
        return OrtCudaSession(session, self._device, self._device_type)

    def stages(self, sessions: Mapping[GraphName, Session], drawing: DrawingShape) -> StageRunner:
        """Whole stages on the device."""
        return DeviceStages(self._device, sessions, self._pool, drawing)

    def text_row(self, session: Session, model: ModelSpec, variant: Variant) -> DeviceTextRow:
        """Keys and values on the device."""
        return DeviceTextRow(self._device, session, model, variant)


class OrtCudaSession(OrtSession):
    """A loaded graph; see `runtime.backends.cuda.session.DeviceSession`."""

    capturable = False  # ONNX Runtime allocates in its runs

    def __init__(self, session: ort.InferenceSession, device: CudaDevice, device_type: str) -> None:
        super().__init__(session)
        self._device, self._device_type = device, device_type

    def dtype(self, name: str) -> npt.DTypeLike:
        """The dtype that a tensor has on the device."""
        return {spec.name: spec.dtype for spec in (*self.signature.inputs, *self.signature.outputs)}[name]

    def sizes(self, name: str, axis: int) -> tuple[int, int]:
        """Every size."""
        return 1, _UNLIMITED

    def longest(self, name: str, axis: int) -> int:
        """No limit."""
        return _UNLIMITED

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> Enqueue:
        """Prepare runs on the memory of a drawing."""
        binding = self._session.io_binding()
        inputs = {spec.name for spec in self.signature.inputs}
        known: dict[str, int] = {}
        options = ort.RunOptions()
        if self._device_type == _DEVICE:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # all is on one stream

        def enqueue(addresses: Mapping[str, int]) -> None:
            for name, address in addresses.items():
                if known.get(name) != address:
                    bind = binding.bind_input if name in inputs else binding.bind_output
                    bind(name, self._device_type, 0, np.dtype(self.dtype(name)), shapes[name], address)
                    known[name] = address
            self._session.run_with_iobinding(binding, options)

        return enqueue
