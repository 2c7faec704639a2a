"""Tunes a bundle: the main path of this package.

    split prompts -> draw by the full plan (resumable) -> search -> held-out half -> windows and times -> plan, report

The bundle gets a plan that is as good and cheaper, or keeps what it has.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from runtime.backends.host.machine import cpu_name, usable_cpus
from runtime.bundle.manifest import TunedPlan
from runtime.bundle.plan import describe_plan
from runtime.events import Progress
from runtime.options import Plan
from runtime.pipeline import Pipeline
from runtime.signature import GRAPHS
from tuning.cache import Cache
from tuning.candidates import Candidates
from tuning.clock import WindowTimes, time_plans, time_windows
from tuning.config import TuneConfig
from tuning.drawings import Picture, Studio
from tuning.scorers import Scorer
from tuning.search import Bench, Found, RowCounter, search
from tuning.subjects import Halves, Subject, split
from verification.measures.timing import Timing, ratio

NUM_SHOWN: Final = 6  # pictures of a sheet
MAX_CHANGED: Final = 12  # lost and won pictures that are shown, of each
_PACKAGES: Final = ("rf-export", "onnxruntime", "numpy")
FULL: Final = "the full plan"


@dataclass(frozen=True)
class Sheet:
    """Pictures for the report: `rows` are the same subjects by each plan, `changed` are pairs whose score changed."""

    subjects: Sequence[Subject]
    rows: Mapping[str, Sequence[Picture]]
    changed: Sequence[tuple[Subject, Picture, Picture, float, float]]  # by the full plan and the other, and both scores


@dataclass(frozen=True)
class TuneResult:
    """What a search came to.

    Attributes:
        tuned: The plan with its evidence; None where none is as good for sure.
        reason: Why there is none.
        evidence: All figures, JSON-ready.
        sheet: Pictures.
    """

    tuned: TunedPlan | None
    reason: str
    evidence: dict[str, Any]
    sheet: Sheet

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the plan, None where there is none, and what was measured."""
        plan = None if self.tuned is None else _given(self.tuned.plan)
        return {"plan": plan, "reason": self.reason, "evidence": self.evidence}

    def table(self) -> str:
        """For people."""
        lines = [f"  {each['plan']}, {each['rows']} rows: {each['text']}" for each in self.evidence["tried"]]
        lines += [
            f"  held out: {each['plan']}: {each['verdict']}; {each['text']}" for each in self.evidence["held_out"]
        ]
        return "\n".join([self.evidence["summary"], *lines])


def tune(
    pipeline: Pipeline,
    prompts: Sequence[str],
    config: TuneConfig,
    *,
    cache_path: Path,
    scorer: Scorer | None = None,
    resume: bool = False,
    on_progress: Progress | None = None,
) -> TuneResult:
    """Find the cheapest plan that draws pictures as good as the full one; nothing is written but the cache.

    Args:
        pipeline: A loaded bundle, as it will draw.
        prompts: What such a model is asked to draw.
        config: How.
        cache_path: Where to keep what is known, so that an interrupted search goes on.
        scorer: Scores pictures; without one they have to stay near to those of the full plan.
        resume: Go on with an interrupted search.
        on_progress: Told after every few pictures.

    Raises:
        RFError: Too few or unfit prompts, a cache of something else, or a scorer that fails.
    """
    halves, studio = split(prompts, config), Studio(pipeline)
    studio.check(halves.all)
    candidates = Candidates(pipeline.bundle.manifest.sampling, studio.plan)
    report = on_progress or (lambda what, done, total: None)
    rows = candidates.full.rows
    about = _search_of(pipeline, halves, scorer)
    with Cache(cache_path, about, resume=resume) as cache:
        total = rows * len(halves.all) * 2  # the full plan, and about as much again for all others
        bench = Bench(studio, scorer, cache, RowCounter(report, total))
        bench.draw_originals(halves.all, rows)
        found = search(bench, candidates, halves, config)
        report("timing", total - 1, total)
        best = None if found.best is None else found.best[0].plan
        windows = time_windows(pipeline, halves.search, config.num_rounds)
        if best is not None and pipeline.engine is None:  # an engine says itself which is best on its machine
            best = replace(best, window=windows.best)
        plans = {FULL: Plan(), **({} if best is None else {describe_plan(best): best})}
        times = time_plans(pipeline, plans, halves.search, config.num_rounds)
        sheet = _draw_sheet(bench, found, halves)
        cache.finish()
    report("done", total, total)
    evidence = {
        "summary": _summary(found, rows, times, config),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **about,
        "limits": asdict(config),
        "rows": [None if found.best is None else found.best[0].rows, rows],
        **_figures(found, windows, times),
        **_machine(pipeline),
    }
    tuned = None if best is None else TunedPlan(**_given(best), evidence=evidence)
    return TuneResult(tuned, found.reason, evidence, sheet)


def _given(plan: Plan) -> dict[str, Any]:
    return {name: value for name, value in vars(plan).items() if value is not None}


def _search_of(pipeline: Pipeline, halves: Halves, scorer: Scorer | None) -> dict[str, Any]:
    """All that scores depend on; a search goes on only with the same."""
    bundle, variant = pipeline.bundle, pipeline.model.variant
    subjects = [(each.prompt, each.seed) for each in halves.all]
    graphs = [bundle.graph_sha256(name, variant) for name in GRAPHS]
    return {
        "checkpoint": bundle.manifest.checkpoint["sha256"],
        "graphs": _sha256(graphs),
        "precision": pipeline.precision,
        "runs": "ONNX graphs" if pipeline.engine is None else "engine",
        "prompts": _sha256(subjects),
        "sampling": _sha256(bundle.manifest.sampling.to_dict()),
        "scorer": "distance to the full plan" if scorer is None else scorer.name,
    }


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _machine(pipeline: Pipeline) -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a folder
            continue
    threads = pipeline.num_threads or "the backend's"
    return {"machine": {"cpu": cpu_name(), "cpus": usable_cpus(), "threads": threads}, "versions": versions}


def _summary(found: Found, rows: int, times: Mapping[str, Timing], config: TuneConfig) -> str:
    if found.best is None:
        return f"no plan: {found.reason}"
    candidate, comparison = found.best
    full, tuned = (times[name] for name in times)
    return (
        f"{candidate.rows} of {rows} denoiser rows, a picture {ratio(full, tuned)['median']:.2f} times as fast; "
        f"held out: {comparison}"
    )


def _figures(found: Found, windows: WindowTimes, times: Mapping[str, Timing]) -> dict[str, Any]:
    tried = [
        {
            "plan": describe_plan(each.candidate.plan),
            "rows": each.candidate.rows,
            "promising": each.is_promising,
            "text": str(each.found),
            **each.found.to_dict(),
        }
        for each in found.tried
    ]
    judged = [
        {
            "plan": describe_plan(candidate.plan),
            "rows": candidate.rows,
            "verdict": verdict,
            "text": str(comparison),
            **comparison.to_dict(),
        }
        for candidate, comparison, verdict in found.judged
    ]
    return {
        "tried": tried,
        "held_out": judged,
        "windows": windows.to_dict(),
        "picture_ms": {name: round(1e3 * timing.median, 2) for name, timing in times.items()},
    }


def _draw_sheet(bench: Bench, found: Found, halves: Halves) -> Sheet:
    """The same pictures under every plan that was tried to the end, and what the plan judged last changed."""
    shown = halves.search[:NUM_SHOWN]
    whole = {each.candidate.plan: each.candidate for each in found.tried if each.found.pictures == len(halves.search)}
    rows: dict[str, Sequence[Picture]] = {FULL: [bench.original(each).picture for each in shown]}
    for candidate in sorted(whole.values(), key=lambda each: each.rows):
        rows[describe_plan(candidate.plan)] = bench.draw(candidate.plan, shown)
    changed = []
    if found.judged:
        plan = found.judged[-1][0]
        for sign in (-1, 1):
            changed += _changed(
                bench, plan.plan, halves.held_out, bench.marks(plan, halves.held_out, "rows drawn to show"), sign
            )
    return Sheet(shown, rows, changed)


def _changed(
    bench: Bench, plan: Plan, subjects: Sequence[Subject], marks: Sequence[Any], sign: int
) -> list[tuple[Subject, Picture, Picture, float, float]]:
    """Pictures whose score fell (-1) or rose (1), the first ones."""
    pairs = []
    for subject, mark in zip(subjects, marks, strict=True):
        before = bench.full_mark(subject).score
        if before is not None and mark.score is not None and sign * (mark.score - before) > 0:
            (picture,) = bench.draw(plan, [subject])
            pairs.append((subject, bench.original(subject).picture, picture, before, mark.score))
        if len(pairs) == MAX_CHANGED:
            break
    return pairs
