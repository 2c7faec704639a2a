"""Fills the weights of another bundle into an engine that was built to take them: seconds instead of a build.

Knows nothing of how engines are compiled. The bundle has to be of the same architecture: the library refuses tensors of
other names and shapes, and the result is compared with the bundle's graphs like any engine, before it is written. Needs
TensorRT 10 and a GPU that runs the engine.
"""

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from engines.build import describe_engine, engine_label, is_engine, require_format, verify_engine
from engines.config import EngineConfig, counted
from engines.tensorrt.builder import TensorRTBuilder
from engines.tensorrt.config import TensorRTConfig, parse_dims
from runtime.backends import create_backend, naming_extra
from runtime.backends.cuda.driver import require_gpu
from runtime.backends.cuda.tensorrt_library import Messages, TensorRTName, import_library, messages_of
from runtime.bundle.atomic import locked, write_folder
from runtime.bundle.engine import Engine, check_device, open_engine
from runtime.bundle.folder import open_bundle
from runtime.errors import RFError
from runtime.events import Progress
from runtime.signature import GRAPHS


def refit(engine: Path, bundle: Path, on_progress: Progress | None = None) -> Path:
    """Make an engine of a bundle from an engine of another one.

    Args:
        engine: The folder of an engine that was built with `weights` "refittable" or "stripped"; it stays as it is.
        bundle: A bundle of the same architecture, which gets the new engine.
        on_progress: Told before every stage.

    Returns:
        The folder of the new engine.

    Raises:
        RFError: The engine takes no weights, runs elsewhere only, is of another architecture, or does not agree with
            the bundle's graphs.
    """
    require_gpu("refit the engine on the machine that runs it")  # before any library that crashes without a driver
    source, opened = open_engine(engine), open_bundle(bundle)
    require_format(opened)
    record = source.record
    name, options = _check_refittable(source)
    backend = create_backend(name)
    check_device(source, backend.target())
    opened.verify([file for graph in GRAPHS for file in opened.graph(graph, record.variant).files], "hash")
    report = counted(on_progress, 2 * len(GRAPHS))
    started = time.monotonic()
    config = EngineConfig(backend=name, precision=record.precision, dialect=record.dialect, tensorrt=options)
    out = opened.path / "engines" / engine_label(record.target, record.variant)
    with locked(opened.path.absolute()), write_folder(out, replaceable=is_engine, force=True, what="engine") as folder:
        files = {graph: record.graphs[graph].file for graph in GRAPHS}
        with naming_extra(name):
            trt = import_library(name)
        for graph in GRAPHS:
            report(f"refitting {graph}")
            weights = opened.file(opened.graph(graph, record.variant).file)
            (folder / files[graph]).write_bytes(_refit_graph(trt, source.file(graph), weights))
        builder = TensorRTBuilder(name, options, record.dialect)
        verified = verify_engine(opened, config, builder, {graph: folder / files[graph] for graph in GRAPHS}, report)
        build = {
            **record.build,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 2),
            "options": {**builder.options(), "window": record.build["options"].get("window")},
            "refitted_from": record.bundle_id,
        }
        described = describe_engine(opened, record.variant, record.target, folder, files)
        described.replace(build=build, verified=verified, window=record.window).write(folder)
    return out


def _check_refittable(engine: Engine) -> tuple[TensorRTName, TensorRTConfig]:
    """The backend of an engine, and the options of the one that comes of it: its weights are in it."""
    backend, options = engine.record.target.backend, engine.record.build.get("options", {})
    if backend not in ("tensorrt", "tensorrt-rtx") or options.get("weights") not in ("refittable", "stripped"):
        raise RFError(
            f"The engine {engine.path} cannot take other weights. Expected one of TensorRT that was built so: "
            "rf-export build-engine BUNDLE --backend tensorrt --weights refittable."
        )
    dims = parse_dims(tuple(f"{name}={text}" for name, text in options["dims"].items()))
    capabilities = tuple(options["compute_capabilities"])
    options = {name: value for name, value in options.items() if name != "window"}  # an option of every backend
    changed = {"dims": dims, "compute_capabilities": capabilities, "weights": "refittable"}
    return cast(TensorRTName, backend), TensorRTConfig(**{**options, **changed})


def _refit_graph(trt: Any, plan: Path, source: Path) -> Any:
    if not hasattr(trt, "OnnxParserRefitter"):
        raise RFError(f"TensorRT {trt.__version__} cannot refit from ONNX. Install version 10, or build again.")
    messages = messages_of(trt)
    engine = trt.Runtime(messages.logger).deserialize_cuda_engine(plan.read_bytes())
    if engine is None or not engine.refittable:
        raise RFError(f"{plan} does not load as an engine that takes weights: {messages.last_error}. Build it again.")
    refitter = trt.Refitter(engine, messages.logger)
    parser = trt.OnnxParserRefitter(refitter, messages.logger)
    if not parser.refit_from_file(str(source)):
        raise RFError(_refusal(parser, messages, source))
    if not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()[:3])
        raise RFError(f"{source.name} lacks weights of the engine: {missing}. Use a bundle of the same architecture.")
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if hasattr(trt.SerializationFlag, "INCLUDE_REFIT"):  # 10.14: so that the new one can be refitted again
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return engine.serialize_with_config(config)


def _refusal(parser: Any, messages: Messages, source: Path) -> str:
    reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or messages.last_error
    return f"The engine does not take the weights of {source.name}: {reasons}. Use a bundle of the same architecture."
