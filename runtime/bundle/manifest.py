"""The content of `manifest.json`: what a bundle holds, and the only truth about it.

Knows nothing of the file system: JSON objects in, frozen dataclasses out, and back. A manifest that was
read is valid: every key is known and of its type, every file that is named is in the table of files, every
graph has the signature that its model gives it.
"""

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Final, cast

from runtime.bundle.strict_json import Section, seal
from runtime.errors import RFError
from runtime.signature import (
    DIALECTS,
    GRAPHS,
    PRECISIONS,
    Dialect,
    GraphName,
    GraphSignature,
    ModelSpec,
    Precision,
    TensorSpec,
    check_signature,
)

FORMAT: Final = "rf-export-bundle"
FORMAT_VERSION: Final = 2  # in 1 there was no vision_encoder
MANIFEST_NAME: Final = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Hash and size in bytes of a file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """How a picture is drawn where the caller does not say otherwise, and the shift of the timesteps."""

    num_steps: int
    rep_guidance_scale: float
    pix_guidance_scale: float
    temperature: float
    top_k: int
    shift: float
    shift_base_patches: int

    def __post_init__(self) -> None:
        if min(self.num_steps, self.top_k, self.shift_base_patches) < 1:
            raise ValueError("num_steps, top_k and shift_base_patches must be >= 1")
        if self.temperature < 0 or self.shift <= 0:
            raise ValueError("temperature must be >= 0 and shift > 0")


@dataclass(frozen=True, kw_only=True)
class UnderstandingDefaults:
    """The ids around a question and its answer, and how many tokens an answer has at the most."""

    start_id: int  # between images and question
    stop_ids: tuple[int, ...]  # the end of an answer
    max_tokens: int

    def __post_init__(self) -> None:
        if not self.stop_ids or min(self.start_id, *self.stop_ids) < 0 or self.max_tokens < 1:
            raise ValueError("understanding needs ids >= 0, one stop_id at least, and max_tokens >= 1")

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {**asdict(self), "stop_ids": list(self.stop_ids)}


@dataclass(frozen=True, kw_only=True)
class GraphEntry:
    """One ONNX file. Paths are relative to the bundle, with forward slashes."""

    name: GraphName
    precision: Precision
    dialect: Dialect
    opset: int
    file: str
    weights: tuple[str, ...]  # the external-data files that it reads
    signature: GraphSignature
    lint: tuple[str, ...] = ()  # the targets that would take the graph, as rf_export/lint/rules.py told at the export

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that has to be there to run the graph."""
        return (self.file, *self.weights)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`. `verified` has verdicts, see runtime/bundle/verdict.py."""

    created_by: dict[str, str]
    checkpoint: dict[str, str]
    model: ModelSpec
    sampling: SamplingDefaults
    tokenizer: str  # path of tokenizer.json
    graphs: tuple[GraphEntry, ...]
    files: dict[str, FileEntry]
    verified: dict[str, Any] = field(default_factory=dict)
    understanding: UnderstandingDefaults | None = None  # None where the model answers no questions

    def __post_init__(self) -> None:
        names = [name for graph in self.graphs for name in graph.files] + [self.tokenizer]
        for name in names:
            if name not in self.files:
                raise ValueError(f"{name!r} is not in the table of files")
        keys = [(graph.name, graph.precision, graph.dialect) for graph in self.graphs]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"graph {' '.join(key)} is there twice")
        for precision, dialect in sorted({key[1:] for key in keys}):
            graphs = [graph for graph in self.graphs_of(precision, dialect) if graph.name != "vision_encoder"]
            lengths = {graph.signature.cache_slots for graph in graphs}
            if len(lengths) > 1:
                raise ValueError(f"the {precision} {dialect} graphs have caches of different lengths")
        if self.sampling.top_k > self.model.max_top_k:
            raise ValueError(f"top_k must be at most {self.model.max_top_k}, got {self.sampling.top_k}")
        if self.understanding:
            largest = max(self.understanding.start_id, *self.understanding.stop_ids)
            if largest >= self.model.vocab_size:
                raise ValueError(f"understanding has id {largest}, and the model knows {self.model.vocab_size}")

    @property
    def bundle_id(self) -> str:
        """Names the content of the bundle: two bundles with the same files have the same id."""
        return compute_bundle_id(self.files)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions of which every graph is there, in some dialect."""
        return tuple(
            precision
            for precision in PRECISIONS
            if any({graph.name for graph in self.graphs_of(precision, dialect)} == set(GRAPHS) for dialect in DIALECTS)
        )

    def graphs_of(self, precision: Precision, dialect: Dialect) -> list[GraphEntry]:
        """The graphs of a precision in a dialect."""
        return [graph for graph in self.graphs if (graph.precision, graph.dialect) == (precision, dialect)]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `from_dict` reads it back."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "bundle_id": self.bundle_id,
            "created_by": self.created_by,
            "checkpoint": self.checkpoint,
            "model": {name: value for name, value in asdict(self.model).items() if value is not None},
            "sampling": asdict(self.sampling),
            **({"understanding": self.understanding.to_dict()} if self.understanding else {}),
            "tokenizer": {"file": self.tokenizer},
            "graphs": [_graph_to_dict(graph) for graph in self.graphs],
            "files": {name: asdict(entry) for name, entry in sorted(self.files.items())},
            "verified": self.verified,
        }

    @classmethod
    def from_dict(cls, content: Any, where: str) -> "Manifest":
        """Check and read a JSON object.

        Args:
            content: What `json.load` gave.
            where: Name of the file for messages.

        Raises:
            RFError: Says what is wrong, and where.
        """
        top = Section(content, where)
        _check_format(top)
        top.check_seal()
        bundle_id = top.string("bundle_id")
        model = _read_model(top.section("model"))
        try:
            manifest = cls(
                created_by=top.strings("created_by"),
                checkpoint=top.strings("checkpoint"),
                model=model,
                sampling=_read_sampling(top.section("sampling")),
                tokenizer=_read_tokenizer(top.section("tokenizer")),
                graphs=tuple(_read_graph(section, model) for section in top.sections("graphs")),
                files=read_files(top.section("files")),
                verified=_read_verified(top.section("verified")),
                understanding=_read_understanding(top) if "understanding" in top.names() else None,
            )
        except ValueError as error:
            raise RFError(f"{where}: {error}.") from error
        top.done()
        if bundle_id != manifest.bundle_id:
            raise RFError(f"{where}: bundle_id {bundle_id} does not fit the table of files: it was changed.")
        return manifest


def verified_key(precision: Precision, dialect: Dialect) -> str:
    """Where `verified` has the figures of some graphs: `fp32` for the classic ones, else `fp32.modern`."""
    return precision if dialect == "classic" else f"{precision}.{dialect}"


def compute_bundle_id(files: dict[str, FileEntry]) -> str:
    """First 16 hex digits of the sha256 of the table of files: lines `sha256 size path`, sorted by path."""
    lines = [f"{entry.sha256} {entry.size} {name}\n" for name, entry in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def format_manifest(manifest: Manifest) -> str:
    """The text of `manifest.json`."""
    return json.dumps(seal(manifest.to_dict()), indent=1, allow_nan=False) + "\n"


def _check_format(top: Section) -> None:
    found = top.take("format")
    if found != FORMAT:
        raise RFError(f"{top.where} is not the manifest of a bundle: format is {found!r}, expected {FORMAT!r}.")
    version = top.integer("format_version", 1)
    if version != FORMAT_VERSION:
        raise RFError(
            f"{top.where} has format version {version}, and this rf-export reads {FORMAT_VERSION}. "
            f"{'Install a newer rf-export, or export' if version > FORMAT_VERSION else 'Export'} the bundle again."
        )


def _read_model(section: Section) -> ModelSpec:
    left = section.names()
    told = [item.name for item in fields(ModelSpec) if item.default is MISSING or item.name in left]
    values = {name: section.integer(name, 1) for name in told}
    section.done()
    try:
        return ModelSpec(**values)
    except ValueError as error:
        raise RFError(f"{section.where}: {error}.") from error


def _read_sampling(section: Section) -> SamplingDefaults:
    sampling = SamplingDefaults(
        num_steps=section.integer("num_steps", 1),
        rep_guidance_scale=section.number("rep_guidance_scale"),
        pix_guidance_scale=section.number("pix_guidance_scale"),
        temperature=section.number("temperature"),
        top_k=section.integer("top_k", 1),
        shift=section.number("shift"),
        shift_base_patches=section.integer("shift_base_patches", 1),
    )
    section.done()
    return sampling


def _read_understanding(top: Section) -> UnderstandingDefaults:
    section = top.section("understanding")
    stop_ids = section.array("stop_ids")
    if not all(type(each) is int for each in stop_ids):
        raise RFError(f"{section.where}: 'stop_ids' must be a list of whole numbers.")
    understanding = UnderstandingDefaults(
        start_id=section.integer("start_id", 0), stop_ids=tuple(stop_ids), max_tokens=section.integer("max_tokens", 1)
    )
    section.done()
    return understanding


def _read_verified(section: Section) -> dict[str, Any]:
    verified: dict[str, Any] = {name: section.mapping(name) for name in section.names()}
    return verified


def _read_tokenizer(section: Section) -> str:
    name = section.string("file")
    section.done()
    return name


def _read_graph(section: Section, model: ModelSpec) -> GraphEntry:
    weights = section.array("weights")
    lint = section.array("lint") if "lint" in section.names() else []  # bundles made before there was a lint
    if not all(isinstance(name, str) for name in lint):
        raise RFError(f"{section.where}: 'lint' must be a list of targets.")
    if not all(isinstance(name, str) for name in weights):
        raise RFError(f"{section.where}: 'weights' must be a list of paths.")
    entry = GraphEntry(
        name=cast(GraphName, section.string("name", GRAPHS)),
        precision=cast(Precision, section.string("precision", PRECISIONS)),
        dialect=cast(Dialect, section.string("dialect", DIALECTS)),
        opset=section.integer("opset", 1),
        file=section.string("file"),
        weights=tuple(weights),
        lint=tuple(lint),
        signature=GraphSignature(
            inputs=tuple(_read_tensor(item) for item in section.sections("inputs")),
            outputs=tuple(_read_tensor(item) for item in section.sections("outputs")),
        ),
    )
    section.done()
    cache_slots = entry.signature.cache_slots if entry.dialect == "modern" else None
    expected = GraphSignature.of(entry.name, model, entry.precision, entry.dialect, cache_slots)
    check_signature(expected, entry.signature, section.where)
    return entry


def _read_tensor(section: Section) -> TensorSpec:
    shape = section.array("shape")
    if not all(isinstance(dim, str) or (isinstance(dim, int) and dim > 0) for dim in shape):
        raise RFError(f"{section.where}: 'shape' must hold sizes > 0 and names, found {shape}.")
    tensor = TensorSpec(section.string("name"), section.string("dtype"), tuple(shape))
    section.done()
    return tensor


def read_files(section: Section) -> dict[str, FileEntry]:
    """Read a table of files; their paths cannot lead out of the folder. Raises RFError."""
    files = {}
    for name in section.names():
        parts = PurePosixPath(name).parts
        # A backslash or a colon would lead elsewhere on Windows; what cannot be printed is no name in UTF-8 either.
        is_inside = "/".join(parts) == name and not {"..", "/"} & set(parts) and not set(name) & {"\\", ":"}
        if not parts or not is_inside or not name.isprintable() or max(len(part.encode()) for part in parts) > 255:
            raise RFError(f"{section.where}: {name!r} is not a path inside the bundle.")
        entry = section.section(name)
        sha256 = entry.string("sha256")
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise RFError(f"{entry.where}: 'sha256' must be 64 hexadecimal digits, found {sha256!r}.")
        files[name] = FileEntry(sha256=sha256, size=entry.integer("size", 0))
        entry.done()
    return files


def _graph_to_dict(graph: GraphEntry) -> dict[str, Any]:
    return {
        "name": graph.name,
        "precision": graph.precision,
        "dialect": graph.dialect,
        "opset": graph.opset,
        "file": graph.file,
        "weights": list(graph.weights),
        "lint": list(graph.lint),
        "inputs": [_tensor_to_dict(spec) for spec in graph.signature.inputs],
        "outputs": [_tensor_to_dict(spec) for spec in graph.signature.outputs],
    }


def _tensor_to_dict(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
