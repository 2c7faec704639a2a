"""What takes how long on this machine: the token stage by its window, and whole pictures by their plan.

All contenders take turns, so that a machine that is busy is busy for all of them. Knows nothing of scores.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.backends.windows import WINDOWS
from runtime.events import result_of
from runtime.options import GenerationOptions, Plan
from runtime.pipeline import Pipeline
from runtime.request import fill_gumbel
from tuning.subjects import Subject
from verification.measures.timing import Timing, interleave, ratio

NUM_SUBJECTS: Final = 4
_MOST_SECONDS: Final = 60.0


@dataclass(frozen=True)
class WindowTimes:
    """Token stages of a few prompts by their window.

    Attributes:
        best: The fastest window that is faster than 1 for sure; 1 where none is.
        timings: Seconds of a token stage.
        different: Tokens that are other ones than with a window of 1, by window: near ties.
    """

    best: int
    timings: Mapping[int, Timing]
    different: Mapping[int, int]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: milliseconds."""
        return {
            str(window): {"ms": round(1e3 * timing.median, 3), "tokens_different": self.different[window]}
            for window, timing in self.timings.items()
        }


def time_windows(pipeline: Pipeline, subjects: Sequence[Subject], num_rounds: int) -> WindowTimes:
    """Time whole token stages, and count tokens that differ."""
    with contextlib.ExitStack() as stack:
        stages = [_Stage(pipeline, subject, stack) for subject in subjects[:NUM_SUBJECTS]]
        longest = stages[0].request.plan.num_rep_tokens + 1
        windows = [window for window in WINDOWS if window <= longest]
        drawn = {window: np.stack([stage.draw(window) for stage in stages]) for window in windows}
        contenders = {str(window): _run(stages, window) for window in windows}
        timings = interleave(contenders, num_rounds, most_seconds=_MOST_SECONDS)
    fastest = min(windows, key=lambda window: timings[str(window)].median)
    is_sure = fastest > 1 and ratio(timings["1"], timings[str(fastest)])["low"] > 1
    return WindowTimes(
        fastest if is_sure else 1,
        {window: timings[str(window)] for window in windows},
        {window: int((drawn[window] != drawn[1]).sum()) for window in windows},
    )


class _Stage:
    """The token stage of one picture, to be run again and again."""

    def __init__(self, pipeline: Pipeline, subject: Subject, stack: contextlib.ExitStack) -> None:
        (self.request,) = pipeline.check([subject.prompt], seed=subject.seed, options=GenerationOptions(window=1))
        self._stages = stack.enter_context(contextlib.closing(pipeline.begin([self.request], previews=False)))
        self._stages.prefill([self.request.ids])

    def draw(self, window: int) -> npt.NDArray[np.int64]:
        """The tokens [N]."""
        plan = replace(self.request.plan, window=window)
        fill_noise = functools.partial(fill_gumbel, [self.request])
        drawn: npt.NDArray[np.int64] = result_of(self._stages.draw_tokens(plan, fill_noise, None))[0]
        return drawn


def _run(stages: Sequence[_Stage], window: int) -> Callable[[], int]:
    def run() -> int:
        for stage in stages:
            stage.draw(window)
        return len(stages)

    return run


def time_plans(
    pipeline: Pipeline, plans: Mapping[str, Plan], subjects: Sequence[Subject], num_rounds: int
) -> dict[str, Timing]:
    """Time whole pictures, tokens and all, one by one."""

    def draw(plan: Plan) -> int:
        for subject in subjects[:NUM_SUBJECTS]:
            pipeline.draw(subject.prompt, seed=subject.seed, options=GenerationOptions(plan=plan))
        return len(subjects[:NUM_SUBJECTS])

    contenders = {name: functools.partial(draw, plan) for name, plan in plans.items()}
    return interleave(contenders, num_rounds, most_seconds=_MOST_SECONDS)
