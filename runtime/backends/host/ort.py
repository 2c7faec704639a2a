"""Runs graphs on the CPU with ONNX Runtime. With cuda/ort.py the only module that imports onnxruntime.

Knows nothing of the model: names and arrays in, arrays out.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import onnxruntime as ort

from runtime.backends.host.forks import ProcessBound
from runtime.backends.host.machine import cpu_features, is_confined, usable_cores
from runtime.backends.host.stages import HostRunner
from runtime.backends.interface import Arrays, Target
from runtime.errors import RFError
from runtime.signature import GraphSignature, TensorSpec

_DTYPES: Final = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
_ERRORS_ONLY: Final = 3
_NO_MEMORY: Final = ("Failed to allocate memory", "bad_alloc", "bad allocation")  # of its arena, Linux and Windows


class OrtBackend(HostRunner):
    """The CPU provider of ONNX Runtime."""

    needs_engine = False

    def __init__(self, *, allow_spinning: bool = True) -> None:
        self._allow_spinning = allow_spinning

    def target(self) -> Target:
        """The version with its commit: prepacked weights are a private format of the library."""
        build = dict(part.partition("=")[::2] for part in ort.get_build_info().split(", "))
        version = f"{ort.__version__} {build.get('git-commit-id', '')}".strip()
        return Target("ort", version, cpu_features())

    def open(self, path: Path, *, num_threads: int | None, compiled: bool) -> "OrtSession":
        """Load a graph; see `runtime.backends.interface.Backend.open`."""
        options = session_options(num_threads, allow_spinning=self._allow_spinning)
        if compiled:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return OrtSession(open_session(path, options))


def session_options(num_threads: int | None, *, allow_spinning: bool = True) -> ort.SessionOptions:
    """Options that the runtime and the engine builder share.

    Args:
        num_threads: Threads of a run.
        allow_spinning: They wait busily for the next run. That is faster on cores that nobody else needs, and slower
            by half and more where two such threads share one.
    """
    if num_threads is not None and num_threads < 1:
        raise RFError(f"num_threads must be >= 1, got {num_threads}.")
    options = ort.SessionOptions()
    # 0 is a thread per core of the whole machine, each bound to its core, whatever this process may use.
    options.intra_op_num_threads = num_threads or (usable_cores() if is_confined() else 0)
    options.log_severity_level = _ERRORS_ONLY
    # From the second run of a shape on, a pattern would take all its memory once more in one block; no run is faster.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if allow_spinning else "0")
    # INT8 weights times inputs that are rounded to INT8 by block: the way that has kernels for VNNI and AMX.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    return options


def open_session(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """Load a file.

    Raises:
        RFError: ONNX Runtime refuses it.
        MemoryError: It has no memory for it.
    """
    require_utf8(path)
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has no common base class for its errors
        if _is_out_of_memory(error):
            raise MemoryError(f"ONNX Runtime cannot load {path}") from error
        raise RFError(
            f"ONNX Runtime {ort.__version__} cannot load {path}: {error} "
            "Install a newer onnxruntime, or export the bundle again.",
            "damaged",
        ) from error


def require_utf8(path: Path) -> None:
    """Refuse a name of other bytes, which ONNX Runtime cannot open; raises RFError."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RFError(f"ONNX Runtime opens no file whose path is not UTF-8: {str(path)!r}. Rename it.") from None


class OrtSession(ProcessBound):
    """A loaded graph; see `runtime.backends.interface.Session`."""

    def __init__(self, session: ort.InferenceSession) -> None:
        super().__init__()
        self._session = session
        self._signature = GraphSignature(
            tuple(map(_spec, session.get_inputs())), tuple(map(_spec, session.get_outputs()))
        )

    @property
    def signature(self) -> GraphSignature:
        """Inputs and outputs, as the graph itself tells them."""
        return self._signature

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once; the outputs are new arrays."""
        names = [spec.name for spec in self._signature.outputs]
        self.require_own_process()
        with _memory_errors():
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare runs that copy nothing: ONNX Runtime reads and writes the memory of the arrays."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, _shared(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, _shared(array))
        return functools.partial(self._run_bound, binding, (*inputs.values(), *outputs.values()))

    def _run_bound(self, binding: ort.IOBinding, _arrays: tuple[npt.NDArray[Any], ...]) -> None:
        """Run once. Before 1.24 a binding does not keep its arrays: the graph would read what is no longer there."""
        self.require_own_process()
        with _memory_errors():
            self._session.run_with_iobinding(binding)


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Raises MemoryError where ONNX Runtime has no memory left, for which it has no error of its own."""
    try:
        yield
    except Exception as error:  # the library has no common base class for its errors
        if not _is_out_of_memory(error):
            raise
        raise MemoryError("ONNX Runtime cannot allocate what a graph needs") from error


def _is_out_of_memory(error: Exception) -> bool:
    return any(sign in str(error) for sign in _NO_MEMORY)


def _shared(array: npt.NDArray[Any]) -> ort.OrtValue:
    value = ort.OrtValue.ortvalue_from_numpy(array)
    # On the CPU a value wraps the array. A copy would freeze the inputs without any error.
    if array.size and value.data_ptr() != array.ctypes.data:
        raise ValueError(f"an array of shape {array.shape} cannot be shared: it must be contiguous")
    return value


def _spec(node: Any) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int | str) else "?" for dim in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)
