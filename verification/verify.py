"""Verifies every graph and engine of a bundle, and writes the verdicts where the runtime reads them.

Knows nothing of torch and of what the reference is. A fault of one case is looked for inside of the graph, where that
can be done; an engine can only be compared as a whole.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import numpy as np

from runtime.backends import create_backend
from runtime.backends.host.machine import cpu_name
from runtime.bundle.folder import Bundle, open_bundle
from runtime.bundle.verdict import Verdict, graphs_verdict, record_engine, record_graphs
from runtime.errors import RFError
from runtime.events import Progress
from runtime.pipeline import Pipeline
from runtime.plans import plan_drawing
from runtime.signature import GRAPHS, GraphName
from verification.candidates import Candidate, NotRun, VerifyOptions, find_candidates, own_reference
from verification.cases import GUIDED, UNGUIDED, AnswerCase, Cases, DrawCase, choose_cases
from verification.compare import Comparison, Failure, limits_of
from verification.graph_reference import GraphReference
from verification.subject import Subject
from verification.traces import Answer, Drawing, Reference

_MAX_COPIED_BYTES: Final = 1 << 30  # of weights that an export copies to look inside of a graph


@dataclass(kw_only=True)
class Outcome:
    """The verdict on graphs or on an engine."""

    candidate: Candidate
    verdict: Verdict
    reason: str = ""  # where nothing failed and the verdict is not "passed"
    comparison: Comparison
    skipped: list[str] = field(default_factory=list)  # cases that an engine was not built for
    inside: str = ""  # what a look into the graph tells
    taps: dict[GraphName, list[Any]] = field(default_factory=dict)  # `bisect.TapFigure`s, where they were asked for
    record: dict[str, Any] = field(default_factory=dict)  # for the manifest

    def line(self) -> str:
        """For people."""
        found, figures = self.comparison, self.record
        text = (
            f"{self.candidate.label}: {self.verdict}, {found.num_cases} cases, "
            f"worst cosine {worst_cosine(figures):.8f}, tokens {found.rep_tokens_equal}/{found.rep_tokens}, "
            f"answers {found.answer_tokens_equal}/{found.answer_tokens}, "
            f"picture PSNR {figures['picture_psnr_db']:.1f} dB"
        )
        for more in (self.record.get("first_failure"), self.inside, self.reason):
            text += f"\n    {more}" if more else ""
        return text

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        taps = {name: [asdict(tap) for tap in taps] for name, taps in self.taps.items()}
        return {"target": self.candidate.label, **self.record, **({"taps": taps} if taps else {})}


class NotRecordedError(RFError):
    """Everything was verified, and the verdicts could not be written into the bundle."""

    def __init__(self, reason: RFError, outcomes: list[Outcome | NotRun]) -> None:
        super().__init__(f"The verdicts were not recorded: {reason}")
        self.outcomes = outcomes


def worst_cosine(record: dict[str, Any]) -> float:
    """The smallest cosine of a verdict."""
    return min((each["cosine"] for tensors in record["figures"].values() for each in tensors.values()), default=-1.0)


def verify(
    path: str | Path,
    options: VerifyOptions,
    reference: "Reference | Remembering | None" = None,
    on_progress: Progress | None = None,
) -> list[Outcome | NotRun]:
    """Verify a bundle.

    Args:
        path: The bundle.
        options: What, and how.
        reference: What is right; None takes the bundle's own fp32 graphs. One that remembers serves several calls.
        on_progress: Told before every case.

    Returns:
        What came of each: graphs first, then engines.

    Raises:
        RFError: The bundle is damaged, or has no fp32 graphs and there is no reference, or cannot be written.
        NotRecordedError: The verdicts, which it holds, could not be written into the bundle at the end.
    """
    bundle = open_bundle(path, verify="hash")
    candidates = list(find_candidates(bundle, options))
    own = None
    if reference is None:
        own = own_reference(bundle)
        reference = GraphReference(_load(bundle, own, options))
        candidates = [each for each in candidates if isinstance(each, NotRun) or each != own]
    if not candidates:
        raise RFError(f"{bundle.path} has nothing of that kind to verify{', but its reference' if own else ''}.")
    if options.record:
        _require_recordable(bundle, candidates)
    memory = reference if isinstance(reference, Remembering) else Remembering(reference)
    fixed = [entry.signature.cache_slots for entry in bundle.manifest.graphs if entry.signature.cache_slots]
    cases = choose_cases(
        bundle.manifest.model,
        min(fixed, default=None),
        options.profile,
        seed=options.seed,
        num_random=options.num_random,
    )
    runnable = [candidate for candidate in candidates if isinstance(candidate, Candidate)]
    total = len(runnable) * (len(cases.draws) + len(cases.answers))
    outcomes: list[Outcome | NotRun] = []
    done = 0
    report = on_progress or (lambda what, done, total: None)
    for candidate in candidates:
        if isinstance(candidate, NotRun):
            outcomes.append(candidate)
            continue

        def step(name: str, label: str = candidate.label) -> None:
            nonlocal done
            report(f"{label}: {name}", done, total)
            done += 1

        outcome = verify_pipeline(_load(bundle, candidate, options), candidate, memory, cases, options, step)
        if own is not None:
            _stand_on(outcome, bundle, own)
        outcomes.append(outcome)
    report("done", total, total)
    if options.record:
        try:
            record(bundle, outcomes)
        except RFError as error:
            raise NotRecordedError(error, outcomes) from error
    return outcomes


def _require_recordable(bundle: Bundle, candidates: list[Candidate | NotRun]) -> None:
    """Before the work is done: whether `record` could write the verdicts."""
    for candidate in candidates:
        if isinstance(candidate, Candidate):
            folder = bundle.path if candidate.engine is None else candidate.engine.path
            if not os.access(folder, os.W_OK | os.X_OK):
                raise RFError(
                    f"Nothing can be written into {folder}, where the verdict would go. Make it writable, or verify "
                    "without recording: --no-record (VerifyOptions: record=False)."
                )


def record(bundle: Bundle, outcomes: list[Outcome | NotRun]) -> None:
    """Write the verdicts into the bundle."""
    graphs = {}
    for outcome in outcomes:
        if isinstance(outcome, NotRun):
            continue
        candidate = outcome.candidate
        if candidate.engine is None:
            graphs[candidate.variant.key] = outcome.record
        else:
            record_engine(candidate.engine, outcome.record)
    if graphs:
        record_graphs(bundle, graphs)


def _stand_on(outcome: Outcome, bundle: Bundle, own: Candidate) -> None:
    """What agrees with graphs that are not verified is not verified."""
    verdict, reason = graphs_verdict(bundle, own.variant)
    if outcome.verdict == "passed" and verdict != "passed":
        outcome.verdict = "unverified"
        outcome.reason = f"it agrees with the fp32 graphs, but these are not verified: {reason}"
        outcome.record |= {"verdict": outcome.verdict, "reason": outcome.reason}


class Remembering:
    """A reference that draws every case once."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._drawings: dict[str, list[Drawing]] = {}
        self._answers: dict[str, Answer] = {}

    def draw(self, case: DrawCase) -> list[Drawing]:
        """As the reference does."""
        if case.name not in self._drawings:
            self._drawings[case.name] = self.reference.draw(case)
        return self._drawings[case.name]

    def answer(self, case: AnswerCase) -> Answer:
        """As the reference does."""
        if case.name not in self._answers:
            self._answers[case.name] = self.reference.answer(case)
        return self._answers[case.name]


def _load(bundle: Bundle, candidate: Candidate, options: VerifyOptions) -> Pipeline:
    return Pipeline.load(
        bundle.path,
        candidate.variant.precision,
        candidate.backend,
        options.num_threads,
        candidate.engine.path if candidate.engine else "none",
        "size",
        candidate.variant.dialect,
        allow_unverified=True,
    )


def verify_pipeline(
    pipeline: Pipeline,
    candidate: Candidate,
    memory: Remembering,
    cases: Cases,
    options: VerifyOptions,
    step: Callable[[str], None],
) -> Outcome:
    """Verify loaded graphs, or a loaded engine; `step` is told the name of each case."""
    subject = Subject(pipeline)
    found = Comparison(candidate.variant.precision)
    outcome = Outcome(candidate=candidate, verdict="passed", comparison=found)
    compare_all(subject, memory, cases, outcome, step)
    if candidate.variant.is_half and candidate.engine is None:
        _check_range(pipeline, memory, cases, options, found)
    if options.taps and candidate.engine is None:
        outcome.taps = _compare_taps(pipeline, memory, cases)
    if found.first is not None:
        outcome.verdict = "failed"
        if candidate.engine is None and options.look_inside:
            outcome.inside = _look_inside(pipeline, memory, cases, found.first, found)
    elif not found.rep_tokens or not found.answer_tokens:
        outcome.verdict, outcome.reason = "unverified", "no case could be run"
    outcome.record = _record(pipeline.bundle, outcome, memory.reference, options)
    return outcome


def compare_all(
    subject: Subject, memory: Remembering, cases: Cases, outcome: Outcome, step: Callable[[str], None]
) -> None:
    """Draw and answer all cases with a subject and compare."""
    found = outcome.comparison
    for question in cases.answers:
        step(question.name)
        right = memory.answer(question)
        try:
            found.answer(question, subject.answer(question, right.ids), right)
        except RFError as error:
            _skip(outcome, question.name, error)
    ours: dict[str, Drawing] = {}
    theirs: dict[str, Drawing] = {}
    for case in cases.draws:
        step(case.name)
        expected = memory.draw(case)
        plan = plan_drawing(case.options, subject.pipeline.bundle.manifest)
        try:
            drawn = subject.draw(case, [each.rep_ids for each in expected])
        except RFError as error:
            _skip(outcome, case.name, error)
            continue
        found.drawing(case, [plan] * len(drawn), drawn, expected)
        ours[case.name], theirs[case.name] = drawn[0], expected[0]
    found.guidance_effect(ours, theirs)


def _skip(outcome: Outcome, case: str, error: RFError) -> None:
    """Engines are built for some sizes only; graphs take them all."""
    if outcome.candidate.engine is None or outcome.candidate.backend == "ort":
        raise error
    outcome.skipped.append(f"{case}: {error}")


def _check_range(
    pipeline: Pipeline, memory: Remembering, cases: Cases, options: VerifyOptions, found: Comparison
) -> None:
    """Look for overflow inside of fp16 graphs; without onnx_ir, or quickly for huge ones, it is not looked for."""
    sizes = pipeline.bundle.manifest.files
    entry = pipeline.bundle.graph("denoiser", pipeline.model.variant)
    if options.profile == "quick" and sum(sizes[name].size for name in entry.files) > _MAX_COPIED_BYTES:
        return
    with contextlib.suppress(ModuleNotFoundError):
        from verification.bisect import find_overflows

        name = UNGUIDED if options.profile == "quick" else GUIDED
        case = next(each for each in cases.draws if each.name == name)
        found.failures += find_overflows(pipeline, case, [each.rep_ids for each in memory.draw(case)])
        found.range_checked = True


def _compare_taps(pipeline: Pipeline, memory: Remembering, cases: Cases) -> dict[GraphName, list[Any]]:
    from verification.bisect import compare_taps

    question, drawn = cases.answers[0], next(case for case in cases.draws if case.name == UNGUIDED)
    forced = [each.rep_ids for each in memory.draw(drawn)]
    taps: dict[GraphName, list[Any]] = {
        "vision_encoder": compare_taps(
            pipeline, memory.reference, question, ("vision_encoder", 0, 0), memory.answer(question).ids
        )
    }
    for name in GRAPHS:
        if name != "vision_encoder":
            taps[name] = compare_taps(pipeline, memory.reference, drawn, (name, 0, 0), forced)
    return taps


def _look_inside(pipeline: Pipeline, memory: Remembering, cases: Cases, failure: Failure, found: Comparison) -> str:
    from verification.bisect import bisect

    forced: Any
    case: DrawCase | AnswerCase
    try:
        drawn = next((each for each in cases.draws if each.name == failure.case), None)
        if drawn is not None:
            case, forced = drawn, [each.rep_ids for each in memory.draw(drawn)]
        else:
            case = next(each for each in cases.answers if each.name == failure.case)
            forced = memory.answer(case).ids
        return bisect(pipeline, memory.reference, case, failure, limits_of(found.precision), forced).text
    except ModuleNotFoundError as error:
        return f"to look inside of the graph, install {error.name}: pip install 'rf-export[quantize]'"


def _record(bundle: Bundle, outcome: Outcome, reference: Reference, options: VerifyOptions) -> dict[str, Any]:
    candidate, found = outcome.candidate, outcome.comparison
    backend = create_backend(candidate.backend).target()
    graphs = {name: bundle.graph_sha256(name, candidate.variant) for name in GRAPHS}
    return {
        "verdict": outcome.verdict,
        "reference": reference.name,
        "profile": options.profile,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {backend.backend: backend.version.split()[0], "numpy": np.__version__},
        "cpu": cpu_name(),
        "graphs": graphs,
        "limits": asdict(limits_of(found.precision)),
        **found.to_dict(),
        **({"skipped": outcome.skipped} if outcome.skipped else {}),
        **({"reason": outcome.reason} if outcome.reason else {}),
        "first_failure": str(found.first) if found.first else None,
        **({"inside": outcome.inside} if outcome.inside else {}),
        **({"failures": [str(failure) for failure in found.failures]} if found.failures else {}),
    }
