"""Draws the same pictures under many plans: the representation tokens once, by the full plan, and only pixels anew.

Knows nothing of scores, and nothing of which plan is better.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from runtime.events import PictureEvent
from runtime.options import DrawingPlan, GenerationOptions, Plan
from runtime.pipeline import Pipeline
from runtime.plans import plan_drawing
from tuning.subjects import Subject

BATCH: Final = 8  # pictures drawn together
Picture = npt.NDArray[np.uint8]  # [H, W, 3]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A picture, and the tokens [N] that it was drawn from."""

    picture: Picture
    rep_ids: npt.NDArray[np.int64]


def batches(subjects: Sequence[Subject]) -> Iterator[list[Subject]]:
    """Subjects that follow one another, so that the seeds of a batch do too."""
    waiting = iter(subjects)
    while batch := list(islice(waiting, BATCH)):
        yield batch


class Studio:
    """Draws with one pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def plan(self, plan: Plan) -> DrawingPlan:
        """Every value of it, for pictures of the default size."""
        return plan_drawing(GenerationOptions(plan=plan), self.pipeline.bundle.manifest)

    def check(self, subjects: Sequence[Subject]) -> None:
        """Refuse what the model cannot draw before anything is drawn; raises RFError."""
        for subject in subjects:
            self.pipeline.check([subject.prompt], seed=subject.seed)

    def originals(self, subjects: Sequence[Subject]) -> list[Drawn]:
        """Draw a batch by the full plan, with tokens of its own."""
        return self._draw(subjects, GenerationOptions(), None)

    def again(self, subjects: Sequence[Subject], rep_ids: Sequence[npt.NDArray[np.int64]], plan: Plan) -> list[Picture]:
        """Draw a batch by a plan from given tokens, which then take a single pass, or few."""
        options = GenerationOptions(plan=plan, window=len(rep_ids[0]) + 1)
        return [drawn.picture for drawn in self._draw(subjects, options, np.stack(rep_ids))]

    def _draw(
        self, subjects: Sequence[Subject], options: GenerationOptions, rep_ids: npt.NDArray[np.int64] | None
    ) -> list[Drawn]:
        prompts = [subject.prompt for subject in subjects]
        events = self.pipeline.generate(
            prompts, seed=subjects[0].seed, options=options, rep_ids=rep_ids, previews=False
        )
        return [Drawn(event.picture, event.rep_ids) for event in events if isinstance(event, PictureEvent)]


def num_rows(plan: DrawingPlan) -> int:
    """Rows of the denoiser that a picture takes: one per step, and one more per step that is guided."""
    return plan.num_steps + plan.num_guided_steps
