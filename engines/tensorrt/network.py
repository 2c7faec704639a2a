"""Compiles one ONNX file with TensorRT 8.6 to 11 or TensorRT-RTX, from one code path.

Knows nothing of bundles: a file, profiles and options in, a plan out. What a version can do is asked of its API, not of
its number. Precision is in the graph, so networks are strongly typed wherever that exists (10.0); 8.6 takes the flags
FP16 and OBEY_PRECISION_CONSTRAINTS instead, and 11.0 has neither these flags nor EXPLICIT_BATCH.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engines.cancellable import Cancelled, run_cancellable
from engines.tensorrt.config import TensorRTConfig
from engines.tensorrt.profiles import Profile
from runtime.backends.cuda.tensorrt_library import Messages, messages_of
from runtime.bundle.atomic import write_file
from runtime.errors import RFError
from runtime.signature import GraphSignature, Precision

# How the library's log names the layer whose kernels it measures, in 8.6 as in 11.4.
_LAYER: Final = re.compile(r"Computing costs for (.+)|Timing Runner: (.+?) \(")
_MAX_LAYER_NAME: Final = 60

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompileJob:
    """One graph to compile."""

    source: Path
    signature: GraphSignature
    precision: Precision
    profiles: Sequence[Profile]
    config: TensorRTConfig
    timing_cache: Path | None  # TensorRT-RTX measures nothing and takes none


def compile_graph(trt: Any, job: CompileJob, on_detail: Callable[[str], None]) -> memoryview:
    """Compile a graph.

    Args:
        trt: The library.
        job: The graph, and how.
        on_detail: Told what is done, in a few words, many times a second, from another thread.

    Returns:
        The plan.

    Raises:
        RFError: The library refuses the graph or the options.
        KeyboardInterrupt: Ctrl-C; the build has stopped.
    """
    messages = messages_of(trt)
    with messages.listening(_layer_listener(on_detail)):
        return _compile(trt, job, messages, on_detail)


def _compile(trt: Any, job: CompileJob, messages: Messages, on_detail: Callable[[str], None]) -> memoryview:
    cancelled = Cancelled()
    builder = trt.Builder(messages.logger)
    network = builder.create_network(_network_flags(trt))
    _parse(trt, network, messages, job)
    config = builder.create_builder_config()
    _set_options(trt, config, job)
    for profile in job.profiles:
        config.add_optimization_profile(_make_profile(builder, job, profile))
    if hasattr(trt, "IProgressMonitor"):  # 8.6 has none: there Ctrl-C takes effect at the end of the graph
        config.progress_monitor = _make_monitor(trt, cancelled, on_detail)
    cache = _load_timing_cache(config, job.timing_cache) if job.timing_cache is not None else None
    plan = run_cancellable(lambda: builder.build_serialized_network(network, config), cancelled)
    if plan is None:
        raise RFError(
            f"TensorRT {trt.__version__} does not build {job.source.name}: "
            f"{messages.last_error or 'it gives no reason'}. Try other --dim ranges or a larger --workspace-mib; "
            f"where the reason names an operator or a scale: {_how_to_write_again(job)}"
        )
    if cache is not None and job.timing_cache is not None:
        _save_timing_cache(cache, job.timing_cache)
    return memoryview(plan)


def _network_flags(trt: Any) -> int:
    flags = trt.NetworkDefinitionCreationFlag
    # In 10.x EXPLICIT_BATCH is ignored, and gone in 11.0.
    flag = flags.STRONGLY_TYPED if hasattr(flags, "STRONGLY_TYPED") else flags.EXPLICIT_BATCH
    return 1 << int(flag)


def _parse(trt: Any, network: Any, messages: Messages, job: CompileJob) -> None:
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse_from_file(str(job.source)):  # reads the weights beside it too
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(f"node {error.node()}: {error.desc()}" for error in errors) or messages.last_error
        raise RFError(
            f"The parser of TensorRT {trt.__version__} refuses {job.source.name}: {reasons}. {_how_to_write_again(job)}"
        )
    _let_attention_decompose(trt, network)
    found = {network.get_input(i).name for i in range(network.num_inputs)}
    if found != {spec.name for spec in job.signature.inputs}:
        raise RFError(f"{job.source.name} has the inputs {sorted(found)}, not those of its signature. Export it again.")


def _how_to_write_again(job: CompileJob) -> str:
    """What to do about a graph that is not as it should be: whoever wrote it has to write it again."""
    if job.precision in ("int8", "int8-fp16"):
        return "Calibrate the bundle again: rf-export calibrate BUNDLE --prompts FILE --target tensorrt."
    return "Export the bundle again for this version."


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Allow plain kernels where there is no fused one, as for fp32: else such a graph is refused (10.14 and later)."""
    if not hasattr(trt, "IAttentionInputLayer"):
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # how the bindings spell a downcast
            layer.attention.decomposable = True


def _set_options(trt: Any, config: Any, job: CompileJob) -> None:
    options = job.config
    flags = trt.BuilderFlag
    config.clear_flag(flags.TF32)  # fp32 graphs are fp32: the default would round products to 10 bits
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
        # The runtime makes a context per kind of run: without it two contexts cannot have one profile. Later versions
        # always allow that.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        if job.precision != "fp32":
            config.set_flag(flags.FP16)
        if job.precision in ("int8", "int8-fp16"):
            config.set_flag(flags.INT8)
    # TensorRT-RTX: without it a stream cannot be captured; weights that are streamed are allocated at run time.
    if hasattr(flags, "REQUIRE_USER_ALLOCATION") and not options.weight_streaming:
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)
    if options.version_compatible:
        config.set_flag(_require(flags, "VERSION_COMPATIBLE", "--version-compatible", trt))
    if options.weight_streaming:
        config.set_flag(_require(flags, "WEIGHT_STREAMING", "--weight-streaming", trt))
    if options.weights != "fixed":
        config.set_flag(flags.REFIT)
    if options.weights == "stripped":
        config.set_flag(_require(flags, "STRIP_PLAN", "--weights stripped", trt))
    if options.hardware_compatibility != "none":
        level = options.hardware_compatibility.upper()
        config.hardware_compatibility_level = _require(
            trt.HardwareCompatibilityLevel, level, "--hardware-compatibility", trt
        )
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, options.profiling_verbosity.upper())
    _set_capabilities(trt, config, options)


def _set_capabilities(trt: Any, config: Any, options: TensorRTConfig) -> None:
    if not options.compute_capabilities:
        return
    config.num_compute_capabilities = len(options.compute_capabilities)
    for index, capability in enumerate(options.compute_capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, capability_name(capability)), index)


def capability_name(capability: str) -> str:
    """The library's name of a compute capability: "SM86" for "8.6"."""
    return "SM" + capability.replace(".", "")


def _require(enum: Any, name: str, option: str, trt: Any) -> Any:
    """A member of an enumeration that not every version has."""
    if hasattr(enum, name):
        return getattr(enum, name)
    raise RFError(f"{option} needs a newer TensorRT than {trt.__version__}. Leave it out, or install a newer version.")


def _make_profile(builder: Any, job: CompileJob, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for spec in job.signature.inputs:
        if not any(isinstance(dim, str) for dim in spec.shape):
            continue
        shapes = [
            tuple(getattr(profile[dim], end) if isinstance(dim, str) else dim for dim in spec.shape)
            for end in ("min", "opt", "max")
        ]
        made.set_shape(spec.name, *shapes)
    return made


def _layer_listener(on_detail: Callable[[str], None]) -> Callable[[str], None]:
    def listen(text: str) -> None:
        match = _LAYER.search(text)
        if match is not None:
            on_detail(f"timing {(match[1] or match[2])[:_MAX_LAYER_NAME]}")

    return listen


def _make_monitor(trt: Any, cancelled: Cancelled, on_detail: Callable[[str], None]) -> Any:
    """Tells of the phases of a build, and stops it when it was cancelled."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.num_steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.num_steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self.num_steps.get(phase_name, 0)
            if total > 1:
                on_detail(f"{phase_name.lower()} {step + 1}/{total}")
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _load_timing_cache(config: Any, path: Path) -> Any:
    data = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(data)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache
    _log.warning("%s is of another GPU or version: timing starts anew, and the file is replaced", path)
    cache = config.create_timing_cache(b"")
    return cache if config.set_timing_cache(cache, ignore_mismatch=False) else None


def _save_timing_cache(cache: Any, path: Path) -> None:
    """Replace the file at once: a killed build leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_file(path) as partial:
        partial.write_bytes(cache.serialize())
