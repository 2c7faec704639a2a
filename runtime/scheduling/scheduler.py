"""Draws the pictures of many callers together: requests join while others are half way, and leave when they like.

    from runtime import Scheduler

    with Scheduler(pipeline) as scheduler:
        handle = scheduler.submit("a red car", seed=7)
        for event in handle:
            ...

Knows nothing of how a step is made (batches.py) and of whose step is next (dispatch.py): this is where the threads are.
"""

import threading
import time
import weakref
from types import TracebackType
from typing import Any, Literal

import numpy.typing as npt

from runtime.backends.host.machine import usable_cpus
from runtime.errors import RFError
from runtime.options import GenerationOptions
from runtime.pipeline import Pipeline
from runtime.scheduling.batches import PixelBatch, TokenBatch, make_job
from runtime.scheduling.dispatch import Dispatcher, OnStep, WhenFull
from runtime.scheduling.handle import DrawingHandle, Reports


class Scheduler:
    """Draws with a pipeline what any number of threads submit.

    Memory: each stage has a buffer for the caches of its requests, which grows to what the most and longest of
    them took together and is used again and again; besides, a request in flight keeps its own keys and values.
    No more than 2 `max_batch` requests are in flight, whatever is submitted.

    Args:
        pipeline: What draws; it may be used otherwise at the same time.
        max_batch: The most requests of a stage.
        max_queue: The most requests that wait for a place.
        num_workers: Threads that run graphs, one batch each: with two or more, both stages run at the same
            time. None makes as many as this process may use cores for the pipeline's `num_threads`, and one where that
            is left to the backend. On a CPU, a pipeline with `num_threads=1` measures best: small runs gain
            little from a second thread, and workers do not wait for one another.
        num_pixel_batches: Batches that the pictures in denoising are spread over; None makes one for every
            worker. Where one run fills the device, as on a GPU, one is better.
        on_step: Called by a worker after each step with the stage, the requests of its batch and the seconds it
            took: for counting, so it must be quick and raise nothing.

    Raises:
        RFError: A number below 1, or a pipeline in the modern dialect: requests come and go by laying their
            caches out anew, and those graphs may have a cache of one length.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        max_batch: int = 8,
        max_queue: int = 64,
        num_workers: int | None = None,
        num_pixel_batches: int | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        if num_workers is None:
            num_workers = _workers_for(pipeline.num_threads, max_batch)
        num_pixel_batches = num_workers if num_pixel_batches is None else num_pixel_batches
        for name, value in {
            "max_batch": max_batch,
            "max_queue": max_queue,
            "num_workers": num_workers,
            "num_pixel_batches": num_pixel_batches,
        }.items():
            if value < 1:
                raise RFError(f"{name} must be >= 1, got {value}.")
        if pipeline.dialect != "classic":
            raise RFError(
                f"The scheduler runs classic graphs, and this pipeline is {pipeline.dialect}. "
                'Load it with dialect="classic".'
            )
        self._pipeline = pipeline
        num_pixel_batches = min(num_pixel_batches, max_batch)
        share = -(-max_batch // num_pixel_batches)
        self._dispatcher = Dispatcher(
            TokenBatch(pipeline.model, max_batch),
            [PixelBatch(pipeline.model, share) for _ in range(num_pixel_batches)],
            max_batch=max_batch,
            max_queue=max_queue,
            clock=time.perf_counter,
            on_step=on_step,
        )
        self._workers = [
            threading.Thread(target=_work, args=(self._dispatcher,), name=f"rf-scheduler-{index}", daemon=True)
            for index in range(num_workers)
        ]
        # A scheduler that is dropped, and one that is there when Python ends, closes itself: a thread that is
        # inside a library while that is torn down would crash the process.
        self._finalizer = weakref.finalize(self, _end, self._dispatcher, self._workers)
        for worker in self._workers:
            worker.start()

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: it was closed, or a bug ended a worker."""
        return self._dispatcher.closed

    def submit(
        self,
        prompt: str,
        *,
        seed: int = 0,
        options: GenerationOptions | None = None,
        rep_ids: npt.ArrayLike | None = None,  # [N]
        reports: Reports = "all",
        when_full: WhenFull = "refuse",
    ) -> DrawingHandle:
        """Ask for a picture; it is the one that `Pipeline.generate` draws, up to rounding.

        Args:
            prompt: The text; an empty one draws without a text.
            seed: Of the random numbers.
            options: How to draw; each request has its own.
            rep_ids: Representation tokens to use instead of drawing them.
            reports: "all" keeps every event until it is read; "picture" makes the `PictureEvent` alone, for
                callers that want nothing else, since events of large pictures take megabytes.
            when_full: Whether to raise or to wait for a place where `max_queue` requests wait.

        Returns:
            The request: iterate over its events, wait for its result, or cancel it.

        Raises:
            RFError: A prompt or an option that the model cannot take, a full queue, a closed scheduler.
        """
        if not isinstance(prompt, str):
            raise RFError(f"Give one prompt as a text, and submit several one by one; got {type(prompt).__name__}.")
        given: Any = None if rep_ids is None else [rep_ids]
        (request,) = self._pipeline.check([prompt], seed=seed, options=options, rep_ids=given)
        handle = DrawingHandle(request, reports, self._dispatcher.forget_cancelled)
        self._dispatcher.submit(make_job(handle, self._pipeline.model), when_full)
        return handle

    def close(self, pending: Literal["finish", "cancel"] = "finish") -> None:
        """Take no more requests, and end the threads.

        Args:
            pending: Whether what was submitted is drawn first, or cancelled.
        """
        self._dispatcher.close(pending)
        for worker in self._workers:
            worker.join()
        self._finalizer.detach()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Draw what was submitted; after an error, cancel it."""
        self.close("finish" if kind is None else "cancel")


def _workers_for(num_threads: int | None, max_batch: int) -> int:
    if num_threads is None:
        return 1
    return max(1, min(usable_cpus() // num_threads, max_batch))


def _work(dispatcher: Dispatcher) -> None:
    try:
        while dispatcher.step():
            pass
    except BaseException as error:  # a bug: nobody shall wait for ever, and its traceback is printed
        dispatcher.close(error)
        raise


def _end(dispatcher: Dispatcher, workers: list[threading.Thread]) -> None:
    dispatcher.close("cancel")
    for worker in workers:
        if worker is not threading.current_thread():  # the last reference may be dropped anywhere
            worker.join()
