"""Builds an engine: what all backends share. Knows nothing of how graphs are compiled.

A builder compiles the graphs into a folder; here the folder gets its place, its check and its `engine.json`. Every
compiled graph has to do what its ONNX graph does, on made-up inputs, or there is no engine.
"""

import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from engines.config import Builder, BuildEstimate, EngineConfig, Report, counted
from engines.probe import largest_error, probe_inputs
from engines.tensorrt.config import require_defaults
from engines.windows import Windows, measure_windows
from runtime.backends import BACKENDS, create_backend, naming_extra
from runtime.backends.cuda.tensorrt_library import TensorRTName
from runtime.backends.host.machine import cpu_name, process_memory
from runtime.backends.interface import Backend, Target
from runtime.bundle.atomic import locked, write_folder
from runtime.bundle.engine import ENGINE_NAME, EngineGraph, EngineRecord, check_engine, open_engine
from runtime.bundle.folder import Bundle, describe_file, open_bundle
from runtime.bundle.manifest import FORMAT_VERSION
from runtime.bundle.verdict import engine_verdict, require_verified
from runtime.errors import RFError
from runtime.events import Progress
from runtime.signature import GRAPHS, GraphName, Variant

_log = logging.getLogger(__name__)


def _create_ort(config: EngineConfig) -> Builder:
    from engines.ort import OrtBuilder

    require_defaults(config.tensorrt, config.backend)
    if config.dialect != "classic":
        raise RFError(
            f"Engines of ONNX Runtime are built from classic graphs, and {config.dialect} was asked for. "
            "Use classic, or draw with the ONNX graphs: rf-export generate --dialect modern."
        )
    return OrtBuilder(allow_spinning=config.allow_spinning)


def _create_tensorrt(config: EngineConfig) -> Builder:
    from engines.tensorrt.builder import TensorRTBuilder

    if not config.allow_spinning:
        raise RFError(f"Threads are kept from spinning with the backend ort alone, and {config.backend} was asked for.")
    name: TensorRTName = "tensorrt-rtx" if config.backend == "tensorrt-rtx" else "tensorrt"
    return TensorRTBuilder(name, config.tensorrt, config.dialect)


_CREATORS: Final[Mapping[str, Callable[[EngineConfig], Builder]]] = {
    "ort": _create_ort,
    "tensorrt": _create_tensorrt,
    "tensorrt-rtx": _create_tensorrt,
}


def estimate(bundle: str | Path, config: EngineConfig) -> BuildEstimate:
    """Predict what a build needs, to be told before it starts; raises RFError as `build` does."""
    return create_builder(config).estimate(open_bundle(bundle), config.variant)


@dataclass(frozen=True)
class Built:
    """The folder of an engine, and whether it was built now or was there already."""

    path: Path
    is_new: bool


def build(bundle: str | Path, config: EngineConfig, on_progress: Progress | None = None) -> Path:
    """The folder of an engine that `build_or_keep` builds or finds."""
    return build_or_keep(bundle, config, on_progress).path


def build_or_keep(bundle: str | Path, config: EngineConfig, on_progress: Progress | None = None) -> Built:
    """Build the engine of a bundle, or return the one that is there, with the same options.

    Args:
        bundle: The bundle; the engine goes into its folder `engines`, unless the config names another one.
        config: What to build.
        on_progress: Told before every stage, and within one as often as there is something new.

    Returns:
        The engine. Where no device of this machine runs it, nothing has verified it, and its record says so.

    Raises:
        RFError: The bundle is damaged or has no such graphs, or they are not verified; a library is missing, the disk
            is full, or the engine does not agree with the graphs.
    """
    # While a calibration replaces the bundle nobody may write into the old one; and two builds would share the memory.
    with locked(Path(bundle).resolve()):
        return _build(open_bundle(bundle), config, on_progress)


def _build(opened: Bundle, config: EngineConfig, on_progress: Progress | None) -> Built:
    require_format(opened)
    builder = create_builder(config)
    target, options = builder.target(), {**builder.options(), "window": config.window}
    out = config.output or opened.path / "engines" / engine_label(target, config.variant)
    if not config.force and _is_up_to_date(out, opened, config, target, options):
        _log.info("%s is up to date", out)
        return Built(out, is_new=False)
    if config.output is None:
        _require_writable(opened.path)
    entries = [opened.graph(name, config.variant) for name in GRAPHS]
    require_verified(opened, config.variant, allow_unverified=config.allow_unverified)
    opened.verify([file for entry in entries for file in entry.files], "hash")
    # A graph is compiled and checked, windows are measured where none was asked for, and the end is written.
    report = counted(on_progress, 2 * len(GRAPHS) + 1 + (config.window is None))
    started = time.monotonic()
    with write_folder(out, replaceable=is_engine, force=True, what="engine") as folder:
        files = builder.compile(opened, config, folder, report)
        compiled = {name: folder / files[name] for name in GRAPHS}
        verified = verify_engine(opened, config, builder, compiled, report)
        windows = _measure_windows(opened, config, builder, compiled, report) if config.window is None else None
        report("writing")
        memory = process_memory()
        details = {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 2),
            "peak_memory_mib": memory and memory.peak_mib,
            "cpu": cpu_name(),
            "system": platform.platform(),
            "predicted_memory_mib": builder.estimate(opened, config.variant).memory_mib,
            "num_threads": config.num_threads,
            "options": options,
            "windows": None if windows is None else windows.to_dict(),
            **builder.details(),
        }
        described = describe_engine(opened, config.variant, target, folder, files)
        window = config.window or (1 if windows is None else windows.best)
        described.replace(build=details, verified=verified, window=window).write(folder)
    return Built(out, is_new=True)


def _measure_windows(
    bundle: Bundle, config: EngineConfig, builder: Builder, compiled: Mapping[GraphName, Path], report: Report
) -> Windows | None:
    """Nothing where no device of this machine runs the engine."""
    backend = builder.backend()
    if backend is None:
        return None
    report("measuring windows")
    names: tuple[GraphName, ...] = ("text_decoder", "rep_decoder")
    sessions = {name: backend.open(compiled[name], num_threads=config.num_threads, compiled=True) for name in names}
    sizes = builder.drawing_sizes(bundle, config.variant)
    return measure_windows(bundle.manifest, config.variant, backend, sessions, sizes)


def require_format(bundle: Bundle) -> None:
    """Refuse a bundle whose graphs have other inputs than those of today; raises RFError."""
    found = bundle.manifest.format_version
    if found != FORMAT_VERSION:
        raise RFError(
            f"{bundle.path} is in format {found}, and engines are built of bundles in format {FORMAT_VERSION}. Export "
            "it again; its ONNX graphs draw as they are.",
            "mismatch",
        )


def _require_writable(bundle: Path) -> None:
    """Refuse a build into a bundle of which nothing could be kept; raises RFError."""
    engines = bundle / "engines"
    if not os.access(engines if engines.is_dir() else bundle, os.W_OK):
        raise RFError(
            f"Nothing can be written into {bundle}, and its engines are kept there. Give the engine a folder of its "
            f"own: rf-export build-engine {bundle} --output DIR, and draw with --engine DIR."
        )


def engine_label(target: Target, variant: Variant) -> str:
    """The name of an engine's folder. For people: nothing is read from it."""
    device = hashlib.sha256(target.device.encode()).hexdigest()[:8]
    return f"{target.backend}-{target.version.split()[0]}-{platform.machine()}-{device}-{variant.key.replace('.', '-')}"


def create_builder(config: EngineConfig) -> Builder:
    """Import a builder with its library.

    Raises:
        RFError: There is none of that name, its library is not installed, or the options are of another one.
    """
    if config.backend not in _CREATORS:
        if config.backend in BACKENDS:
            raise RFError(f"The backend {config.backend} runs the ONNX graphs as they are: there is nothing to build.")
        raise RFError(f"There is no backend {config.backend!r}. Choose one of: {', '.join(_CREATORS)}.")
    with naming_extra(config.backend):
        return _CREATORS[config.backend](config)


def _is_up_to_date(out: Path, bundle: Bundle, config: EngineConfig, target: Target, options: Mapping[str, Any]) -> bool:
    try:
        engine = open_engine(out)
        check_engine(engine, bundle, config.variant, target, "hash")
    except RFError:
        return False
    if engine_verdict(engine)[0] == "failed":
        return False
    return engine.record.target == target and engine.record.build.get("options") == options


def is_engine(folder: Path) -> bool:
    """Whether a folder is an engine, which a build may replace."""
    return (folder / ENGINE_NAME).is_file()


def verify_engine(
    bundle: Bundle, config: EngineConfig, builder: Builder, compiled: Mapping[GraphName, Path], report: Report
) -> dict[str, Any]:
    """Compare every compiled graph with its ONNX graph; nothing where no device of this machine runs it."""
    backend = builder.backend()
    if backend is None:
        _log.warning("Nothing verified this engine: no device of this machine runs it as it is.")
        return {}
    errors = {}
    for name, path in compiled.items():
        report(f"checking {name}")
        errors[name] = _check(bundle, config, builder, backend, name, path)
    return {"largest_relative_error": errors}


def _check(
    bundle: Bundle, config: EngineConfig, builder: Builder, backend: Backend, name: GraphName, compiled: Path
) -> float:
    """Run a compiled graph and its ONNX graph on the same inputs; the largest relative error."""
    entry = bundle.graph(name, config.variant)
    source = bundle.file(entry.file)
    # ONNX Runtime on the CPU is the reference of every backend.
    reference = create_backend("ort").open(source, num_threads=config.num_threads, compiled=False)
    session = backend.open(compiled, num_threads=config.num_threads, compiled=True)
    error = 0.0
    for sizes in builder.probes(bundle, name, config.variant):
        inputs = probe_inputs(entry.signature, bundle.manifest.model, sizes)
        error = max(error, largest_error(reference.run(inputs), session.run(inputs)))
    limit = builder.max_relative_error(config.precision)
    if not error <= limit:
        raise RFError(
            f"The compiled {name} differs from the ONNX graph: relative error {error:.2g}, expected at most {limit}. "
            "No engine was written. Run the ONNX graphs, and report this."
        )
    return error


def describe_engine(
    bundle: Bundle, variant: Variant, target: Target, folder: Path, files: Mapping[GraphName, str]
) -> EngineRecord:
    """What an engine belongs to, and what it consists of."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return EngineRecord(
        target=target,
        precision=variant.precision,
        dialect=variant.dialect,
        bundle_id=bundle.manifest.bundle_id,
        graphs={
            name: EngineGraph(file=files[name], source_sha256=bundle.graph_sha256(name, variant)) for name in GRAPHS
        },
        files={name: describe_file(folder / name) for name in names},
        build={},
        verified={},
    )
