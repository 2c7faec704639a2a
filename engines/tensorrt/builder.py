"""Builds engines for TensorRT, on the GPU that runs them, and for TensorRT-RTX, also ahead of time without any GPU.

Knows nothing of how a graph is compiled: tensorrt_network.py. TensorRT measures kernels on the GPU at hand, so its
engines belong to one version and compute capability, unless they are built to be compatible. TensorRT-RTX compiles for
the compute capabilities that it is told and finishes on the user's PC, so a build server without a GPU can make engines
for RTX 30, 40 and 50 in one file. Such an engine was run by nobody: its record says that nothing verified it.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from engines.config import BuildEstimate, EngineConfig, Report
from engines.external_data import external_sizes
from engines.tensorrt.config import TensorRTConfig
from engines.tensorrt.network import CompileJob, capability_name, compile_graph
from engines.tensorrt.profiles import Profile, probe_sizes, profiles, resolve_dims
from engines.windows import DrawingSizes
from runtime.backends import create_backend
from runtime.backends.cuda.driver import Gpu, device_of, probe_gpu, require_gpu
from runtime.backends.cuda.tensorrt_library import TensorRTName, import_library
from runtime.backends.interface import Backend, Target
from runtime.bundle.compatibility import any_device, from_capability, from_version
from runtime.bundle.folder import Bundle
from runtime.errors import RFError
from runtime.signature import GRAPHS, Dialect, GraphName, Precision, Variant

# Other kernels in another order: fp16 sums have 10 bits, and a model adds some hundred of them in every layer.
MAX_RELATIVE_ERROR: Final[dict[Precision, float]] = {"fp32": 1e-3, "fp16": 5e-2, "int8": 5e-2, "int8-fp16": 5e-2}
# Measured with TensorRT-RTX 1.7.1 for one GPU: 361 MiB at the most for graphs of 9 MiB, 981 MiB for graphs of 197 MiB,
# of which a fifth are pages of the weights file. The libraries and CUDA take more with TensorRT: not measured yet.
_BASE_MEMORY_MIB: Final[dict[TensorRTName, int]] = {"tensorrt": 2000, "tensorrt-rtx": 350}
_COPIES: Final = 4  # of the weights of one graph, while it is built
_KERNELS_MIB: Final = 8  # measured: 37 MiB in all of the reference's seven profiles for three GPUs
_AMPERE: Final = "8.0"


class TensorRTBuilder:
    """See `engines.config.Builder`."""

    def __init__(self, name: TensorRTName, config: TensorRTConfig, dialect: Dialect = "classic") -> None:
        """Raises RFError where the options ask for what this machine or version cannot do."""
        self._name = name
        self._config = config
        self._dialect: Dialect = dialect
        self._trt = import_library(name)
        if dialect == "modern" and not hasattr(self._trt.ICudaEngine, "get_aliased_input_tensor"):
            raise RFError(
                f"TensorRT {self._trt.__version__} does not write a cache in place, as modern graphs do: version 10.15 "
                "does. Build from classic graphs: leave out --dialect modern."
            )
        self._gpu = self._find_gpu()
        self._details: dict[str, Any] = {}

    def target(self) -> Target:
        """The version and the devices that the engine will run on, as `runtime.bundle.compatibility` reads them."""
        version = str(self._trt.__version__)
        if self._config.version_compatible:
            version = from_version(version)
        if self._config.compute_capabilities:
            return Target(self._name, version, any_device(map(device_of, self._config.compute_capabilities)))
        assert self._gpu is not None
        if self._config.hardware_compatibility == "ampere_plus":
            return Target(self._name, version, from_capability(device_of(_AMPERE)))
        return Target(self._name, version, self._gpu.device)

    def backend(self) -> Backend | None:
        """What runs the engine here; None where no GPU can."""
        runs_here = self._gpu is not None and (
            not self._config.compute_capabilities or self._gpu.compute_capability in self._config.compute_capabilities
        )
        return create_backend(self._name) if runs_here and self._config.weights != "stripped" else None

    def max_relative_error(self, precision: Precision) -> float:
        """The largest error against the ONNX graph with which an engine is written."""
        return MAX_RELATIVE_ERROR[precision]

    def probes(self, bundle: Bundle, name: GraphName, variant: Variant) -> list[Mapping[str, int]]:
        """Sizes on which a graph is checked: some inside every profile."""
        return [sizes for profile in self._profiles(bundle, name, variant) for sizes in probe_sizes(profile)]

    def drawing_sizes(self, bundle: Bundle, variant: Variant) -> DrawingSizes:
        """The sizes that kernels are chosen for, and the longest window of the profiles."""
        dims = resolve_dims(bundle.manifest.model, self._config.dims, self._cache_slots(bundle, variant))
        return DrawingSizes(dims["batch"].opt, dims["height"].opt, dims["width"].opt, dims["window"].max)

    def options(self) -> dict[str, Any]:
        """What the builder was set to, for the record."""
        options = asdict(self._config)
        options["dims"] = {name: str(range_) for name, range_ in self._config.dims.items()}
        options["compute_capabilities"] = list(self._config.compute_capabilities)
        return options

    def details(self) -> dict[str, Any]:
        """What came of the options for this bundle and machine, for the record."""
        return dict(self._details)

    def estimate(self, bundle: Bundle, variant: Variant) -> BuildEstimate:
        """One graph at a time; every plan holds all weights of its graph."""
        files = [bundle.file(bundle.graph(name, variant).file) for name in GRAPHS]
        sizes = [sum(external_sizes(file).values()) for file in files]
        memory = _BASE_MEMORY_MIB[self._name] + (_COPIES * max(sizes) >> 20)
        kernels = _KERNELS_MIB * (4 + len(self._config.compute_capabilities))
        return BuildEstimate(memory, kernels + (int(1.1 * sum(sizes)) >> 20))

    def compile(self, bundle: Bundle, config: EngineConfig, folder: Path, report: Report) -> dict[GraphName, str]:
        """Compile the graphs one after another."""
        cache = self._timing_cache(bundle, config)
        slots = self._cache_slots(bundle, config.variant)
        dims = resolve_dims(bundle.manifest.model, self._config.dims, slots)
        self._details = {
            "dims": {name: str(range_) for name, range_ in dims.items()},
            "cache_slots": slots,
            "profiles": {name: _texts(self._profiles(bundle, name, config.variant)) for name in GRAPHS},
            "timing_cache": cache.name if cache is not None else None,
            "gpu": asdict(self._gpu) if self._gpu is not None else None,
        }
        files: dict[GraphName, str] = {}
        for name in GRAPHS:
            report(f"compiling {name}")
            entry = bundle.graph(name, config.variant)
            job = CompileJob(
                source=bundle.file(entry.file),
                signature=entry.signature,
                precision=config.precision,
                profiles=self._profiles(bundle, name, config.variant),
                config=self._config,
                timing_cache=cache,
            )
            files[name] = f"{name}.{config.precision}.engine"
            tell = functools.partial(_tell, report, name)
            # Not held in a variable: the next graph would be built with the last one's plan in memory.
            (folder / files[name]).write_bytes(compile_graph(self._trt, job, tell))
        return files

    def _find_gpu(self) -> Gpu | None:
        capabilities = self._config.compute_capabilities
        if not capabilities:
            return require_gpu(
                "to compile for an RTX card on this machine use --backend tensorrt-rtx --compute-capability 8.9, and "
                "to draw without a GPU use --backend ort"
            )
        if self._name != "tensorrt-rtx":
            raise RFError(
                "TensorRT builds for the GPU that it runs on, and --compute-capability was given. Build on the target, "
                "or use --backend tensorrt-rtx for RTX cards."
            )
        known = self._trt.ComputeCapability.__members__
        for capability in capabilities:
            if capability_name(capability) not in known:
                names = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in known if name.startswith("SM"))
                raise RFError(
                    f"TensorRT-RTX {self._trt.__version__} cannot compile for compute capability {capability}; "
                    f"it can for {names}. For other GPUs use --backend tensorrt on the target."
                )
        found = probe_gpu()
        if isinstance(found, Gpu):
            return found
        if self._config.weights != "fixed":
            # 1.7.1: its compiler loads a kernel, and fails with "graph_jit.cpp: CHECK(status == CUDA_SUCCESS)".
            raise RFError(
                f"TensorRT-RTX compiles engines with {self._config.weights} weights on a machine with a GPU only: "
                f"{found}. Leave out --weights, or build on such a machine."
            )
        return None

    def _profiles(self, bundle: Bundle, name: GraphName, variant: Variant) -> list[Profile]:
        model, slots = bundle.manifest.model, self._cache_slots(bundle, variant)
        return profiles(name, model, variant.precision, resolve_dims(model, self._config.dims, slots), slots)

    def _cache_slots(self, bundle: Bundle, variant: Variant) -> int | None:
        """Slots of the cache of modern graphs, which TensorRT wants fixed; None in the classic dialect."""
        if variant.dialect == "classic":
            return None
        slots = bundle.graph("rep_decoder", variant).signature.cache_slots
        if slots is None:
            raise RFError(
                f"The modern graphs of {bundle.path} have a cache of free length, and TensorRT writes in place into "
                "one of fixed length only. Export them with --cache-slots, or with --target tensorrt-rtx."
            )
        return slots

    def _timing_cache(self, bundle: Bundle, config: EngineConfig) -> Path | None:
        """Where timings are kept: they belong to a version and a GPU. TensorRT-RTX measures nothing."""
        if self._name == "tensorrt-rtx":
            return None
        if self._config.timing_cache is not None:
            return Path(self._config.timing_cache)
        if config.output is not None:  # the bundle may be read-only
            return None
        assert self._gpu is not None
        key = f"{self._name}-{self._trt.__version__}-{self._gpu.device}-{self._gpu.name}.cache"
        return bundle.path / "engines" / "timing" / re.sub(r"[^\w.]+", "-", key)


def _tell(report: Report, name: GraphName, text: str) -> None:
    report(f"compiling {name}: {text}", detail=True)


def _texts(profiles: list[Profile]) -> list[dict[str, str]]:
    return [{name: str(range_) for name, range_ in profile.items()} for profile in profiles]
