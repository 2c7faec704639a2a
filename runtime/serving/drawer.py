"""Draws and answers for an event loop: any number of callers, one pipeline, bounded queues.

    drawer = Drawer(Pipeline.load("bundle", num_threads=1))
    async for event in drawer.draw(Drawing(prompt="a red car", seed=7)):
        ...

Knows no HTTP. Pictures are drawn on a `Scheduler`, questions are answered in threads of their own. Closing a generator,
or cancelling the task that reads it, stops the work after the step that runs.
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from functools import partial
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from runtime import events
from runtime.backends.interface import keep_drawn
from runtime.bundle.manifest import Manifest
from runtime.commands.provenance import common_parameters, parameters_of
from runtime.errors import DrawingCancelledError, RFError
from runtime.options import GenerationOptions
from runtime.pictures.png import encode_png
from runtime.pictures.token_file import PNG_KEY
from runtime.pipeline import Pipeline
from runtime.plans import plan_drawing
from runtime.scheduling.handle import DrawingHandle
from runtime.scheduling.scheduler import Scheduler
from runtime.serving.edits import choose_tokens, read_edits, with_own_size
from runtime.serving.mailbox import from_thread
from runtime.serving.metrics import Metrics
from runtime.serving.orders import (
    Accepted,
    Answer,
    AnswerEvent,
    Drawing,
    DrawingEvent,
    Picture,
    Preview,
    Progress,
    Question,
    Word,
    preview_steps,
)

_MOST_WORDS: Final = 2000  # of a vocabulary that is told as a whole
_LONGEST_WAIT_S: Final = 60  # that anybody is advised


class DrawsAndAnswers(Protocol):
    """What the application needs; a `Drawer` is one."""

    metrics: Metrics

    @property
    def max_queue(self) -> int:
        """As of `Drawer`, like all that follows."""

    @property
    def state(self) -> Literal["ready", "stopping", "broken"]:
        """Whether it takes work."""

    @property
    def retry_after_s(self) -> int:
        """When to come again."""

    async def info(self) -> dict[str, Any]:
        """What the model is."""

    async def metrics_text(self) -> bytes:
        """What was done, for Prometheus."""

    async def warm_up(self) -> None:
        """Make ready."""

    async def close(self) -> None:
        """End."""

    def draw(self, drawing: Drawing) -> AsyncGenerator[DrawingEvent, None]:
        """Draw."""

    def ask(self, question: Question) -> AsyncGenerator[AnswerEvent, None]:
        """Answer."""


class Drawer:
    """What a server needs of a pipeline.

    Args:
        pipeline: Draws and answers.
        max_batch: Pictures drawn together, at most.
        max_queue: Pictures that wait, and questions that wait, at most.
        num_workers: Threads that run graphs; None makes one for each core that the pipeline's threads leave.
        max_steps: Denoising steps that a caller may ask for.

    Attributes:
        metrics: What was done.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        max_batch: int = 8,
        max_queue: int = 64,
        num_workers: int | None = None,
        max_steps: int = 250,
    ) -> None:
        self.metrics = Metrics()
        self._pipeline = pipeline
        self._scheduler = Scheduler(
            pipeline, max_batch=max_batch, max_queue=max_queue, num_workers=num_workers, on_step=self.metrics.on_step
        )
        self._max_queue, self._max_steps = max_queue, max_steps
        self._is_stopping = False
        self._drawings: set[DrawingHandle] = set()
        self._num_questions = 0
        self._seconds_per_picture = 0.5  # of late; what a caller is told to wait depends on it
        self._last_finish = 0.0
        # A thread waits for each picture, another one answers: both only as many as there may be.
        self._waiters = ThreadPoolExecutor(2 * max_batch + max_queue, "rf-waiter")
        self._answerers = ThreadPoolExecutor(num_workers or 1, "rf-answer")
        counts: dict[str, Callable[[], float]] = {
            stage: partial(self._count, stage) for stage in ("queued", "tokens", "pixels")
        }
        self.metrics.watch({**counts, "questions": lambda: self._num_questions})

    @property
    def max_queue(self) -> int:
        """Pictures that may wait."""
        return self._max_queue

    @property
    def state(self) -> Literal["ready", "stopping", "broken"]:
        """Whether it takes work: not while it stops, and not where a bug has ended a worker."""
        return "stopping" if self._is_stopping else "broken" if self._scheduler.closed else "ready"

    @property
    def retry_after_s(self) -> int:
        """When a caller who found the queue full should come again."""
        return max(1, min(_LONGEST_WAIT_S, math.ceil(len(self._drawings) * self._seconds_per_picture / 2)))

    async def info(self) -> dict[str, Any]:
        """What the model is and can do, JSON-ready."""
        manifest, vocabulary = self._manifest, self._pipeline.model.tokenizer.vocabulary
        model, defaults = manifest.model, manifest.sampling
        names: tuple[Literal["paper", "tuned"], ...] = ("paper",) if manifest.tuned is None else ("paper", "tuned")
        plans = [(name, plan_drawing(GenerationOptions(plan=name), manifest)) for name in names]
        knows_words_only = not vocabulary.pieces and len(vocabulary.words) <= _MOST_WORDS
        return {
            "bundle_id": manifest.bundle_id,
            "precision": self._pipeline.precision,
            "num_parameters": model.num_parameters,
            "cell": model.cell,
            "max_grid": model.max_grid,
            "max_tokens": model.max_positions - 2,
            "height": model.default_height,
            "width": model.default_width,
            "num_steps": defaults.num_steps,
            "max_steps": self._max_steps,
            "guidance": defaults.pix_guidance_scale,
            "plans": {name: {"steps": each.num_steps, "guidance": each.pix_guidance_scale} for name, each in plans},
            "rep_vocab_size": model.rep_vocab_size,
            "answers": manifest.understanding is not None,
            "words": sorted(vocabulary.words) if knows_words_only else None,
        }

    async def metrics_text(self) -> bytes:
        """What was done, for Prometheus."""
        return self.metrics.text()

    async def warm_up(self) -> None:
        """Draw once, so that the first caller does not wait for what is made once."""
        await asyncio.to_thread(self.draw_once)

    def draw_once(self) -> None:
        """Draw with one step."""
        self._pipeline.draw("", options=GenerationOptions(num_steps=1))

    async def draw(self, drawing: Drawing) -> AsyncGenerator[DrawingEvent, None]:
        """Draw a picture: `Accepted`, what was asked for on the way, and the `Picture`.

        Raises:
            RFError: It cannot be drawn; "busy" where the queue is full.
        """
        started = time.monotonic()
        handle = None
        try:
            drawing = with_own_size(drawing, self._manifest)
            self._require_few_steps(drawing.options)
            edits = read_edits(drawing, self._manifest)
            rep_ids = await choose_tokens(drawing, edits, self._manifest, self._draw_tokens)
            handle = self._submit(
                drawing, drawing.seed, rep_ids, all_events=drawing.num_previews or drawing.tells_steps
            )
            yield Accepted()
            shown = from_thread(lambda: self._events_of(handle, drawing), handle.cancel, self._waiters)
            async with aclosing(shown) as items:
                async for item in items:
                    self._count_event(item, started)
                    yield item
        except RFError as error:
            self.metrics.refused.labels(error.kind).inc()
            raise
        finally:
            if handle is not None:
                self._forget(handle)

    async def ask(self, question: Question) -> AsyncGenerator[AnswerEvent, None]:
        """Answer a question: `Accepted`, each `Word`, and the `Answer`.

        Raises:
            RFError: A picture, words or options that the model cannot take; "busy" where too many questions wait.
        """
        given_up, is_done = threading.Event(), False
        try:
            self._require_ready()
            if self._num_questions >= self._max_queue:
                raise RFError(f"{self._num_questions} questions wait already. Ask again later.", "busy")
            self._num_questions += 1
            try:
                said = from_thread(lambda: self._answer(question, given_up), given_up.set, self._answerers)
                async with aclosing(said) as items:
                    async for item in items:
                        is_done = isinstance(item, Answer)
                        self.metrics.answers.inc(is_done)
                        yield item
            finally:
                self._num_questions -= 1
        except RFError as error:
            self.metrics.refused.labels(error.kind).inc()
            raise
        except (GeneratorExit, asyncio.CancelledError):
            self.metrics.cancelled.labels("question").inc(not is_done)
            raise

    def stop(self) -> None:
        """Take no more work."""
        self._is_stopping = True

    async def close(self, pending: Literal["finish", "cancel"] = "finish") -> None:
        """Take no more work, and end the threads after what is there is finished or cancelled."""
        self.stop()
        await asyncio.to_thread(self._scheduler.close, pending)
        for pool in (self._waiters, self._answerers):
            pool.shutdown(wait=False, cancel_futures=pending == "cancel")

    @property
    def _manifest(self) -> Manifest:
        return self._pipeline.bundle.manifest

    def _require_ready(self) -> None:
        if self.state != "ready":
            raise RFError("The server takes no more work. Ask another one, or come again later.", "busy")

    def _require_few_steps(self, options: GenerationOptions) -> None:
        num_steps = plan_drawing(options, self._manifest).num_steps
        if num_steps > self._max_steps:
            raise RFError(f"A picture may have {self._max_steps} steps here, got {num_steps}. Ask for fewer.")

    def _submit(
        self, drawing: Drawing, seed: int, rep_ids: npt.NDArray[np.int64] | None, *, all_events: object
    ) -> DrawingHandle:
        self._require_ready()
        reports: Literal["all", "picture"] = "all" if all_events else "picture"
        handle = self._scheduler.submit(
            drawing.prompt, seed=seed, options=drawing.options, rep_ids=rep_ids, reports=reports
        )
        self._drawings.add(handle)
        return handle

    def _forget(self, handle: DrawingHandle) -> None:
        handle.cancel()
        self._drawings.discard(handle)
        self.metrics.cancelled.labels("picture").inc(handle.status == "cancelled")

    async def _draw_tokens(
        self, drawing: Drawing, seed: int, rep_ids: npt.NDArray[np.int64] | None
    ) -> npt.NDArray[np.int64]:
        """Run the first stage only: [N]."""
        handle = self._submit(drawing, seed, rep_ids, all_events=True)
        drawn = []
        try:
            async with aclosing(from_thread(lambda: handle, handle.cancel, self._waiters)) as items:
                async for event in items:
                    assert isinstance(event, events.TokenEvent)
                    drawn.append(event.rep_ids[0])
                    if len(drawn) == event.num_steps:
                        return keep_drawn(np.array(drawn, np.int64), rep_ids)
        finally:
            handle.cancel()
            self._drawings.discard(handle)
        raise DrawingCancelledError

    def _events_of(self, handle: DrawingHandle, drawing: Drawing) -> Iterator[DrawingEvent]:
        """What a caller sees of a drawing; runs in a thread, since it encodes pictures."""
        shown = preview_steps(drawing.num_previews, handle.request.plan.num_steps) if drawing.num_previews else []
        common = common_parameters(self._pipeline, drawing.options, drawing.edits)  # while others draw
        for event in handle:
            if isinstance(event, events.PictureEvent):
                yield self._picture(event, handle, common)
                return
            if drawing.tells_steps:
                yield _progress(event, handle)
            if isinstance(event, events.StepEvent) and event.step + 1 in shown:
                png = encode_png(events.to_picture(event.x_pred[0]))
                yield Preview(index=shown.index(event.step + 1), step=event.step + 1, png=png)
        raise DrawingCancelledError

    def _picture(self, event: events.PictureEvent, handle: DrawingHandle, common: Mapping[str, Any]) -> Picture:
        parameters = parameters_of(event, common, self._pipeline)
        height, width = event.picture.shape[:2]
        return Picture(
            png=encode_png(event.picture, parameters),
            prompt=event.prompt,
            seed=event.seed,
            height=height,
            width=width,
            tokens=parameters[PNG_KEY],
            num_text_tokens=len(handle.request.ids),
        )

    def _answer(self, question: Question, given_up: threading.Event) -> Iterator[AnswerEvent]:
        if given_up.is_set():
            return
        conversation = self._pipeline.converse()
        conversation.show(*question.pictures)
        with closing(conversation.ask(question.text, seed=question.seed, options=question.options)) as said:
            yield Accepted()
            for event in said:
                if given_up.is_set():
                    return
                if isinstance(event, events.WordEvent):
                    yield Word(event.text)
                    continue
                num_tokens = len(event.token_ids)
                yield Answer(
                    text=event.text,
                    ended_by=event.ended_by,
                    num_prompt_tokens=conversation.length - num_tokens,
                    num_tokens=num_tokens,
                )

    def _count(self, stage: str) -> int:
        return sum(handle.status == stage for handle in tuple(self._drawings))

    def _count_event(self, event: DrawingEvent, started: float) -> None:
        now = time.monotonic()
        if isinstance(event, Preview) and event.index == 0:
            self.metrics.first_preview_seconds.observe(now - started)
        elif isinstance(event, Picture):
            self.metrics.pictures.inc()
            self.metrics.picture_seconds.observe(now - started)
            since = now - max(started, self._last_finish)
            self._seconds_per_picture += 0.2 * (since - self._seconds_per_picture)
            self._last_finish = now


def _progress(event: events.Event, handle: DrawingHandle) -> Progress:
    if isinstance(event, events.StepEvent):
        return Progress(stage="pixels", step=event.step + 1, num_steps=event.num_steps)
    assert isinstance(event, events.TokenEvent)
    forced = handle.request.forced
    drawn = event.rep_ids[0] if forced is None or forced[event.step] < 0 else forced[event.step]
    return Progress(stage="tokens", step=event.step + 1, num_steps=event.num_steps, rep_id=int(drawn))
