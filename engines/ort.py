"""Builds engines for ONNX Runtime on the CPU: optimised graphs with prepacked weights, pooled in one file.

Knows nothing of the model. Loading an ONNX file, ONNX Runtime optimises the graph and copies every matrix
into the layout of its kernels, anew in every session. An engine has both on the disk: it loads faster, its
weights are mapped instead of copied, and all sessions share one copy of the attention. Private formats of
one version, so the target names it exactly.
"""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from engines.config import BuildEstimate, EngineConfig, Report
from engines.external_data import external_sizes
from engines.pool import WeightPool
from engines.windows import DrawingSizes
from runtime.backends import create_backend
from runtime.backends.host.ort import open_session, session_options
from runtime.backends.interface import Backend, Target
from runtime.backends.windows import WINDOWS
from runtime.bundle.folder import Bundle
from runtime.errors import RFError
from runtime.signature import GRAPHS, GraphName, Precision, Variant

_POOL: Final = "weights.bin"
# The same kernels on the same weights, so only the order of sums may differ.
MAX_RELATIVE_ERROR: Final[dict[Precision, float]] = {"fp32": 1e-5, "fp16": 1e-2, "int8": 1e-2, "int8-fp16": 5e-2}
_BASE_MEMORY_MIB: Final = 250  # the interpreter, the libraries, and what a check takes
# In units of the bundle's weights.
_COPIES: Final[dict[Precision, int]] = {"fp32": 2, "fp16": 4, "int8": 4, "int8-fp16": 4}
_OPTIONS: Final = {
    "session.save_external_prepacked_constant_initializers": "1",
    # Below this size tensors stay in the ONNX file.
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}


class OrtBuilder:
    """See `engines.config.Builder`."""

    def __init__(self, *, allow_spinning: bool = True) -> None:
        self._backend = create_backend("ort", allow_spinning=allow_spinning)

    def target(self) -> Target:
        """This version on this CPU."""
        return self._backend.target()

    def backend(self) -> Backend:
        """What runs the engine."""
        return self._backend

    def max_relative_error(self, precision: Precision) -> float:
        """The largest error against the ONNX graph with which an engine is written."""
        return MAX_RELATIVE_ERROR[precision]

    def probes(self, bundle: Bundle, name: GraphName, variant: Variant) -> list[Mapping[str, int]]:
        """One check; these engines take every size."""
        return [{}]

    def drawing_sizes(self, bundle: Bundle, variant: Variant) -> DrawingSizes:
        """One picture of the default size; these engines take every window."""
        model = bundle.manifest.model
        return DrawingSizes(1, model.default_height, model.default_width, max(WINDOWS))

    def options(self) -> dict[str, Any]:
        """What the builder was set to, for the record."""
        return dict(_OPTIONS)

    def details(self) -> dict[str, Any]:
        """Nothing comes of the bundle."""
        return {}

    def estimate(self, bundle: Bundle, variant: Variant) -> BuildEstimate:
        """One graph at a time: its weights as they are and packed; in fp16 both in fp32, since the CPU computes so.

        Measured (fp32): 474 MiB of 570 predicted for 341 MiB of weights, 4.8 of 6.0 GiB for 4.1 GiB of weights.
        """
        blobs: dict[tuple[str, int], int] = {}
        largest = 0
        for name in GRAPHS:
            own = external_sizes(bundle.file(bundle.graph(name, variant).file))
            blobs |= own
            largest = max(largest, sum(own.values()))
        copies = _COPIES[variant.precision]
        memory = (
            copies if variant.precision == "fp32" else copies + 1
        ) * largest  # other precisions are converted first
        disk = copies * (sum(blobs.values()) + largest)
        return BuildEstimate(_BASE_MEMORY_MIB + (memory >> 20), 1 + (disk >> 20))

    def compile(self, bundle: Bundle, config: EngineConfig, folder: Path, report: Report) -> dict[GraphName, str]:
        """Compile the graphs one after another; each one's own weights are pooled before the next starts."""
        files: dict[GraphName, str] = {}
        with WeightPool(folder / _POOL) as pool:
            for name in GRAPHS:
                report(f"compiling {name}")
                source = bundle.file(bundle.graph(name, config.variant).file)
                optimised = folder / f"{name}.unpooled.onnx"
                _optimise(source, optimised, config.num_threads)
                files[name] = f"{name}.{config.precision}.onnx"
                pool.absorb(optimised, folder / files[name])
                optimised.with_suffix(".bin").unlink(missing_ok=True)  # an empty one is in no graph
        return files


def _optimise(source: Path, out: Path, num_threads: int | None) -> None:
    options = session_options(num_threads)
    options.optimized_model_filepath = str(out)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", out.with_suffix(".bin").name
    )
    for key, value in _OPTIONS.items():
        options.add_session_config_entry(key, value)
    try:
        open_session(source, options)
    except RFError:
        if shutil.disk_usage(out.parent).free < sum(external_sizes(source).values()):  # the library does not tell so
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from None
        raise
