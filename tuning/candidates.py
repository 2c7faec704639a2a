"""The plans that are worth a try: few numbers, coarse first, and around the best of them finer ones.

Knows nothing of how good a plan is. Which part of a drawing has to be guided differs between models, so it is tried out
(docs/plans.md); guiding only late costs quality wherever it was measured, so each interval begins with the noise.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from runtime.bundle.manifest import SamplingDefaults
from runtime.options import DrawingPlan, Plan
from tuning.drawings import num_rows

STEPS: Final = (4, 6, 8, 12, 16)
SHIFTS: Final = (1.0, 2.0)  # times the default
ENDS: Final = (0.5, 1.0)  # of guidance
FINER_STEPS: Final = (-2, -1, 0, 1)
FINER_SHIFTS: Final = (1.0, 1.5)
FINER_ENDS: Final = (-0.3, -0.2, 0.0, 0.2)


@dataclass(frozen=True)
class Candidate:
    """A plan to try, and the rows of the denoiser that a picture takes by it."""

    plan: Plan
    rows: int


class Candidates:
    """Makes plans, and none that draws the same as one before or costs as much as the full one.

    Args:
        defaults: Of the bundle.
        resolve: Gives every value of a plan.
    """

    def __init__(self, defaults: SamplingDefaults, resolve: Callable[[Plan], DrawingPlan]) -> None:
        self._defaults, self._resolve = defaults, resolve
        full = resolve(Plan())
        self.full = Candidate(Plan(), num_rows(full))
        self._seen = {_content(full)}
        self._is_guided = full.pix_guidance_scale != 1

    def coarse(self) -> list[Candidate]:
        """Those that are tried first; the cheapest come first."""
        return self._new(
            (steps, shift * self._defaults.shift, end) for steps in STEPS for shift in SHIFTS for end in ENDS
        )

    def finer(self, best: Candidate) -> list[Candidate]:
        """Cheaper ones near a plan, the cheapest first."""
        steps, shift, guided = best.plan.num_steps, best.plan.shift, best.plan.guided
        assert steps is not None
        shift, end = shift or self._defaults.shift, (guided or self._defaults.guided)[1]
        found = self._new(
            (steps + more, shift * factor, round(end + later, 3))
            for more in FINER_STEPS
            for factor in FINER_SHIFTS
            for later in FINER_ENDS
            if steps + more >= 2 and 0 < end + later <= 1
        )
        return [each for each in found if each.rows < best.rows]

    def _new(self, values: Iterator[tuple[int, float, float]]) -> list[Candidate]:
        found: Sequence[Candidate] = [each for each in map(self._candidate, values) if each is not None]
        return sorted(found, key=lambda each: each.rows)

    def _candidate(self, values: tuple[int, float, float]) -> Candidate | None:
        steps, shift, end = values
        start, most = self._defaults.guided
        guided = (start, max(start, min(end, most)))
        plan = Plan(
            num_steps=steps, shift=shift, guided=guided if self._is_guided and guided != self._defaults.guided else None
        )
        resolved = self._resolve(plan)
        content, rows = _content(resolved), num_rows(resolved)
        if content in self._seen or rows >= self.full.rows:
            return None
        self._seen.add(content)
        return Candidate(plan, rows)


def _content(plan: DrawingPlan) -> tuple[object, ...]:
    """What decides the pixels: two intervals with the same steps in them are one."""
    return plan.times, tuple(map(plan.is_guided, plan.times[:-1]))
