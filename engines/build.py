"""Builds an engine: what all backends share. Knows nothing of how graphs are compiled.

A builder compiles the graphs into a folder; here the folder gets its place, its check and its `engine.json`. Every
compiled graph has to do what its ONNX graph does, on made-up inputs, or there is no engine.
"""

import hashlib
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

from engines.config import Builder, BuildEstimate, EngineConfig
from engines.probe import largest_error, probe_inputs
from runtime.atomic import write_folder
from runtime.backends import Backend, Target, create_backend
from runtime.backends.cpu import cpu_name
from runtime.bundle import Bundle, describe_file, open_bundle
from runtime.engine import ENGINE_NAME, EngineGraph, EngineRecord, open_engine, use_engine
from runtime.errors import RFError
from runtime.signature import GRAPHS, GraphName, Precision

# The same kernels on the same weights, so only the order of sums may differ.
MAX_RELATIVE_ERROR: Final = {"fp32": 1e-5, "fp16": 1e-2, "int8": 1e-2}

Progress: TypeAlias = Callable[[str, int, int], None]  # what is done next, stages done, stages in all

_log = logging.getLogger(__name__)


def _create_ort() -> Builder:
    from engines.ort import OrtBuilder

    return OrtBuilder()


_CREATORS: Final[Mapping[str, Callable[[], Builder]]] = {"ort": _create_ort}


def estimate(bundle: str | Path, config: EngineConfig) -> BuildEstimate:
    """Predict what a build needs, to be told before it starts; raises RFError as `build` does."""
    _, builder = _open_backend(config.backend)
    return builder.estimate(open_bundle(bundle), config.precision)


def build(bundle: str | Path, config: EngineConfig, on_progress: Progress | None = None) -> Path:
    """Build the engine of a bundle for this machine, or return the one that is there and fits.

    Args:
        bundle: The bundle; the engine goes into its folder `engines`.
        config: What to build.
        on_progress: Told before every stage.

    Returns:
        The folder of the engine.

    Raises:
        RFError: The bundle is damaged or has no such graphs, a library is missing, the disk is full, or the engine does
            not agree with the graphs.
    """
    opened = open_bundle(bundle)
    backend, builder = _open_backend(config.backend)
    target = backend.target()
    out = opened.path / "engines" / engine_label(target, config.precision)
    if not config.force and _is_up_to_date(out, opened, config.precision, target):
        _log.info("%s is up to date", out)
        return out
    opened.verify([file for name in GRAPHS for file in opened.graph(name, config.precision).files], "hash")
    report = _counted(on_progress)
    started = time.monotonic()
    with write_folder(out, replaceable=_is_engine, force=True, what="engine") as folder:
        files = builder.compile(opened, config, folder, report)
        errors = {}
        for name in GRAPHS:
            report(f"checking {name}")
            errors[name] = _check(opened, config, backend, name, folder / files[name])
        report("writing")
        details = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 2),
            "peak_memory_mib": peak_memory_mib(),
            "cpu": cpu_name(),
            "system": platform.platform(),
            "config": asdict(config),
            "options": builder.options(),
        }
        record = replace(
            _describe(opened, config, target, folder, files),
            build=details,
            verified={"largest_relative_error": errors},
        )
        text = json.dumps(record.to_dict(), indent=1) + "\n"
        (folder / ENGINE_NAME).write_text(text, encoding="utf-8")
    return out


def engine_label(target: Target, precision: Precision) -> str:
    """The name of an engine's folder. For people: nothing is read from it."""
    device = hashlib.sha256(target.device.encode()).hexdigest()[:8]
    return f"{target.backend}-{target.version.split()[0]}-{platform.machine()}-{device}-{precision}"


def peak_memory_mib() -> int | None:
    """The most memory that this process has had resident; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak >> 20 if sys.platform == "darwin" else peak >> 10)


def _open_backend(name: str) -> tuple[Backend, Builder]:
    backend = create_backend(name)  # says what is missing
    return backend, _CREATORS[name]()


def _counted(on_progress: Progress | None) -> Callable[[str], None]:
    """Counts the stages: a graph is compiled and checked, and the end is written."""
    total = 2 * len(GRAPHS) + 1
    steps = iter(range(total))

    def report(what: str) -> None:
        done = next(steps)
        if on_progress is not None:
            on_progress(what, done, total)

    return report


def _is_up_to_date(out: Path, bundle: Bundle, precision: Precision, target: Target) -> bool:
    try:
        use_engine(open_engine(out), bundle, precision, target, "hash")
    except RFError:
        return False
    return True


def _is_engine(folder: Path) -> bool:
    return (folder / ENGINE_NAME).is_file()


def _check(bundle: Bundle, config: EngineConfig, backend: Backend, name: GraphName, compiled: Path) -> float:
    """Run a compiled graph and its ONNX graph on the same inputs; the largest relative error."""
    inputs = probe_inputs(name, bundle.manifest.model, config.precision)
    source = bundle.file(bundle.graph(name, config.precision).file)
    expected = backend.open(source, num_threads=config.num_threads, compiled=False).run(inputs)
    actual = backend.open(compiled, num_threads=config.num_threads, compiled=True).run(inputs)
    error = largest_error(expected, actual)
    limit = MAX_RELATIVE_ERROR[config.precision]
    if not error <= limit:
        raise RFError(
            f"The compiled {name} differs from the ONNX graph: relative error {error:.2g}, expected at most {limit}. "
            "No engine was written. Run the ONNX graphs, and report this."
        )
    return error


def _describe(
    bundle: Bundle, config: EngineConfig, target: Target, folder: Path, files: Mapping[GraphName, str]
) -> EngineRecord:
    """What an engine belongs to, and what it consists of."""
    hashes = bundle.manifest.files
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return EngineRecord(
        target=target,
        precision=config.precision,
        bundle_id=bundle.manifest.bundle_id,
        graphs={
            name: EngineGraph(file=files[name], source_sha256=hashes[bundle.graph(name, config.precision).file].sha256)
            for name in GRAPHS
        },
        files={name: describe_file(folder / name) for name in names},
        build={},
        verified={},
    )
