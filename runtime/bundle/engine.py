"""A compiled engine of a bundle: what `engine.json` says, and whether it may run here.

Knows nothing of how an engine is made: see engines/. An engine belongs to the bundle that it was built from
and to the target that it was built on, and is refused elsewhere with one sentence that says what to run.

    bundle/engines/<label>/
      engine.json       what `EngineRecord` holds
      ...               the files that it names
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from runtime.backends.interface import Target
from runtime.bundle.atomic import is_temporary
from runtime.bundle.compatibility import device_fits, version_fits
from runtime.bundle.folder import Bundle, Verify, check_files
from runtime.bundle.manifest import FileEntry, check_table
from runtime.bundle.strict_json import Record, read_as, read_document, read_json, seal
from runtime.errors import RFError
from runtime.signature import GRAPHS, Dialect, GraphName, Positive, Precision, Variant

FORMAT: Final = "rf-export-engine"
FORMAT_VERSION: Final = 2
ENGINE_NAME: Final = "engine.json"

_log = logging.getLogger(__name__)


class EngineGraph(Record, frozen=True, kw_only=True):
    """A compiled graph: its file, and `Bundle.graph_sha256` of what it was made from."""

    file: str
    source_sha256: str


class EngineRecord(Record, frozen=True, kw_only=True):
    """The content of `engine.json`."""

    target: Target
    precision: Precision
    dialect: Dialect = "classic"  # engines of before there was a choice do not say it
    bundle_id: str
    graphs: dict[GraphName, EngineGraph]
    files: dict[str, FileEntry]
    window: Positive = 1  # representation tokens of a pass, measured best where it was built
    build: dict[str, Any]  # options, seconds, peak memory, names for people
    verified: dict[str, Any]  # per graph: largest relative error against the ONNX graph

    def __post_init__(self) -> None:
        for name in GRAPHS:
            if name not in self.graphs:
                raise ValueError(f"graph {name!r} is missing")
        check_table(self.files, [graph.file for graph in self.graphs.values()])

    @property
    def variant(self) -> Variant:
        """The graphs that it was built from."""
        return Variant(self.precision, self.dialect)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `from_dict` reads it back."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **super().to_dict()}

    def text(self) -> str:
        """What `engine.json` holds: the object with its checksum."""
        return json.dumps(seal(self.to_dict()), indent=1) + "\n"

    def write(self, folder: Path) -> None:
        """Write `engine.json`, the last file of an engine."""
        (folder / ENGINE_NAME).write_text(self.text(), encoding="utf-8")

    @classmethod
    def from_dict(cls, content: Any, where: str) -> "EngineRecord":
        """Check and read a JSON object; raises RFError."""
        return read_as(cls, read_document(content, where, FORMAT, FORMAT_VERSION, "Build the engine"), where)


@dataclass(frozen=True)
class Engine:
    """An opened engine: its folder and its record."""

    path: Path
    record: EngineRecord

    def file(self, graph: GraphName) -> Path:
        """Where a compiled graph lies."""
        return self.path / self.record.graphs[graph].file


def open_engine(path: Path) -> Engine:
    """Read an engine; raises RFError where there is none."""
    return Engine(path, EngineRecord.from_dict(read_json(path / ENGINE_NAME), str(path / ENGINE_NAME)))


def check_engine(engine: Engine, bundle: Bundle, variant: Variant, target: Target, verify: Verify) -> None:
    """Make sure that an engine may run: see runtime/bundle/compatibility.py.

    Args:
        engine: The engine.
        bundle: The bundle that is to be run.
        variant: The graphs that are wanted.
        target: Where it is to run.
        verify: As in `Bundle.verify`, for the files of the engine.

    Raises:
        RFError: It belongs to something else, or is damaged.
    """
    command = _build_command(bundle, target, variant)
    reason = _mismatch(engine.record, variant, target) or _foreign(engine.record, bundle)
    if reason:
        raise RFError(f"The engine {engine.path} {reason}. Run: {command}", "mismatch")
    try:
        check_files(engine.path, engine.record.files, verify)
    except RFError as error:
        raise RFError(f"The engine is damaged: {error} Build it again: {command}", "damaged") from error


def runs_on(engine: Engine, target: Target) -> bool:
    """Whether a device runs an engine, of whatever bundle."""
    return not _mismatch(engine.record, engine.record.variant, target)


def check_device(engine: Engine, target: Target) -> None:
    """Make sure that a device runs an engine, of whatever bundle; raises RFError."""
    reason = _mismatch(engine.record, engine.record.variant, target)
    if reason:
        raise RFError(f"The engine {engine.path} {reason}. Build one on this machine.", "mismatch")


def require_weights(engine: Engine, bundle: Bundle) -> None:
    """Refuse an engine that was built without weights; raises RFError."""
    options = engine.record.build.get("options")
    if isinstance(options, dict) and options.get("weights") == "stripped":
        raise RFError(
            f"The engine {engine.path} has no weights yet. Fill them in: "
            f"rf-export refit-engine {engine.path} {bundle.path}",
            "mismatch",
        )


def find_engine(
    bundle: Bundle, variant: Variant, target: Target, verify: Verify, *, required: bool = False
) -> Engine | None:
    """The engine of a bundle that fits, checked, or None.

    Engines of other targets, precisions and dialects are passed over; where all are of this backend and precision and
    none fits, a warning says how to build one. With `required` it is an error.

    Raises:
        RFError: The engine that fits is damaged, or was copied from another bundle; or there is none, and it is
            required.
    """
    passed_over = ""
    for path in sorted((bundle.path / "engines").glob(f"*/{ENGINE_NAME}")):
        if is_temporary(path.parent):
            continue
        try:
            engine = open_engine(path.parent)
        except RFError as error:
            _log.warning("An engine is passed over: %s", error)
            continue
        if (engine.record.variant, engine.record.target.backend) != (variant, target.backend):
            continue
        reason = _mismatch(engine.record, variant, target)
        if not reason:
            check_engine(engine, bundle, variant, target, verify)
            require_weights(engine, bundle)
            return engine
        passed_over = f"The engine {engine.path} {reason}"
    command = _build_command(bundle, target, variant)
    if required:
        what = (
            passed_over
            or f"{bundle.path} has no engine of the backend {target.backend} in {variant.key.replace('.', ' ')}"
        )
        raise RFError(f"{what}, and {target.backend} runs engines only. Run: {command}", "mismatch")
    if passed_over:
        _log.warning("%s: the ONNX graphs are used instead. For the faster engine run: %s", passed_over, command)
    return None


def _mismatch(record: EngineRecord, variant: Variant, target: Target) -> str:
    if record.target.backend != target.backend:
        return f"is of the backend {record.target.backend}, and {target.backend} was asked for"
    if record.precision != variant.precision:
        return f"is in {record.precision}, and {variant.precision} was asked for"
    if record.dialect != variant.dialect:
        return f"was built from {record.dialect} graphs, and {variant.dialect} was asked for"
    if not version_fits(record.target, target):
        return f"was built with {target.backend} {record.target.version}, and {target.version} is installed"
    if not device_fits(record.target, target):
        return f"was built on another device ({_difference(record.target.device, target.device)})"
    return ""


def _foreign(record: EngineRecord, bundle: Bundle) -> str:
    """Graphs count, not the bundle's id: a bundle that gets more graphs keeps the engines of those that it had."""
    for name, graph in record.graphs.items():
        if graph.source_sha256 != bundle.graph_sha256(name, record.variant):
            ids = f"bundle {record.bundle_id}, and this is bundle {bundle.manifest.bundle_id}"
            return f"was built from another {name}: from {ids}"
    return ""


def _difference(built: str, here: str) -> str:
    features, others = set(built.split()) - {"|"}, set(here.split())
    parts = [f"has {' '.join(sorted(features - others))}"] if features - others else []
    parts += [f"lacks {' '.join(sorted(others - features))}"] if others - features else []
    return ", ".join(parts)


def _build_command(bundle: Bundle, target: Target, variant: Variant) -> str:
    return f"rf-export build-engine {bundle.path} --backend {target.backend}{variant.options}"
