"""Our engine drawing the same picture and answering the same questions, through the runtime's own stages.

Knows nothing of torch. What is timed is what ships: the noise, the cache writes, and windows of tokens as the engine's
build has measured them. Stages are the backend's: loops over sessions, or on a GPU one CUDA graph each.
"""

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rf_export.benchmark.workload import DrawingWork, ReadingWork
from runtime.backends.interface import TextRow
from runtime.events import result_of
from runtime.options import AnswerPlan
from runtime.pipeline import Pipeline
from runtime.plans import plan_drawing
from runtime.understanding.answers import answer

Value = TypeVar("Value")


class Compiled:
    """Draws the workload's picture; `draw_tokens` and `denoise` may be repeated.

    Args:
        pipeline: What draws.
        workload: What to draw.
        num_requests: So many times the same picture, drawn together.
        previews: Report every step, as it is needed to time each.
    """

    def __init__(
        self, pipeline: Pipeline, workload: DrawingWork, *, num_requests: int = 1, previews: bool = False
    ) -> None:
        self.pipeline, self.work, self._num_requests = pipeline, workload, num_requests
        self.plan = plan_drawing(workload.options, pipeline.bundle.manifest, pipeline.model.window)
        self.stages = pipeline.model.start(
            num_requests, len(workload.prompt_ids), self.plan.num_rep_tokens, previews=previews
        )

    def prefill(self) -> None:
        """Read the prompt."""
        self.stages.prefill([self.work.prompt_ids.tolist()] * self._num_requests)

    def token_events(self, forced: NDArray[np.int64] | None = None) -> Generator[Any, None, NDArray[np.int64]]:
        """The representation stage after `prefill`, its events, and what was drawn: `[R, N]`."""
        rows = None if forced is None else np.tile(forced, (self._num_requests, 1))
        return self.stages.draw_tokens(self.plan, self._fill_noise, rows)

    def pixel_events(self, num_steps: int) -> Generator[Any, None, NDArray[np.float32]]:
        """The first `num_steps` Euler steps after the tokens, their events, and `[R, 3, H, W]`."""
        noise = np.tile(self.work.noise, (self._num_requests, 1, 1, 1))
        return self.stages.denoise(self.plan, self.work.times[: num_steps + 1], noise)

    def draw_tokens(self, forced: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """The representation stage after `prefill`, `[N]`: what was drawn; it goes on with `forced` where given."""
        drawn: NDArray[np.int64] = result_of(self.token_events(forced))[0]
        return drawn

    def turn_tokens(self) -> int:
        """The whole stage: it may be launched at once. Returns the number of runs."""
        self.draw_tokens()
        return self.work.num_decoder_runs

    def denoise(self, num_steps: int) -> NDArray[np.float32]:
        """The first `num_steps` Euler steps after `draw_tokens`, `[3, H, W]`."""
        pixels: NDArray[np.float32] = result_of(self.pixel_events(num_steps))[0]
        return pixels

    def _fill_noise(self, request: int, token: int, out: NDArray[np.float32]) -> None:
        out[:] = self.work.gumbel[token]


class CompiledReader:
    """Answers the workload's questions; everything may be repeated after `prepare`."""

    def __init__(self, pipeline: Pipeline, workload: ReadingWork) -> None:
        self.pipeline, self.work = pipeline, workload
        self._model = pipeline.bundle.manifest.model

    def prepare(self) -> None:
        """Read the picture and the first question into a row for the answer, the picture into one for the second."""
        features = self.encode()
        self._answering, self._asked = self.pipeline.model.text_row(), self.pipeline.model.text_row()
        for row in (self._answering, self._asked):
            self._ask(row, [*self._image_ids(features), *self.work.first.tolist()], features)

    def encode(self) -> NDArray[Any]:
        """The tokens of the picture, `[F, d]`."""
        outputs = self.pipeline.sessions["vision_encoder"].run({"pixels": self.work.pixels[None]})
        features: NDArray[Any] = outputs["image_features"][0]
        return features

    def first_word(self) -> int:
        """Encode the picture, read it and the first question, in a new row: the first word of the answer."""
        features = self.encode()
        return self._ask(
            self.pipeline.model.text_row(), [*self._image_ids(features), *self.work.first.tolist()], features
        )

    def second_question(self) -> int:
        """Read a second question after the picture that was read before: the first word of the answer."""
        self._asked.rewind(self.work.num_image_tokens)
        return self._ask(self._asked, self.work.second.tolist())

    def words(self, forced: Sequence[int] | None = None) -> list[int]:
        """The answer to the first question, `[A]`, a run for each word; it goes on with `forced` where given."""
        self._answering.rewind(self.work.num_image_tokens + len(self.work.first) - 1)
        last, plan = self.work.first[-1:].tolist(), _greedy(self.work.num_words)
        steps = answer(self._answering, last, _NOTHING, plan, _no_noise, forced=forced)
        return [step.token_id for step in steps]

    def _image_ids(self, features: NDArray[Any]) -> range:
        return range(self._model.vocab_size, self._model.vocab_size + len(features))

    def _ask(self, row: TextRow, prompt: list[int], features: NDArray[Any] | None = None) -> int:
        steps = answer(row, prompt, _NOTHING if features is None else features, _greedy(1), _no_noise)
        return next(iter(steps)).token_id


_NOTHING = np.zeros((0, 0), np.float32)


def _no_noise(step: int, out: NDArray[np.float32]) -> None:
    raise AssertionError("a greedy answer has no noise")


def _greedy(num_words: int) -> AnswerPlan:
    return AnswerPlan(max_tokens=num_words, temperature=1.0, top_k=1, top_p=1.0, repetition_penalty=1.0, greedy=True)
