"""Calibrates a bundle: the main path of this package.

    check prompts -> record (resumable) -> coverage -> decide per graph -> write int8 graphs -> gate -> manifest

The bundle gets its new graphs as a whole or stays as it is; engines of its other graphs stay valid.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from calibration import recordings as cache
from calibration.config import CalibrationConfig
from calibration.decide import Decision, correct, decide, settle
from calibration.examples import hold_back, split_prompts
from calibration.gate import Originals, Quality, Scorer, draw_originals, measure_quality, paired_change
from calibration.layers import find_layers
from calibration.report import decision_lines, write_report
from calibration.statistics import Recorded, coverage_table, missing_coverage
from calibration.trajectory import (
    GUIDED,
    NUM_EXAMPLES,
    Recording,
    draw_recorded,
    graph_file,
    plan_passes,
    record_examples,
    steps_of,
)
from calibration.workbench import Workbench
from runtime.backends import create_backend
from runtime.backends.interface import Backend, Session
from runtime.bundle.atomic import is_temporary
from runtime.bundle.folder import Bundle, describe_file, open_bundle, write_atomically, write_manifest
from runtime.bundle.manifest import MANIFEST_NAME, GraphEntry, Manifest
from runtime.bundle.verdict import graphs_verdict
from runtime.errors import RFError
from runtime.loading import LoadedModel, open_tokenizer
from runtime.pipeline import Pipeline
from runtime.signature import GRAPHS, GraphName, GraphSignature, Precision, Variant
from verification.graphs.weights import WeightFile

_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all
Lint = Callable[[ir.Model], Sequence[str]]  # the targets that would take a graph
SAVE_EVERY: Final = 8  # prompts
MAX_STRICTER: Final = 6  # rounds of changing layers after a failed gate
_SHARE_OF_LIMIT: Final = 0.6  # of the error that the gate allows, for one graph


@dataclass(frozen=True)
class Outcome:
    """What a calibration came to."""

    bundle: Path
    report: Path
    decisions: list[dict[str, Any]]  # as `Decision.to_dict`
    quality: Quality
    weights_share: float  # bytes of the int8 weights, of those of fp32 in the bundle
    problems: tuple[str, ...]  # forced through

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bundle": str(self.bundle),
            "report": str(self.report),
            "decisions": self.decisions,
            "quality": self.quality.to_dict(),
            "weights_share": self.weights_share,
            "problems": list(self.problems),
        }

    def table(self) -> str:
        """For people."""
        quality = self.quality
        lines = [f"{self.bundle}  weights at {100 * self.weights_share:.1f}% of fp32", *decision_lines(self.decisions)]
        lines.append(
            f"  pictures from the same tokens: PSNR {quality.psnr_db} dB; "
            f"tokens equal after the same history: {100 * quality.tokens_equal.value:.1f}%"
        )
        if quality.captions is not None:
            lines.append(f"  captions of the same pictures: {quality.captions}")
        if quality.score_change is not None:
            lines.append(
                f"  task score {quality.score_before}% before, {quality.score_after}% after, "
                f"change {quality.score_change} points, {quality.scored_pictures} pictures"
            )
        lines += [f"  forced through: {problem}" for problem in self.problems]
        return "\n".join([*lines, f"  report: {self.report}"])


def calibrate(
    path: str | Path,
    prompts: Sequence[str],
    config: CalibrationConfig,
    *,
    pictures: Sequence[Path] = (),
    cache_path: Path | None = None,
    report_path: Path | None = None,
    scorer: Scorer | None = None,
    lint: Lint | None = None,
    on_progress: Progress | None = None,
) -> Outcome:
    """Give a bundle INT8 graphs that are faster and as good, or say why not.

    Args:
        path: The bundle; it has graphs in the precision that the target starts from.
        prompts: What such a model is asked to draw; a part is kept for the gate.
        config: How.
        pictures: Files that the image encoder is calibrated with too, beside what the model draws; a part is kept for
            the gate.
        cache_path: Where recorded activations are kept; the default is beside the bundle, where one of something else
            is replaced.
        report_path: Where the HTML report goes; the default is beside the bundle.
        scorer: Scores pictures of a pipeline, the same ones every time, for the gate.
        lint: Tells for the manifest who would take a graph.
        on_progress: Told before every step.

    Raises:
        RFError: Too few or unfit prompts, a cache of something else, activations that are not finite, or INT8 that is
            not faster or not good enough; the bundle is as it was then.
    """
    path = Path(path).resolve()  # a link to a folder cannot be replaced as a folder
    bundle = open_bundle(path)
    report = on_progress or (lambda what, done, total: None)
    may_replace = cache_path is None
    cache_path = cache_path or path.with_name(f"{path.name}.{config.base}.calibration.npz")
    report_path = report_path or path.with_name(f"{path.name}.calibration.html")
    for written in (cache_path, report_path):
        if not written.absolute().parent.is_dir():
            raise RFError(f"{written.absolute().parent} is not a folder. Make it, or name another place for {written}.")
    learn, judge = split_prompts(prompts, config)
    pictures, unseen = hold_back(pictures, config)
    with write_atomically(bundle.path, force=True) as folder:
        bundle = open_bundle(path)  # again: somebody may have changed it while we waited for the lock
        bundle.verify([file for name in GRAPHS for file in bundle.graph(name, Variant(config.base)).files], "hash")
        (folder / "graphs").mkdir()
        backend = create_backend("ort")
        base = load_pipeline(bundle, config.base, backend, config)
        for prompt, seed in (*learn, *judge):
            base.check([prompt], seed=seed)  # before anything is drawn
        recorded = record(
            base, folder / "graphs", backend, learn, pictures, config, cache_path, report, may_replace=may_replace
        )
        originals = draw_originals(base, judge, unseen)
        if not config.force:
            originals.require_enough(config.limits)
        examples = record_examples(base, learn[:NUM_EXAMPLES])
        benches = {
            name: Workbench(name, base, folder / "graphs", backend, recorded[name], examples[name], config)
            for name in GRAPHS
            if name in recorded
        }
        timed = config.target == "ort"
        total = sum(len(bench.kinds) * len(config.formats_of(name)) + 3 for name, bench in benches.items())
        counted = _Counter(report, total)
        decisions = {name: decide(bench, config, timed=timed, report=counted) for name, bench in benches.items()}
        shutil.copy2(bundle.file(bundle.manifest.tokenizer.file), folder / bundle.manifest.tokenizer.file)
        after, quality = _pass_gate(base, folder, backend, benches, decisions, originals, config, lint, report)
        if scorer is not None:
            quality = _score(base, after, quality, scorer, report)
        manifest = after.bundle.manifest
        share = _weights_share(manifest, config)
        problems = (*quality.failures(config.limits), *_slow(decisions))
        tables = [decision.to_dict(benches[name].layers) for name, decision in decisions.items()]
        outcome = Outcome(bundle.path, report_path, tables, quality, share, problems)
        base_verdict, reason = graphs_verdict(bundle, Variant(config.base))
        verdict = {
            "verdict": "failed" if quality.failures(config.limits) else base_verdict,
            **({"reason": f"they come from {config.base} graphs that are not: {reason}"} if reason else {}),
            "reference": f"the {config.base} graphs, by the gate of the calibration",
            "graphs": {name: after.bundle.graph_sha256(name, Variant(config.precision)) for name in GRAPHS},
            "first_failure": next(iter(quality.failures(config.limits)), None),
        }
        summary = {**verdict, **_summary(outcome, config, recorded, len(learn))}
        write_report(report_path, bundle.path.name, summary, recorded)
        if problems and not config.force:
            raise RFError(
                f"INT8 does not pass for {bundle.path}: {'; '.join(problems)}. The bundle is as it was; see "
                f"{report_path}. To take it anyway: --force"
            )
        _link_rest(bundle.path, folder)
        write_manifest(folder, manifest.replace(verified={**manifest.verified, config.precision: summary}))
    return outcome


def record(
    base: Pipeline,
    folder: Path,
    backend: Backend,
    prompts: Sequence[tuple[str, int]],
    pictures: Sequence[Path],
    config: CalibrationConfig,
    cache_path: Path,
    report: Progress,
    *,
    may_replace: bool,
) -> Recorded:
    """Draw the prompts with all layers tapped; goes on from the cache, and leaves it there.

    Raises:
        RFError: the cache is damaged or belongs to something else, and was named (not `may_replace`); a graph was not
            fed at every step.
    """
    layers = {name: find_layers(ir.load(graph_file(base, name)).graph) for name in GRAPHS}
    num_steps = steps_of(base, prompts[0][0])
    num_tokens = num_steps["rep_decoder"]
    recording = Recording(layers, {**num_steps, "rep_decoder": num_tokens + 1})  # and the run that fills the cache
    manifest = base.bundle.manifest
    key = {
        "graphs": [base.bundle.graph_sha256(name, Variant(config.base)) for name in GRAPHS],
        "tokenizer": manifest.files[manifest.tokenizer.file].sha256,
        "defaults of sampling": {
            **manifest.sampling.to_dict(),
            "height": manifest.model.default_height,
            "width": manifest.model.default_width,
        },
        "prompts or seeds": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "pictures": [hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures],
        "memory limits": config.memory_mib,
    }
    done = cache.Progress()
    if cache_path.exists():
        try:
            recording.recorded, done = cache.load(cache_path, key)
        except RFError as error:
            if not may_replace:
                raise
            _log.warning("Recording anew: %s", error)
    patches = 4 * num_tokens
    num_rows: dict[GraphName, int] = {
        "vision_encoder": patches,
        "text_decoder": 64,
        "rep_decoder": 2,
        "denoiser": 2 * patches,
    }
    passes = plan_passes(layers, num_rows, config.memory_mib)
    for number in range(done.passes, len(passes)):
        first = done.prompts if number == done.passes else 0
        seen = [] if first else pictures
        for count in draw_recorded(base, folder, backend, recording, passes[number], prompts[first:], seen):
            report("recording", number * len(prompts) + first + count, len(passes) * len(prompts))
            if (first + count) % SAVE_EVERY == 0 and first + count < len(prompts):
                cache.save(cache_path, key, recording.recorded, cache.Progress(number, first + count))
        cache.save(cache_path, key, recording.recorded, cache.Progress(number + 1, 0))
    lacking = missing_coverage(recording.recorded, GUIDED)
    if lacking:
        raise RFError(f"The recording does not cover the model: {lacking}. Delete {cache_path} and calibrate again.")
    return recording.recorded


def _link_rest(source: Path, target: Path) -> None:
    """Give a folder those files of a bundle that it lacks, its engines too, without copying them.

    The last step: onnx refuses weights in files that have two names, so nothing may read them meanwhile.
    """
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if any(is_temporary(Path(part)) for part in relative.parts) or relative.as_posix() == MANIFEST_NAME:
            continue
        if path.is_dir():
            (target / relative).mkdir(exist_ok=True)
        elif not (target / relative).exists():
            _link(path, target / relative)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # a file system without links
        shutil.copy2(path, target)


class _Counter:
    """Counts steps for a progress bar."""

    def __init__(self, report: Progress, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def __call__(self, what: str) -> None:
        self._report(what, min(self._done, self._total), self._total)
        self._done += 1


def _write_graphs(
    bundle: Bundle,
    folder: Path,
    benches: dict[GraphName, Workbench],
    decisions: dict[GraphName, Decision],
    config: CalibrationConfig,
    lint: Lint | None,
) -> Bundle:
    """Write all graphs; the manifest of the result names them instead of those that were there before."""
    precision, entries = config.precision, []
    location = f"weights/{precision}.bin"
    with WeightFile(folder / "graphs", location) as file:
        for name, bench in benches.items():
            model = bench.rewrite(decisions[name].formats)
            targets = tuple(lint(model)) if lint is not None else ()
            file_name = f"{name}.{precision}.classic.onnx"
            file.save(model, file_name)
            entry = bundle.graph(name, Variant(config.base))
            signature = GraphSignature.of(name, bundle.manifest.model, Variant(precision))
            entries.append(
                entry.replace(
                    precision=precision,
                    opset=model.opset_imports[""],
                    file=f"graphs/{file_name}",
                    weights=(f"graphs/{location}",),
                    inputs=signature.inputs,
                    outputs=signature.outputs,
                    lint=targets,
                )
            )
    return Bundle(folder, _with_graphs(bundle.manifest, folder, entries))


def _with_graphs(manifest: Manifest, folder: Path, entries: Sequence[GraphEntry]) -> Manifest:
    others = [graph for graph in manifest.graphs if graph.precision != entries[0].precision]
    old = {name for graph in manifest.graphs if graph not in others for name in graph.files}
    used = {name for graph in (*others, *entries) for name in graph.files}
    files = {name: entry for name, entry in manifest.files.items() if name not in old or name in used}
    for name in dict.fromkeys(name for entry in entries for name in entry.files):
        files[name] = describe_file(folder / name)
    return manifest.replace(graphs=(*others, *entries), files=files)


def _pass_gate(
    base: Pipeline,
    folder: Path,
    backend: Backend,
    benches: dict[GraphName, Workbench],
    decisions: dict[GraphName, Decision],
    originals: Originals,
    config: CalibrationConfig,
    lint: Lint | None,
    report: Progress,
) -> tuple[Pipeline, Quality]:
    """Write the graphs and judge whole drawings; while they fail, layers of the graph to blame change."""
    counted, num_drawings = _Counter(report, 1), len(originals.drawings)

    def alone(name: GraphName, session: Session) -> float:
        """The shortfall of one graph, the others as they were."""
        mixed = base.with_sessions({name: session})
        return measure_quality(originals, mixed, lambda done: None).shortfall(config.limits)

    for number in range(MAX_STRICTER + 1):
        result = _write_graphs(base.bundle, folder, benches, decisions, config, lint)
        after = load_pipeline(result, config.precision, backend, config)
        quality = measure_quality(originals, after, lambda done: report("quality gate", done, num_drawings))
        changeable = [name for name, decision in decisions.items() if decision.formats]
        if number == MAX_STRICTER or quality.shortfall(config.limits) <= 1 or not changeable:
            break
        shortfalls = {name: alone(name, after.sessions[name]) for name in changeable}
        blamed = max(changeable, key=lambda name: shortfalls[name])
        allowed = min(_SHARE_OF_LIMIT, shortfalls[blamed] / 2)  # the errors of the graphs add up
        _log.info("the gate fails because of %s: %.2f of what is allowed alone", blamed, shortfalls[blamed])

        def passes(session: Session, name: GraphName = blamed, allowed: float = allowed) -> bool:
            return alone(name, session) <= allowed

        correct(benches[blamed], decisions[blamed], passes, counted)
        if config.target == "ort":
            settle(benches[blamed], decisions[blamed], config, counted)
    return after, quality


def load_pipeline(bundle: Bundle, precision: Precision, backend: Backend, config: CalibrationConfig) -> Pipeline:
    """The plain graphs of a bundle whose manifest need not be on the disk."""
    sessions = {}
    for name in GRAPHS:
        file = bundle.file(bundle.graph(name, Variant(precision)).file)
        sessions[name] = backend.open(file, num_threads=config.num_threads, compiled=False)
    return Pipeline(
        LoadedModel(
            bundle=bundle,
            variant=Variant(precision),
            sessions=sessions,
            num_threads=config.num_threads,
            tokenizer=open_tokenizer(bundle),
        )
    )


def _score(before: Pipeline, after: Pipeline, quality: Quality, scorer: Scorer, report: Progress) -> Quality:
    right = scorer(before, report)
    scores = paired_change(right, scorer(after, report))
    return replace(
        quality, score_before=scores[0], score_after=scores[1], score_change=scores[2], scored_pictures=len(right)
    )


def _slow(decisions: dict[GraphName, Decision]) -> list[str]:
    """What is wrong with the speed: a graph that was forced though slower, or no graph of a drawing that gains."""
    problems = [
        f"{name}: INT8 is not faster, {found.before.ms:.3f} ms before and {found.after.ms:.3f} ms after"
        for name, found in decisions.items()
        if found.formats and found.before and found.after and found.after.ms >= found.before.ms
    ]
    if not any(decisions[name].formats for name in GUIDED):
        problems.append(f"no layer of {' and '.join(GUIDED)} is good enough in INT8 and as fast")
    return problems


def _weights_share(manifest: Manifest, config: CalibrationConfig) -> float:
    """Bytes of the new weights, of those in fp32: twice those of fp16 where fp32 is not there."""

    def size(content: Manifest, precision: str) -> int:
        names = {file for graph in content.graphs if graph.precision == precision for file in graph.weights}
        return sum(content.files[name].size for name in names)

    full = size(manifest, "fp32") or 2 * size(manifest, "fp16")
    return size(manifest, config.precision) / full


def _summary(outcome: Outcome, config: CalibrationConfig, recorded: Recorded, num_prompts: int) -> dict[str, Any]:
    """For the manifest and the report."""
    return {
        "calibration": {
            "target": config.target,
            "base": config.base,
            "method": config.method,
            "smooth": config.smooth,
            "formats": {name: list(config.formats_of(name)) for name in GRAPHS},
            "block": config.weight_block,
            "seed": config.seed,
            "prompts": num_prompts,
            "threads": config.num_threads,
            "limits": vars(config.limits),
            "forced": config.force,
        },
        "coverage": coverage_table(recorded),
        "decisions": outcome.decisions,
        "quality": outcome.quality.to_dict(),
        "weights_share": outcome.weights_share,
        "problems": list(outcome.problems),
    }
