"""Export: a trained checkpoint becomes a bundle of ONNX graphs that has been verified against eager PyTorch.

    checkpoint -> RFModel -> (trace -> shared weights -> lint) per graph, dialect and precision -> manifest -> verify
      -> bundle

The bundle appears under its name only when everything, lint and verification included, has passed.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from msgspec.structs import asdict

from rf_export.checkpoint import checkpoint_sha256, copy_tokenizer, load_checkpoint, load_config, open_tokenizer
from rf_export.eager_reference import EagerReference
from rf_export.export_plan import ExportOptions, ExportPlan
from rf_export.graphs.opset17 import OPSET as OLD_OPSET
from rf_export.graphs.opset17 import to_opset_17
from rf_export.lint.rules import lint
from rf_export.lint.targets import KNOWN_TARGETS
from rf_export.model import RFModel, model_spec
from rf_export.trace import trace
from runtime.bundle.folder import Bundle, Verify, describe_file, open_bundle, write_atomically, write_manifest
from runtime.bundle.manifest import (
    GraphEntry,
    Manifest,
    SamplingDefaults,
    TokenizerEntry,
    TunedPlan,
    UnderstandingDefaults,
)
from runtime.bundle.plan import PLAN_NAME, read_plan
from runtime.errors import RFError
from runtime.events import Progress
from runtime.signature import GRAPHS, Dialect, GraphSignature, ModelSpec, Precision, Variant
from verification import Outcome, VerifyOptions, verify
from verification.graphs.weights import WeightFile
from verification.texts import CHECK_TEXTS, format_check_texts

__all__ = ["ExportOptions", "export", "open_exported"]

VERSION = "0.1.0"


def export(checkpoint: Path, out: Path, options: ExportOptions, on_progress: Progress | None = None) -> Manifest:
    """Export a checkpoint folder to a bundle folder.

    Args:
        checkpoint: `config.json`, `model.safetensors` (or shards), `tokenizer.json`, and a tuned one's `plan.json`.
        out: the bundle to be.
        options: precisions, targets, dialects, overwriting, verification.
        on_progress: told before every stage.

    Raises:
        RFError: a checkpoint that cannot be used, a plan for another one, a folder that may not be replaced, a full
            disk, a graph that a target would not take, or one that does not do what eager PyTorch does.
    """
    report = on_progress or (lambda what, done, total: None)
    plan = ExportPlan.of(options, load_config(checkpoint))
    num_variants = len(plan.precisions) * len(plan.dialects)
    total = 1 + num_variants * (len(GRAPHS) + int(options.verify))
    report("loading the checkpoint", 0, total)
    model = load_checkpoint(checkpoint)
    sha256 = checkpoint_sha256(checkpoint)
    plan_file = checkpoint / PLAN_NAME
    tuned = read_plan(plan_file, sha256) if plan_file.exists() else None
    with write_atomically(out, force=options.force) as folder:
        copy_tokenizer(checkpoint, folder / "tokenizer.json", model.config.vocab_size)
        check_texts = format_check_texts(open_tokenizer(checkpoint, model.config))
        (folder / CHECK_TEXTS).write_text(check_texts, encoding="utf-8")
        spec = model_spec(model)
        entries: list[GraphEntry] = []

        def tell(what: str) -> None:
            report(what, 1 + len(entries), total)

        for precision in options.precisions:
            for entry in _export_precision(model, spec, precision, plan, folder, tell):
                entries.append(entry)  # one by one, since the report counts them
        names = {"name": checkpoint.resolve().name, "sha256": sha256}
        manifest = _manifest(model, spec, entries, folder, names, tuned)
        write_manifest(folder, manifest)
        if options.verify:
            _verify(model, folder, lambda what: tell(f"verifying {what}"))
            manifest = open_bundle(folder).manifest
        report("done", total, total)
    return manifest


def _export_precision(
    model: RFModel, spec: ModelSpec, precision: Precision, plan: ExportPlan, folder: Path, report: Callable[[str], None]
) -> Iterator[GraphEntry]:
    """Trace and write the graphs of one precision in all dialects, and the weights that they share."""
    source = model if precision == "fp32" else copy.deepcopy(model).half()
    _refuse_non_finite(model, source, precision)
    location = f"weights/{precision}.bin"
    with WeightFile(folder / "graphs", location) as weights:
        for dialect, name in itertools.product(plan.dialects, GRAPHS):
            variant = Variant(precision, dialect)
            report(f"tracing {name} in {variant}")
            file_name = f"{name}.{precision}.{dialect}.onnx"
            cache_slots = plan.cache_slots if dialect == "modern" else None
            is_old = plan.opsets[dialect] == OLD_OPSET
            graph = trace(source, name, variant, spec, cache_slots, never_empty=is_old)
            if is_old:
                to_opset_17(graph)
            weights.save(graph, file_name, prefix="model.")
            signature = GraphSignature.of(name, spec, variant, cache_slots)
            yield GraphEntry(
                name=name,
                precision=precision,
                dialect=dialect,
                opset=graph.opset_imports[""],
                file=f"graphs/{file_name}",
                weights=(f"graphs/{location}",),
                inputs=signature.inputs,
                outputs=signature.outputs,
                lint=_passed(graph, file_name, dialect, plan),
            )


def _passed(graph: ir.Model, file_name: str, dialect: Dialect, plan: ExportPlan) -> tuple[str, ...]:
    """The targets that would take a graph.

    Raises:
        RFError: one that has to would not; names node, rule and remedy.
    """
    passed = []
    for target in sorted({*KNOWN_TARGETS, *plan.demands}):
        findings = lint(graph, target)
        if findings and dialect in plan.demands.get(target, ()):
            more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
            raise RFError(f"{target} would not take {file_name}: {findings[0]}{more}. No bundle was written")
        if not findings:
            passed.append(str(target))
    return tuple(passed)


def _refuse_non_finite(model: RFModel, cast: RFModel, precision: str) -> None:
    """Refuse values that are not finite: in the checkpoint itself, or only in a precision that is too narrow."""
    weights = model.state_dict()
    for name, tensor in cast.state_dict().items():
        if torch.isfinite(tensor).all():
            continue
        if not torch.isfinite(weights[name]).all():
            raise RFError(
                f"{name} has values that are not finite: the checkpoint is broken. Save finite weights again."
            )
        largest = weights[name].abs().max().item()
        raise RFError(
            f"{name} has values up to {largest:.3g}, too large for {precision}. Export --precision fp32 alone."
        )


def _manifest(
    model: RFModel,
    spec: ModelSpec,
    entries: Sequence[GraphEntry],
    folder: Path,
    checkpoint: dict[str, str],
    tuned: TunedPlan | None,
) -> Manifest:
    names = ["tokenizer.json", CHECK_TEXTS, *dict.fromkeys(name for entry in entries for name in entry.files)]
    sampling, ids = model.config.sampling, model.config.understanding
    return Manifest(
        created_by={"rf_export": VERSION, "torch": torch.__version__, "onnx": onnx.__version__},
        checkpoint=checkpoint,
        model=spec,
        sampling=SamplingDefaults(**{**asdict(sampling), "top_k": min(sampling.top_k, spec.max_top_k)}),
        tokenizer=TokenizerEntry(file="tokenizer.json"),
        graphs=tuple(entries),
        files={name: describe_file(folder / name) for name in names},
        verified={},
        understanding=UnderstandingDefaults(**asdict(ids)) if ids else None,
        tuned=tuned,
    )


def _verify(model: RFModel, folder: Path, report: Callable[[str], None]) -> None:
    """Hold the graphs against eager PyTorch and write the verdicts into the manifest; raises RFError."""
    options = VerifyOptions(profile="quick")
    for outcome in verify(folder, options, EagerReference(model), lambda what, done, total: report(what)):
        assert isinstance(outcome, Outcome)
        if outcome.verdict != "passed":
            raise RFError(
                f"the exported {outcome.candidate.label} do not agree with eager PyTorch: "
                f"{outcome.record['first_failure'] or outcome.reason}; {outcome.inside or 'look at the whole graph'}. "
                "No bundle was written; export in another precision, and report this"
            )


def open_exported(bundle: Path, checkpoint: Path, verify: Verify = "size") -> tuple[Bundle, RFModel]:
    """Open a bundle, and load the checkpoint that it was exported from.

    Raises:
        RFError: either cannot be opened, or the bundle was made from another checkpoint.
    """
    opened = open_bundle(bundle, verify=verify)
    model = load_checkpoint(checkpoint)
    if opened.manifest.checkpoint["sha256"] != checkpoint_sha256(checkpoint):
        raise RFError(f"{bundle} was exported from another checkpoint than {checkpoint}; name the right one")
    return opened, model
