"""Who is drawn when: the queue, who joins which batch, and which batch steps next.

Knows nothing of graphs, and starts no thread: any number of threads call `step` again and again.

Order: first come, first served. A request joins the token batch as soon as there is a place, in the order of
submission, and a pixel batch in the order in which the tokens were finished; nobody is overtaken in a queue,
and who is in a batch takes part in each of its steps (pictures of several sizes take turns). Between batches
the time is shared evenly: the one that has been given the least steps next, and one that was idle gets no
credit for it (start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996). So nobody starves, and since a
token costs less than a step of all pixels, a newcomer's tokens are soon drawn.

Bounds: `max_queue` requests wait, `max_batch` are in the token batch or between the stages, and `max_batch`
in the pixel batches.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from runtime.backends.host.forks import ProcessBound
from runtime.errors import RFError
from runtime.scheduling.batches import Job, PixelBatch, TokenBatch

WhenFull: TypeAlias = Literal["refuse", "wait"]
OnStep: TypeAlias = Callable[[Literal["tokens", "pixels"], int, float], None]  # stage, requests of its batch, seconds


@dataclass(eq=False)
class _Turn:
    """A batch, and what it has had."""

    batch: TokenBatch | PixelBatch
    busy: bool = False  # a thread is stepping it; its jobs stay as they are
    idle: bool = True
    used_s: float = 0.0


class Dispatcher(ProcessBound):
    """Hands out steps to the threads that call it; every method may be called from any thread of its process."""

    def __init__(
        self,
        tokens: TokenBatch,
        pixels: Sequence[PixelBatch],
        *,
        max_batch: int,
        max_queue: int,
        clock: Callable[[], float],
        on_step: OnStep | None = None,
    ) -> None:
        super().__init__()
        self._tokens = _Turn(tokens)
        self._pixels = [_Turn(batch) for batch in pixels]
        self._max_batch, self._max_queue, self._clock, self._on_step = max_batch, max_queue, clock, on_step
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._waiting: deque[Job] = deque()  # have their tokens, and no place in a pixel batch yet
        self._closed = False
        self._now_s = 0.0  # what the batches that are never idle have had

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests."""
        return self._closed

    def submit(self, job: Job, when_full: WhenFull) -> None:
        """Put a request at the end of the queue.

        Args:
            job: The request.
            when_full: Whether to refuse it or to wait for a place where the queue is full.

        Raises:
            RFError: The queue is full, or closed, or that of a parent process.
        """
        self.require_own_process()
        with self._changed:
            if when_full == "wait":
                self._changed.wait_for(lambda: self._closed or len(self._queue) < self._max_queue)
            if self._closed:
                raise RFError("The scheduler is closed and takes no more requests. Make a new one.")
            if len(self._queue) >= self._max_queue:
                raise RFError(
                    f"The queue is full: {self._max_queue} requests wait already. Submit it later, "
                    'or with when_full="wait", or make a scheduler with a larger max_queue.',
                    "busy",
                )
            self._queue.append(job)
            self._changed.notify_all()

    def forget_cancelled(self) -> None:
        """To be called after a request was cancelled: its place in the queue is free at once."""
        with self._changed:
            self._queue = deque(job for job in self._queue if not job.handle.ended)
            self._waiting = deque(job for job in self._waiting if not job.handle.ended)
            self._changed.notify_all()

    def close(self, pending: Literal["finish", "cancel"] | BaseException) -> None:
        """Take no more requests; `step` returns False as soon as nothing is left to do.

        Args:
            pending: What becomes of the requests that are there: an error is what they fail with. Those of a parent
                process go on there.
        """
        if self.inherited:  # a thread of the parent may have held the lock
            return
        with self._changed:
            self._closed = True
            jobs = [] if pending == "finish" else self._jobs()
            self._changed.notify_all()
        for job in jobs:
            if isinstance(pending, BaseException):
                job.handle.fail(pending)
            else:
                job.handle.cancel()

    def step(self) -> bool:
        """Wait for something to do, and make one step of one batch.

        Returns:
            False when the dispatcher is closed and nothing is left to do.
        """
        with self._changed:
            while (turn := self._take()) is None:
                if self._closed and not self._jobs():
                    return False
                self._changed.wait()
        start = self._clock()
        finished: list[Job] = []
        try:
            finished = turn.batch.step()
        except Exception as error:  # whatever it is, it is of this batch alone, and its callers must not wait for ever
            for job in turn.batch.jobs:
                job.handle.fail(error)
        seconds, num_jobs = self._clock() - start, len(turn.batch.jobs)
        with self._changed:
            turn.used_s += seconds
            self._give_back(turn, finished)
            self._changed.notify_all()
        if self._on_step is not None:
            self._on_step("tokens" if turn is self._tokens else "pixels", num_jobs, seconds)
        return True

    def _take(self) -> _Turn | None:
        """Let requests leave and join where no thread is at work, and choose the batch that steps next."""
        turns = [self._tokens, *self._pixels]
        for turn in turns:
            if not turn.busy:
                self._leave(turn)
        self._spread()
        self._admit()
        for turn in turns:
            if turn.idle and turn.batch.jobs:
                turn.used_s = max(turn.used_s, self._now_s)
            turn.idle = not turn.batch.jobs
        ready = [turn for turn in turns if turn.batch.jobs and not turn.busy]
        if not ready:
            return None
        chosen = min(ready, key=lambda turn: turn.used_s)
        chosen.busy, self._now_s = True, max(self._now_s, chosen.used_s)
        return chosen

    def _leave(self, turn: _Turn) -> None:
        turn.batch.jobs = [job for job in turn.batch.jobs if not job.handle.ended]
        if not turn.batch.jobs:
            turn.batch.clear()

    def _admit(self) -> None:
        """From the queue into the token batch."""
        batch = self._tokens.batch
        while not self._tokens.busy and self._queue and len(batch.jobs) + len(self._waiting) < self._max_batch:
            job = self._queue.popleft()
            job.handle.move("tokens")
            batch.jobs.append(job)

    def _spread(self) -> None:
        """From one stage to the other, and evenly over the pixel batches."""
        num_jobs = len(self._waiting) + sum(len(turn.batch.jobs) for turn in self._pixels)
        share = min(-(-num_jobs // len(self._pixels)), -(-self._max_batch // len(self._pixels)))
        free = [turn.batch for turn in self._pixels if not turn.busy]
        for batch in free:
            while len(batch.jobs) > share:
                self._waiting.appendleft(batch.jobs.pop())
        for batch in free:
            while self._waiting and len(batch.jobs) < share:
                batch.jobs.append(self._waiting.popleft())

    def _give_back(self, turn: _Turn, finished: Sequence[Job]) -> None:
        turn.busy = False
        turn.batch.jobs = [job for job in turn.batch.jobs if job not in finished]
        if turn is self._tokens:
            for job in finished:
                job.handle.move("pixels")
            self._waiting.extend(job for job in finished if not job.handle.ended)
        self._leave(turn)

    def _jobs(self) -> list[Job]:
        in_batches = [job for turn in (self._tokens, *self._pixels) for job in turn.batch.jobs]
        return [*self._queue, *self._waiting, *in_batches]
