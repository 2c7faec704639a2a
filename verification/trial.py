"""Verifies one loaded candidate: all cases, then the insides of its graphs. Knows nothing of bundles as a whole."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from runtime.errors import RFError
from runtime.pipeline import Pipeline
from runtime.plans import plan_drawing
from runtime.signature import GRAPHS, GraphName
from verification.candidates import Candidate, VerifyOptions
from verification.cases import GUIDED, UNGUIDED, WINDOW, AnswerCase, Cases, DrawCase
from verification.compare import compare_answer, compare_drawing, compare_guidance, compare_windows
from verification.limits import limits_of
from verification.outcome import Outcome, record_of
from verification.subject import Subject
from verification.tally import ORDER, Failure
from verification.traces import Drawing, Remembering

_MAX_COPIED_BYTES: Final = 1 << 30  # of weights that an export copies to look inside of a graph


def verify_pipeline(
    pipeline: Pipeline,
    candidate: Candidate,
    memory: Remembering,
    cases: Cases,
    options: VerifyOptions,
    step: Callable[[str], None],
) -> Outcome:
    """Verify loaded graphs, or a loaded engine; `step` is told the name of each case."""
    trial = _Trial(pipeline, candidate, memory, cases)
    outcome, found = trial.outcome, trial.outcome.tally
    trial.answer_all(step)
    trial.draw_all(step)
    are_graphs = candidate.engine is None
    if are_graphs and candidate.variant.is_half:
        trial.check_range(options)
    if are_graphs and options.taps:
        outcome.taps = trial.compare_taps()
    if found.first is not None:
        outcome.verdict = "failed"
        if are_graphs and options.look_inside:
            outcome.inside = trial.look_inside(found.first)
    elif not found.rep_tokens or not found.answer_tokens:
        outcome.verdict, outcome.reason = "unverified", "no case could be run"
    outcome.record = record_of(outcome, pipeline.bundle, memory.reference.name, options)
    return outcome


@dataclass
class _Trial:
    """A candidate, the reference, and what has come of them so far."""

    pipeline: Pipeline
    candidate: Candidate
    memory: Remembering
    cases: Cases
    outcome: Outcome = field(init=False)

    def __post_init__(self) -> None:
        self.outcome = Outcome(candidate=self.candidate, verdict="passed")
        self.subject = Subject(self.pipeline)

    def answer_all(self, step: Callable[[str], None]) -> None:
        """Ask all questions."""
        for case in self.cases.answers:
            step(case.name)
            right = self.memory.answer(case)
            with self._skipping(case.name):
                found = self.subject.answer(case, right.ids)
                compare_answer(self.outcome.tally, self.candidate.variant.precision, case, found, right)

    def draw_all(self, step: Callable[[str], None]) -> None:
        """Draw all pictures."""
        ours: dict[str, Drawing] = {}
        theirs: dict[str, Drawing] = {}
        for case in self.cases.draws:
            step(case.name)
            expected = self.memory.draw(case)
            plan = plan_drawing(case.options, self.pipeline.bundle.manifest)
            with self._skipping(case.name):
                drawn = self.subject.draw(case, self._forced(case))
                compare_drawing(self.outcome.tally, self.candidate.variant.precision, case, plan, drawn, expected)
                ours[case.name], theirs[case.name] = drawn[0], expected[0]
        compare_guidance(self.outcome.tally, ours, theirs)
        self.draw_in_windows()

    def draw_in_windows(self) -> None:
        """Draw the tokens of a case again, one by one and in windows; in fp32 they are the same."""
        case = self._drawn(GUIDED)
        plan = plan_drawing(case.options, self.pipeline.bundle.manifest)
        size = min(WINDOW, plan.num_rep_tokens + 1)
        with self._skipping("in windows"):
            one_by_one, windowed = (
                self.subject.draw_tokens(replace(case, options=replace(case.options, window=each)))
                for each in (1, size)
            )
            is_exact = self.candidate.variant.precision == "fp32"
            compare_windows(self.outcome.tally, case, plan, one_by_one, windowed, is_exact=is_exact)

    @contextlib.contextmanager
    def _skipping(self, case: str) -> Iterator[None]:
        """Engines are built for some sizes only; graphs take them all."""
        try:
            yield
        except RFError as error:
            if self.candidate.engine is None or self.candidate.backend == "ort":
                raise
            self.outcome.skipped.append(f"{case}: {error}")

    def check_range(self, options: VerifyOptions) -> None:
        """Look for overflow inside of fp16 graphs; without onnx_ir, or quickly for huge ones, it is not looked for."""
        sizes = self.pipeline.bundle.manifest.files
        entry = self.pipeline.bundle.graph("denoiser", self.pipeline.model.variant)
        if options.profile == "quick" and sum(sizes[name].size for name in entry.files) > _MAX_COPIED_BYTES:
            return
        with contextlib.suppress(ModuleNotFoundError):
            from verification.bisect import find_overflows

            case = self._drawn(UNGUIDED if options.profile == "quick" else GUIDED)
            self.outcome.tally.failures += find_overflows(self.pipeline, case, self._forced(case))
            self.outcome.tally.range_checked = True

    def compare_taps(self) -> dict[GraphName, list[Any]]:
        """The inputs and outputs of every product, in the first step of every graph."""
        from verification.bisect import compare_taps

        def compared(graph: GraphName) -> list[Any]:
            case = self.cases.answers[0] if graph == "vision_encoder" else self._drawn(UNGUIDED)
            return compare_taps(self.pipeline, self.memory.reference, case, (graph, 0, 0), self._forced(case))

        return {graph: compared(graph) for graph in sorted(GRAPHS, key=ORDER.index)}

    def look_inside(self, failure: Failure) -> str:
        """Where in the graph a failure begins."""
        cases: tuple[DrawCase | AnswerCase, ...] = (*self.cases.draws, *self.cases.answers)
        case = next(each for each in cases if each.name == failure.case)
        limits = limits_of(self.candidate.variant.precision)
        try:
            from verification.bisect import bisect

            return bisect(self.pipeline, self.memory.reference, case, failure, limits, self._forced(case))
        except ModuleNotFoundError as error:
            return f"to look inside of the graph, install {error.name}: pip install 'rf-export[quantize]'"

    def _drawn(self, name: str) -> DrawCase:
        return next(case for case in self.cases.draws if case.name == name)

    def _forced(self, case: DrawCase | AnswerCase) -> Any:
        """The reference's tokens in a case."""
        if isinstance(case, AnswerCase):
            return self.memory.answer(case).ids
        return [each.rep_ids for each in self.memory.draw(case)]
