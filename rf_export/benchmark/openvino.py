"""Another library over the same graphs, which a user would run in place of our engines: OpenVINO.

It runs the bundle's ONNX graphs in fp32, the same with bfloat16 inside, and our INT8 graphs. Its sessions take the
place of ours behind the same stages, so that noise, cache, loops and windows are the same for all. Knows nothing of
timing.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy.typing as npt

from runtime.backends.interface import Arrays
from runtime.bundle.folder import Bundle
from runtime.pipeline import Pipeline
from runtime.signature import GRAPHS, GraphName, GraphSignature, Precision, Variant

EXTRA: Final = "pip install 'rf-export[rivals]'"


@dataclass(frozen=True)
class OpenVinoKind:
    """How OpenVINO computes.

    Attributes:
        name: In the tables. What ends with fp32 has to agree with the checkpoint.
        precision: The graphs of ours that it runs.
        hint: What it computes in where nothing is quantised.
    """

    name: str
    precision: Precision
    hint: Literal["f32", "bf16"]


OPENVINO_KINDS: Final = (
    OpenVinoKind("openvino fp32", "fp32", "f32"),
    OpenVinoKind("openvino bf16", "fp32", "bf16"),
    OpenVinoKind("openvino int8", "int8", "f32"),
    OpenVinoKind("openvino int8 and bf16", "int8", "bf16"),
)


def openvino_kinds(precisions: tuple[Precision, ...], left_out: dict[str, str]) -> Iterator[OpenVinoKind]:
    """What of OpenVINO can compete here; `left_out` is told of the others, and why."""
    if importlib.util.find_spec("openvino") is None:
        left_out["openvino"] = f"it is not installed: {EXTRA}"
        return
    for kind in OPENVINO_KINDS:
        if kind.precision not in precisions:
            continue
        if kind.hint == "bf16" and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            left_out[kind.name] = "OpenVINO does not compute in bfloat16 on this processor"
            continue
        yield kind


def openvino_pipeline(ours: Pipeline, kind: OpenVinoKind, num_threads: int) -> Pipeline:
    """Our pipeline with OpenVINO in place of ONNX Runtime."""
    return ours.with_sessions(
        {name: OpenVinoSession(*_graph(ours.bundle, name, kind.precision), kind.hint, num_threads) for name in GRAPHS}
    )


def _graph(bundle: Bundle, name: GraphName, precision: Precision) -> tuple[Path, GraphSignature]:
    entry = bundle.graph(name, Variant(precision))
    return bundle.file(entry.file), entry.signature


@functools.cache
def _core() -> Any:
    """OpenVINO, which does not come without a sender of usage data: it stays unloaded, and a stub takes its place."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


class OpenVinoSession:
    """A graph in OpenVINO on the CPU; see `runtime.backends.interface.Session`."""

    def __init__(self, path: Path, signature: GraphSignature, hint: str, num_threads: int) -> None:
        """Raises RuntimeError where OpenVINO does not take the graph."""
        self.signature = signature
        config = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": num_threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        self._compiled = _core().compile_model(str(path), "CPU", config)

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once; the outputs are new arrays."""
        request = self._request(inputs, {})
        request.infer()
        return {spec.name: request.get_tensor(spec.name).data.copy() for spec in self.signature.outputs}

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare runs on the same memory."""
        request, arrays = self._request(inputs, outputs), (*inputs.values(), *outputs.values())

        def run(_arrays: tuple[npt.NDArray[Any], ...] = arrays) -> None:
            request.start_async()  # infer() makes arrays of all outputs, each time
            request.wait()

        return run

    def _request(self, inputs: Arrays, outputs: Arrays) -> Any:
        from openvino import Tensor

        request = self._compiled.create_infer_request()
        for name, array in (*inputs.items(), *outputs.items()):
            tensor = Tensor(array, shared_memory=True)
            if array.size and tensor.data.ctypes.data != array.ctypes.data:
                raise ValueError(f"an array of shape {array.shape} cannot be shared: it must be contiguous")
            request.set_tensor(name, tensor)
        return request
