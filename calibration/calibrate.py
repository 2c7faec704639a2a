"""Calibrates a bundle: the main path of this package.

    check prompts -> record (resumable) -> coverage -> decide per graph -> write int8 graphs -> gate -> manifest

The bundle gets its new graphs as a whole or stays as it is; engines of its other graphs stay valid.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from calibration.config import CalibrationConfig
from calibration.decide import Decision, correct, decide, settle
from calibration.examples import hold_back, split_prompts
from calibration.gate import Originals, Quality, Scorer, draw_originals, measure_quality, paired_change
from calibration.job import CalibrationJob, load_pipeline
from calibration.output import Lint, link_rest, weights_share, write_graphs
from calibration.record import record
from calibration.report import decision_lines, write_report
from calibration.statistics import Recorded, coverage_table
from calibration.trajectory import GUIDED, NUM_EXAMPLES, record_examples
from calibration.workbench import Workbench
from runtime.backends import create_backend
from runtime.backends.interface import Session
from runtime.bundle.folder import Bundle, open_bundle, write_atomically, write_manifest
from runtime.bundle.plan import describe_plan
from runtime.bundle.verdict import graphs_verdict
from runtime.errors import RFError
from runtime.events import Progress
from runtime.options import GenerationOptions, Plan
from runtime.pipeline import Pipeline
from runtime.signature import GRAPHS, GraphName, Variant

_log = logging.getLogger(__name__)

MAX_STRICTER: Final = 6  # rounds of changing layers after a failed gate
_SHARE_OF_LIMIT: Final = 0.6  # of the error that the gate allows, for one graph


@dataclass(frozen=True)
class CalibrationResult:
    """What a calibration came to."""

    bundle: Path
    report: Path
    decisions: list[dict[str, Any]]  # as `Decision.to_dict`
    quality: Quality
    weights_share: float  # bytes of the int8 weights, of those of fp32 in the bundle
    problems: tuple[str, ...]  # forced through
    static_first: str | None = None  # why static groups were preferred for the decoders

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bundle": str(self.bundle),
            "report": str(self.report),
            "decisions": self.decisions,
            "quality": self.quality.to_dict(),
            "weights_share": self.weights_share,
            "problems": list(self.problems),
            "static_first": self.static_first,
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
        if self.static_first is not None:
            lines.append(f"  static groups are preferred: {self.static_first}")
        lines += [f"  forced through: {problem}" for problem in self.problems]
        return "\n".join([*lines, f"  report: {self.report}"])


def calibrate(
    path: str | Path,
    prompts: Sequence[str],
    config: CalibrationConfig,
    *,
    pictures: Sequence[Path] = (),
    scorer: Scorer | None = None,
    lint: Lint | None = None,
    on_progress: Progress | None = None,
) -> CalibrationResult:
    """Give a bundle INT8 graphs that are faster and as good, or say why not.

    Args:
        path: The bundle; it has graphs in the precision that the target starts from.
        prompts: What such a model is asked to draw; a part is kept for the gate.
        config: How.
        pictures: Files that the image encoder is calibrated with too, beside what the model draws; a part is kept for
            the gate.
        scorer: Scores pictures of a pipeline, the same ones every time, for the gate.
        lint: Tells for the manifest who would take a graph.
        on_progress: Told before every step.

    Raises:
        RFError: Too few or unfit prompts, a cache of something else, activations that are not finite, or INT8 that is
            not faster or not good enough; the bundle is as it was then.
    """
    config, static_first = config.for_library(create_backend("ort").target().version)
    path = open_bundle(Path(path).resolve()).path  # a link to a folder cannot be replaced as a folder
    cache_path = _beside(path, f".{config.base}.calibration.npz", config.cache_path)
    report_path = _beside(path, ".calibration.html", config.report_path)
    learn, judge = split_prompts(prompts, config)
    pictures, unseen = hold_back(pictures, config)
    with write_atomically(path, force=True) as folder:
        job = _begin(path, folder, config, on_progress or (lambda what, done, total: None))
        options = GenerationOptions(plan=config.plan)
        for prompt, seed in (*learn, *judge):
            job.base.check([prompt], seed=seed, options=options)  # before anything is drawn
        recorded = record(job, learn, pictures, cache_path)
        originals = draw_originals(job.base, judge, unseen, options)
        if not config.force:
            originals.require_enough(config.limits)
        benches = _open_benches(job, recorded, learn[:NUM_EXAMPLES])
        decisions = _decide(job, benches)
        after, quality = _pass_gate(job, benches, decisions, originals, lint)
        if scorer is not None:
            quality = _score(job, after, quality, scorer)
        outcome = CalibrationResult(
            path,
            report_path,
            [decision.to_dict(benches[name].layers) for name, decision in decisions.items()],
            quality,
            weights_share(after.bundle.manifest, config),
            (*quality.failures(config.limits), *_slow(decisions)),
            static_first,
        )
        summary = {
            **_verdict(job, after.bundle, quality),
            "calibration": _settings(config, len(learn)),
            "coverage": coverage_table(recorded),
            **{name: value for name, value in outcome.to_dict().items() if name not in ("bundle", "report")},
        }
        write_report(report_path, path.name, summary, recorded)
        if outcome.problems and not config.force:
            raise RFError(
                f"INT8 does not pass for {path}: {'; '.join(outcome.problems)}. The bundle is as it was; see "
                f"{report_path}. To take it anyway: --force"
            )
        link_rest(path, folder)
        manifest = after.bundle.manifest
        write_manifest(folder, manifest.replace(verified={**manifest.verified, config.precision: summary}))
    return outcome


def _beside(bundle: Path, ending: str, named: Path | None) -> Path:
    """The file that was named, or one beside the bundle; raises RFError where it cannot be written."""
    path = named or bundle.with_name(f"{bundle.name}{ending}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise RFError(f"{folder} is not a folder. Make it, or name another place for {path}.")
    return path


def _begin(path: Path, folder: Path, config: CalibrationConfig, report: Progress) -> CalibrationJob:
    """Load the graphs to start from, and what the new bundle needs to run."""
    bundle = open_bundle(path)  # again: somebody may have changed it while we waited for the lock
    bundle.verify([file for name in GRAPHS for file in bundle.graph(name, Variant(config.base)).files], "hash")
    (folder / "graphs").mkdir()
    tokenizer = bundle.manifest.tokenizer.file
    shutil.copy2(bundle.file(tokenizer), folder / tokenizer)
    backend = create_backend("ort")
    return CalibrationJob(load_pipeline(bundle, config.base, backend, config), folder, backend, config, report)


def _open_benches(
    job: CalibrationJob, recorded: Recorded, prompts: Sequence[tuple[str, int]]
) -> dict[GraphName, Workbench]:
    """A workbench for every graph with layers, on what it is fed for a few prompts."""
    examples = record_examples(job.base, prompts)
    return {name: Workbench(name, job, recorded[name], examples[name]) for name in GRAPHS if name in recorded}


def _decide(job: CalibrationJob, benches: Mapping[GraphName, Workbench]) -> dict[GraphName, Decision]:
    total = sum(len(bench.kinds) * len(job.config.formats_of(name)) + 3 for name, bench in benches.items())
    counted, timed = _Counter(job.report, total), job.config.target == "ort"
    return {name: decide(bench, job.config, timed=timed, report=counted) for name, bench in benches.items()}


class _Counter:
    """Counts steps for a progress bar."""

    def __init__(self, report: Progress, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def __call__(self, what: str) -> None:
        self._report(what, min(self._done, self._total), self._total)
        self._done += 1


def _pass_gate(
    job: CalibrationJob,
    benches: Mapping[GraphName, Workbench],
    decisions: Mapping[GraphName, Decision],
    originals: Originals,
    lint: Lint | None,
) -> tuple[Pipeline, Quality]:
    """Write the graphs and judge whole drawings; while they fail, layers of the graph to blame change."""
    config, num_drawings = job.config, len(originals.drawings)
    for number in range(MAX_STRICTER + 1):
        result = write_graphs(job, benches, decisions, lint)
        after = load_pipeline(result, config.precision, job.backend, config)
        quality = measure_quality(originals, after, lambda done: job.report("quality gate", done, num_drawings))
        changeable = [name for name, decision in decisions.items() if decision.formats]
        if number == MAX_STRICTER or quality.shortfall(config.limits) <= 1 or not changeable:
            break
        _change_worst(job, {name: benches[name] for name in changeable}, decisions, originals, after)
    return after, quality


def _change_worst(
    job: CalibrationJob,
    benches: Mapping[GraphName, Workbench],
    decisions: Mapping[GraphName, Decision],
    originals: Originals,
    after: Pipeline,
) -> None:
    """Change layers of the graph that fails most alone, until it takes only its part of what the gate allows."""

    def alone(name: GraphName, session: Session) -> float:
        """The shortfall of one graph, the others as they were."""
        mixed = job.base.with_sessions({name: session})
        return measure_quality(originals, mixed, lambda done: None).shortfall(job.config.limits)

    shortfalls = {name: alone(name, after.sessions[name]) for name in benches}
    blamed = max(benches, key=lambda name: shortfalls[name])
    allowed = min(_SHARE_OF_LIMIT, shortfalls[blamed] / 2)  # the errors of the graphs add up
    _log.info("the gate fails because of %s: %.2f of what is allowed alone", blamed, shortfalls[blamed])
    counted = _Counter(job.report, 1)
    correct(benches[blamed], decisions[blamed], lambda session: alone(blamed, session) <= allowed, counted)
    if job.config.target == "ort":
        settle(benches[blamed], decisions[blamed], job.config, counted)


def _score(job: CalibrationJob, after: Pipeline, quality: Quality, scorer: Scorer) -> Quality:
    right = scorer(job.base, job.report)
    scores = paired_change(right, scorer(after, job.report))
    return replace(
        quality, score_before=scores[0], score_after=scores[1], score_change=scores[2], scored_pictures=len(right)
    )


def _slow(decisions: Mapping[GraphName, Decision]) -> list[str]:
    """What is wrong with the speed: a graph that was forced though slower, or no graph of a drawing that gains."""
    problems = [
        f"{name}: INT8 is not faster, {found.before.ms:.3f} ms before and {found.after.ms:.3f} ms after"
        for name, found in decisions.items()
        if found.formats and found.before and found.after and found.after.ms >= found.before.ms
    ]
    if not any(decisions[name].formats for name in GUIDED):
        problems.append(f"no layer of {' and '.join(GUIDED)} is good enough in INT8 and as fast")
    return problems


def _verdict(job: CalibrationJob, after: Bundle, quality: Quality) -> dict[str, Any]:
    """Of the gate; graphs that come from ones that are not verified are no better."""
    config = job.config
    failures = quality.failures(config.limits)
    verdict, reason = graphs_verdict(job.base.bundle, Variant(config.base))
    return {
        "verdict": "failed" if failures else verdict,
        **({"reason": f"they come from {config.base} graphs that are not: {reason}"} if reason else {}),
        "reference": f"the {config.base} graphs, by the gate of the calibration",
        "graphs": {name: after.graph_sha256(name, Variant(config.precision)) for name in GRAPHS},
        "first_failure": next(iter(failures), None),
    }


def _settings(config: CalibrationConfig, num_prompts: int) -> dict[str, Any]:
    """For the manifest and the report."""
    return {
        "target": config.target,
        "base": config.base,
        "method": config.method,
        "smooth": config.smooth,
        "formats": {name: list(config.formats_of(name)) for name in GRAPHS},
        "block": config.weight_block,
        "seed": config.seed,
        "prompts": num_prompts,
        "plan": describe_plan(config.plan) if isinstance(config.plan, Plan) else config.plan,
        "threads": config.num_threads,
        "limits": asdict(config.limits),
        "forced": config.force,
    }
