"""Requests that are drawn together: each step is one run of a graph, and requests come and go between steps.

Knows nothing of threads, and nothing of who may come when: `jobs` is set by the owner between two steps, and
a step that finds it changed lays the caches of all jobs out anew. What a job needs to go on is kept with the
job, in the cache only while its tokens are drawn, so that nothing is left behind where one leaves.

Results: a job is computed in rows of its own, and hidden slots are zero. Only where a row starts depends on
the others (all end at one slot), and with it the order in which the attention sums: a few units in the last
place. A job whose text is as long as the others' is computed as if it were alone.

Legend: R requests, N representation tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from runtime.backends.host.cache import KVCache
from runtime.backends.host.stages import PixelStep, TokenStep, prefill
from runtime.errors import RFError
from runtime.events import StepEvent, TokenEvent
from runtime.loading import LoadedModel
from runtime.scheduling.handle import DrawingHandle
from runtime.scheduling.prefixes import CacheMemory, Prefix, copy_prefix, lay_out


@dataclass(eq=False)
class Job:
    """A request on its way, and all that it needs to go on."""

    handle: DrawingHandle
    prefix: Prefix | None = None  # None until its text is read, and while its tokens are drawn
    rep_ids: list[int] = field(default_factory=list)  # those in use, drawn or given
    pixels: npt.NDArray[np.float32] | None = None  # [3, height, width], a row of what its last step was bound to
    step: int = 0  # of its stage, the next one

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.handle.request.plan.height, self.handle.request.plan.width


class TokenBatch:
    """Draws the representation tokens of up to `max_requests` jobs.

    Attributes:
        jobs: Whom the next step is for.
    """

    def __init__(self, model: LoadedModel, max_requests: int) -> None:
        self.jobs: list[Job] = []
        self._model = model
        # The longest prefix, N + 1 tokens and the text, and its pixels take max_positions.
        self._memory = _memory_for(model, max_requests)
        self._laid_out: list[Job] = []
        self._cache: KVCache
        self._starts: npt.NDArray[np.int64]
        self._run: TokenStep

    def step(self) -> list[Job]:
        """Draw the next token of every job.

        Returns:
            The jobs that have all their tokens in their prefix. The owner takes them out of `jobs`.
        """
        if self.jobs != self._laid_out:
            self._lay_out()
        for row, job in enumerate(self.jobs):
            request = job.handle.request
            self._run.feed(row, job.step, job.rep_ids[-1] if job.rep_ids else self._model.manifest.model.rep_start_id)
            if job.step < request.plan.num_rep_tokens and not request.plan.greedy:
                request.fill_gumbel(job.step, self._run.gumbel[row])
        self._run()
        return [job for row, job in enumerate(self.jobs) if self._advance(row, job)]

    def clear(self) -> None:
        """Forget all jobs, also where a step broke off."""
        self.jobs, self._laid_out = [], []

    def _advance(self, row: int, job: Job) -> bool:
        num_steps, forced = job.handle.request.plan.num_rep_tokens, job.handle.request.forced
        if job.step == num_steps:  # that run only filled the cache
            job.prefix, job.step = self._prefix(row, job), 0
            return True
        drawn = self._run.next_rep_ids[row : row + 1]
        job.rep_ids.append(int(drawn[0] if forced is None or forced[job.step] < 0 else forced[job.step]))
        if job.handle.reports_steps:
            logits = self._run.logits[row : row + 1]
            job.handle.report(TokenEvent(job.step, num_steps, drawn.copy(), logits.copy()))
        job.step += 1
        return False

    def _lay_out(self) -> None:
        for row, job in enumerate(self._laid_out):
            if job in self.jobs:
                job.prefix = self._prefix(row, job)
        self._read_texts([job for job in self.jobs if job not in self._laid_out])
        plans = [job.handle.request.plan for job in self.jobs]
        # The buffer ends where the first job leaves, since then it is laid out anew.
        free = min(plan.num_rep_tokens + 1 - job.step for plan, job in zip(plans, self.jobs, strict=True))
        self._memory.clear()
        self._cache, self._starts = lay_out(self._memory, [_prefix_of(job) for job in self.jobs], free)
        texts = np.array([_prefix_of(job).text_length for job in self.jobs], np.int64)
        row_starts = np.concatenate([self._starts, self._starts + texts])
        self._run = TokenStep(self._model.sessions["rep_decoder"], plans, self._cache, row_starts)
        self._laid_out = list(self.jobs)
        for job in self.jobs:
            job.prefix = None

    def _read_texts(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        ids = [job.handle.request.ids for job in jobs]
        cache = KVCache(self._memory.model, self._memory.variant, 2 * len(jobs), max(map(len, ids)))
        starts = prefill(self._model.sessions["text_decoder"], ids, cache)
        for row, job in enumerate(jobs):
            job.prefix = copy_prefix(cache, row, int(starts[row]), len(ids[row]))

    def _prefix(self, row: int, job: Job) -> Prefix:
        return copy_prefix(self._cache, row, int(self._starts[row]), len(job.handle.request.ids))


class PixelBatch:
    """Denoises the pictures of up to `max_requests` jobs: a step is for all of one size, the sizes take turns.

    Attributes:
        jobs: Whom the next steps are for; each has a prefix.
    """

    def __init__(self, model: LoadedModel, max_requests: int) -> None:
        self.jobs: list[Job] = []
        self._model = model
        self._memory = _memory_for(model, max_requests)
        self._laid_out: list[Job] = []
        self._groups: dict[tuple[int, int], tuple[list[Job], PixelStep]] = {}  # the size whose turn it is first

    def step(self) -> list[Job]:
        """Make the next Euler step of all jobs of one size.

        Returns:
            The jobs that have ended. The owner takes them out of `jobs`.
        """
        if self.jobs != self._laid_out:
            self._lay_out()
        size = next(iter(self._groups))
        jobs, run = self._groups[size] = self._groups.pop(size)  # to the end of the line
        for row, job in enumerate(jobs):
            run.t[row], run.t_next[row] = job.handle.request.times[job.step : job.step + 2]
        run()
        return [job for row, job in enumerate(jobs) if self._advance(row, job, run)]

    def clear(self) -> None:
        """Forget all jobs, also where a step broke off."""
        self.jobs, self._laid_out, self._groups = [], [], {}

    def _advance(self, row: int, job: Job, run: PixelStep) -> bool:
        request = job.handle.request
        if job.handle.reports_steps:
            step, num_steps, t, t_next = job.step, request.plan.num_steps, float(run.t[row]), float(run.t_next[row])
            x_next, x_pred = run.x_t[row : row + 1].copy(), run.x_pred[row : row + 1].copy()
            job.handle.report(StepEvent(step, num_steps, t, t_next, x_next, x_pred))
        job.step += 1
        if job.step < request.plan.num_steps:
            return False
        try:
            picture = request.finish(run.x_t[row], np.array(job.rep_ids, np.int64), self._model.variant.precision)
        except RFError as error:
            job.handle.fail(error)
        else:
            job.handle.report(picture)
        return True

    def _lay_out(self) -> None:
        sizes = dict.fromkeys([*self._groups, *(job.size for job in self.jobs)])
        self._laid_out, self._groups = [], {}
        self._memory.clear()
        for size in sizes:
            jobs = [job for job in self.jobs if job.size == size]
            if jobs:
                self._groups[size] = jobs, self._bind(jobs)
        self._laid_out = list(self.jobs)

    def _bind(self, jobs: Sequence[Job]) -> PixelStep:
        cache, starts = lay_out(self._memory, [_prefix_of(job) for job in jobs], 0)
        x_t = np.stack([job.handle.request.first_pixels() if job.pixels is None else job.pixels for job in jobs])
        for row, job in enumerate(jobs):
            job.pixels = x_t[row]
        return PixelStep(
            self._model.sessions["denoiser"], [job.handle.request.plan for job in jobs], cache, starts, x_t
        )


def _memory_for(model: LoadedModel, max_requests: int) -> CacheMemory:
    spec = model.manifest.model
    return CacheMemory(spec, model.variant, 2 * max_requests, spec.max_positions)


def _prefix_of(job: Job) -> Prefix:
    assert job.prefix is not None
    return job.prefix
