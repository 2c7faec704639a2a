"""The content of `manifest.json`: what a bundle holds, and the only truth about it.

Knows nothing of the file system: JSON objects in, frozen dataclasses out, and back. A manifest that was
read is valid: every key is known and of its type, every file that is named is in the table of files, every
graph has the signature that its model gives it.
"""

import hashlib
import json
from dataclasses import fields
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, field

from runtime.backends.host import format2
from runtime.bundle.strict_json import LARGEST, Finite, NotNegative, Record, read_as, read_document, seal, shortened
from runtime.errors import RFError
from runtime.options import Plan
from runtime.signature import (
    DIALECTS,
    GRAPHS,
    PRECISIONS,
    Dialect,
    GraphName,
    GraphSignature,
    ModelSpec,
    Positive,
    Precision,
    TensorSpec,
    Variant,
    check_signature,
)

FORMAT: Final = "rf-export-bundle"
FORMAT_VERSION: Final = 3  # in 1 there was no vision_encoder, in 2 a pass took one token and guidance two rows
MANIFEST_NAME: Final = "manifest.json"

_Share = Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", description="64 hexadecimal digits")]


class FileEntry(Record, frozen=True, kw_only=True):
    """Hash and size in bytes of a file of the bundle."""

    sha256: Sha256
    size: NotNegative


class SamplingDefaults(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How a picture is drawn where the caller does not say otherwise."""

    num_steps: Positive
    rep_guidance_scale: Finite
    pix_guidance_scale: Finite
    temperature: Annotated[float, Meta(ge=0, le=LARGEST, description="a finite number >= 0")]
    top_k: Positive
    shift: Annotated[float, Meta(gt=0, le=LARGEST, description="a finite number > 0")]  # at shift_base_patches
    shift_base_patches: Positive | None = None  # None where the shift is the same for all sizes of pictures
    times: tuple[_Share, ...] | None = None  # in place of num_steps and shift
    guided: tuple[_Share, _Share] = (0.0, 1.0)  # when the denoiser is guided
    noise_scale: Annotated[float, Meta(gt=0, le=LARGEST, description="a finite number > 0")] = 1.0

    def __post_init__(self) -> None:
        try:
            Plan(times=self.times, guided=self.guided)
        except RFError as error:
            raise ValueError(str(error)) from None


class TunedPlan(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What `rf-export tune` found for a checkpoint, and what proves it."""

    num_steps: Positive | None = None
    shift: Finite | None = None
    times: tuple[_Share, ...] | None = None
    guided: tuple[_Share, _Share] | None = None
    rep_guidance_scale: Finite | None = None
    pix_guidance_scale: Finite | None = None
    window: Positive | None = None
    evidence: dict[str, Any] = field(default_factory=dict)  # how it was found; nothing is computed from it

    def __post_init__(self) -> None:
        try:
            self.plan  # noqa: B018
        except RFError as error:
            raise ValueError(str(error)) from None

    @property
    def plan(self) -> Plan:
        """What to draw with."""
        return Plan(**{each.name: getattr(self, each.name) for each in fields(Plan)})


class UnderstandingDefaults(Record, frozen=True, kw_only=True):
    """The ids around a question and its answer, and how many tokens an answer has at the most."""

    start_id: NotNegative  # between images and question
    # The end of an answer.
    stop_ids: Annotated[tuple[NotNegative, ...], Meta(min_length=1, description="a list of one id at least")]
    max_tokens: Positive

    def require_known(self, vocab_size: int) -> None:
        """Raises ValueError where an id is beyond the vocabulary."""
        largest = max(self.start_id, *self.stop_ids)
        if largest >= vocab_size:
            raise ValueError(f"understanding has id {largest}, and the model knows {vocab_size}")


class TokenizerEntry(Record, frozen=True, kw_only=True):
    """Where the tokenizer lies."""

    file: str


class GraphEntry(Record, frozen=True, kw_only=True):
    """One ONNX file. Paths are relative to the bundle, with forward slashes."""

    name: GraphName
    precision: Precision
    dialect: Dialect
    opset: Positive
    file: str
    weights: tuple[str, ...]  # the external-data files that it reads
    lint: tuple[str, ...] = ()  # the targets that would take the graph, as rf_export/lint/rules.py told at the export
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def signature(self) -> GraphSignature:
        """Inputs and outputs."""
        return GraphSignature(self.inputs, self.outputs)

    @property
    def variant(self) -> Variant:
        """Its precision and dialect."""
        return Variant(self.precision, self.dialect)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that has to be there to run the graph."""
        return (self.file, *self.weights)


class Manifest(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The content of `manifest.json`. `verified` has verdicts, see runtime/bundle/verdict.py."""

    created_by: dict[str, str]
    checkpoint: dict[str, str]
    model: ModelSpec
    sampling: SamplingDefaults
    understanding: UnderstandingDefaults | None = None  # None where the model answers no questions
    tokenizer: TokenizerEntry
    graphs: tuple[GraphEntry, ...]
    files: dict[str, FileEntry]
    verified: dict[str, dict[str, Any]]
    tuned: TunedPlan | None = None  # None where nobody tuned it
    format_version: Literal[2, 3] = 3  # 2 has other graphs: runtime/backends/host/format2.py
    requires: tuple[str, ...] = ()  # what a host has to be able to do besides; one that does not know it refuses

    def __post_init__(self) -> None:
        check_table(self.files, [name for graph in self.graphs for name in graph.files] + [self.tokenizer.file])
        keys = [(graph.name, graph.variant) for graph in self.graphs]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"graph {key[0]} {key[1]} is there twice")
        for variant in dict.fromkeys(variant for _, variant in keys):
            graphs = [graph for graph in self.graphs_of(variant) if graph.name != "vision_encoder"]
            lengths = {graph.signature.cache_slots for graph in graphs}
            if len(lengths) > 1:
                raise ValueError(f"the {variant} graphs have caches of different lengths")
        if self.sampling.top_k > self.model.max_top_k:
            raise ValueError(f"top_k must be at most {self.model.max_top_k}, got {self.sampling.top_k}")
        if self.understanding:
            self.understanding.require_known(self.model.vocab_size)

    @property
    def bundle_id(self) -> str:
        """Names the content of the bundle: two bundles with the same files have the same id."""
        return compute_bundle_id(self.files)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Those of which every graph is there."""
        every = (Variant(precision, dialect) for precision in PRECISIONS for dialect in DIALECTS)
        return tuple(each for each in every if {graph.name for graph in self.graphs_of(each)} == set(GRAPHS))

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions of which every graph is there, in some dialect."""
        return tuple(
            precision for precision in PRECISIONS if any(variant.precision == precision for variant in self.variants)
        )

    def graphs_of(self, variant: Variant) -> list[GraphEntry]:
        """The graphs of a precision in a dialect."""
        return [graph for graph in self.graphs if graph.variant == variant]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `from_dict` reads it back."""
        start = {"format": FORMAT, "format_version": self.format_version, "bundle_id": self.bundle_id}
        return {**super().to_dict(), **start}

    @classmethod
    def from_dict(cls, content: Any, where: str) -> "Manifest":
        """Check and read a JSON object.

        Args:
            content: What `json.load` gave.
            where: Name of the file for messages.

        Raises:
            RFError: Says what is wrong, and where.
        """
        version = content.get("format_version") if isinstance(content, dict) else None
        content = read_document(content, where, FORMAT, FORMAT_VERSION, "Export the bundle", format2.FORMAT_VERSION)
        bundle_id = content.pop("bundle_id", None)
        manifest = read_as(cls, {**content, "format_version": version}, where)
        signature_of = format2.signature_of if version == format2.FORMAT_VERSION else GraphSignature.of
        for index, graph in enumerate(manifest.graphs):
            slots = graph.signature.cache_slots if graph.dialect == "modern" else None
            signature = signature_of(graph.name, manifest.model, graph.variant, slots)
            check_signature(signature, graph.signature, f"{where}, graphs[{index}]")
        if bundle_id != manifest.bundle_id:
            raise RFError(
                f"{where}: 'bundle_id' must be {manifest.bundle_id!r} as the table of files has it, found "
                f"{shortened(bundle_id)}: it was changed. Export the bundle again.",
                "damaged",
            )
        return manifest


def compute_bundle_id(files: dict[str, FileEntry]) -> str:
    """First 16 hex digits of the sha256 of the table of files: lines `sha256 size path`, sorted by path."""
    lines = [f"{entry.sha256} {entry.size} {name}\n" for name, entry in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def format_manifest(manifest: Manifest) -> str:
    """The text of `manifest.json`."""
    return json.dumps(seal(manifest.to_dict()), indent=1, allow_nan=False) + "\n"


def check_table(files: dict[str, FileEntry], names: list[str]) -> None:
    """Raises ValueError where a path of a table of files leads out of the folder, or one of `names` is not there."""
    for name in files:
        parts = PurePosixPath(name).parts
        # A backslash or a colon would lead elsewhere on Windows; what cannot be printed is no name in UTF-8 either.
        is_inside = "/".join(parts) == name and not {"..", "/"} & set(parts) and not set(name) & {"\\", ":"}
        if not parts or not is_inside or not name.isprintable() or max(len(part.encode()) for part in parts) > 255:
            raise ValueError(f"{name!r} is not a path inside the folder")
    for name in names:
        if name not in files:
            raise ValueError(f"{name!r} is not in the table of files")
