"""PyTorch's own ahead-of-time compiler over the modules of our graphs, as one more contender: AOTInductor.

It compiles what the export traces, with the same free dimensions, to C++ for this processor. Its sessions take
the place of ours behind the same stages, so that noise, cache, loops and windows are the same for all. Knows nothing of
timing.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import torch

from rf_export.graphs.classic import MASKED, ClassicDecoder
from rf_export.graphs.modules import GRAPHS, CachedGraph
from rf_export.model import RFModel
from rf_export.trace import example_inputs
from runtime.backends.interface import Arrays
from runtime.pipeline import Pipeline
from runtime.signature import GRAPHS as GRAPH_NAMES
from runtime.signature import GraphName, GraphSignature, Variant

NAME: Final = "aotinductor fp32"
_COMPILED: Final[dict[str, dict[GraphName, "AotSession"]]] = {}  # by bundle


def why_not() -> str | None:
    """Why it cannot compete here, or None."""
    return None if shutil.which("c++") or shutil.which("g++") else "it needs a C++ compiler: apt-get install g++"


def aotinductor_pipeline(ours: Pipeline, model: RFModel) -> Pipeline:
    """Our pipeline in fp32 with AOTInductor in place of ONNX Runtime. Compiles for minutes, once for every bundle."""
    manifest = ours.bundle.manifest
    if manifest.bundle_id not in _COMPILED:
        _COMPILED[manifest.bundle_id] = {name: AotSession(model, name, manifest.model) for name in GRAPH_NAMES}
    return ours.with_sessions(_COMPILED[manifest.bundle_id])


class _OnePart(ClassicDecoder):
    """Attends from all rows in one part.

    `torch.export` (2.13) cannot say that B rows are R or more, so rows without a cache get a hidden one: theirs is the
    first request's behind a mask, which costs them the products with it.
    """

    def attend_patches(self, *inputs: Any) -> torch.Tensor:
        """See `ClassicDecoder.attend_patches`."""
        q, k, v, past_key, past_value, bias, scale = inputs
        num, slots = past_key.shape[0], past_key.shape[2]
        rows = torch.arange(q.shape[0])
        owners = torch.where(rows < num, rows, 0)
        hidden = torch.where(rows < num, 0.0, MASKED)[:, None, None, None]
        keys = torch.cat([past_key.index_select(0, owners), k], 2)
        values = torch.cat([past_value.index_select(0, owners), v], 2)
        added = bias.index_select(0, owners)
        added = torch.cat([added[..., :slots] + hidden, added[..., slots:]], -1)
        return torch.softmax((q @ keys.transpose(2, 3)) * scale + added, -1) @ values


class AotSession:
    """A graph's module, compiled; see `runtime.backends.interface.Session`."""

    def __init__(self, model: RFModel, name: GraphName, spec: Any) -> None:
        """Compiles."""
        self.signature = GraphSignature.of(name, spec, Variant())
        module = GRAPHS[name](model, "classic").eval()
        if isinstance(module, CachedGraph):
            module.decoder = _OnePart(model)
        inputs, dynamic_shapes = example_inputs(self.signature, model.config)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes)
            package = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(folder) / "graph.pt2"))
            self._graph = torch._inductor.aoti_load_package(package)

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once; the outputs are new arrays."""
        found = self._outputs([torch.from_numpy(inputs[spec.name]) for spec in self.signature.inputs])
        return {spec.name: tensor.numpy() for spec, tensor in zip(self.signature.outputs, found, strict=True)}

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare runs on the same memory."""
        given = [torch.from_numpy(inputs[spec.name]) for spec in self.signature.inputs]
        names = [spec.name for spec in self.signature.outputs]
        wanted = [(names.index(name), torch.from_numpy(array)) for name, array in outputs.items()]

        def run() -> None:
            found = self._outputs(given)
            for index, tensor in wanted:
                tensor.copy_(found[index])

        return run

    def _outputs(self, inputs: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        found: Sequence[torch.Tensor] | torch.Tensor = self._graph(*inputs)
        return [found] if isinstance(found, torch.Tensor) else found  # who has one output gives it bare
