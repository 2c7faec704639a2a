"""Lets the runtime draw and answer a case, with whatever graphs or engine a pipeline has. Knows no reference.

The loops, caches, noise and times are the runtime's own: what `generate` runs is what is traced.
"""

import contextlib
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.backends.host.stages import HostStages
from runtime.errors import RFError
from runtime.events import PictureEvent, StepEvent, TokenEvent
from runtime.pipeline import Pipeline, draw_stages
from runtime.plans import plan_drawing
from runtime.request import make_requests
from runtime.understanding.answers import answer
from verification.cases import AnswerCase, DrawCase
from verification.traces import Answer, Drawing, Floats


class Subject:
    """A loaded pipeline that is looked at while it works."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def draw(self, case: DrawCase, forced: Sequence[npt.NDArray[np.int64]] | None = None) -> list[Drawing]:
        """Draw all requests of a case together; representation tokens go on from `forced`, [R] of [N]."""
        manifest = self.pipeline.bundle.manifest
        plan = plan_drawing(case.options, manifest)
        stacked = None if forced is None else np.stack(forced)
        requests = make_requests([list(ids) for ids in case.prompts], case.seed, plan, stacked)
        tokens: list[TokenEvent] = []
        steps: list[StepEvent] = []
        pictures: dict[int, Floats] = {}
        stages = self.pipeline.begin(requests)
        try:
            for event in draw_stages(stages, requests, self.pipeline.precision):
                if isinstance(event, TokenEvent):
                    tokens.append(event)
                elif isinstance(event, StepEvent):
                    steps.append(event)
                else:
                    assert isinstance(event, PictureEvent)
                    pictures[event.index] = event.pixels
        except RFError:
            if not steps:
                raise  # else the picture is not finite, and what led there is what is looked for
        finally:
            caches = _caches(stages, len(requests))
            stages.close()
        return [
            Drawing(
                logits=np.stack([event.logits[row] for event in tokens]),
                rep_ids=np.array([event.rep_ids[row] for event in tokens]),
                cache=caches[row][0],
                uncond_cache=caches[row][1],
                times=np.array([*(event.t for event in steps), *(event.t_next for event in steps[-1:])], np.float32),
                x_preds=np.array([event.x_pred[row] for event in steps]),
                x_nexts=np.array([event.x_next[row] for event in steps]),
                pixels=pictures[row] if row in pictures else steps[-1].x_next[row],
            )
            for row in range(len(requests))
        ]

    def draw_tokens(self, case: DrawCase) -> list[TokenEvent]:
        """The representation stage of a case alone, with tokens of its own."""
        plan = plan_drawing(case.options, self.pipeline.bundle.manifest)
        requests = make_requests([list(ids) for ids in case.prompts], case.seed, plan)
        with contextlib.closing(self.pipeline.run(requests)) as events:
            tokens = itertools.islice(events, plan.num_rep_tokens)
            return [event for event in tokens if isinstance(event, TokenEvent)]

    def answer(self, case: AnswerCase, forced: Sequence[int] | None = None) -> Answer:
        """Answer a question; the answer goes on from `forced`."""
        pipeline, model = self.pipeline, self.pipeline.bundle.manifest.model
        sessions = pipeline.sessions
        features = [
            sessions["vision_encoder"].run({"pixels": picture[None]})["image_features"][0]
            for picture in case.pictures()
        ]
        row = pipeline.model.text_row()
        images = np.concatenate(features) if features else np.zeros((0, model.hidden_size), row.kv)
        prompt = [*range(model.vocab_size, model.vocab_size + len(images)), *case.question]

        def fill_noise(step: int, out: npt.NDArray[np.float32]) -> None:
            out[:] = case.gumbel(step, len(out))

        steps = list(answer(row, prompt, images, case.plan(), fill_noise, forced=forced))
        return Answer(
            features=images, ids=[step.token_id for step in steps], logits=np.stack([step.logits for step in steps])
        )


def _caches(stages: object, num_requests: int) -> list[tuple[Floats | None, Floats | None]]:
    """What every request has in the cache, and its unconditional row; None where there is none, or on a device."""
    if not isinstance(stages, HostStages):
        return [(None, None)] * num_requests
    values, lengths = stages.cache.values, stages.cache.lengths
    rows = [values[:, row, :, :length].copy() if length else None for row, length in enumerate(lengths)]
    return list(zip(rows[:num_requests], rows[num_requests:], strict=True))
