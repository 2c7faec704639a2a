"""Requests that are drawn together: each step is one run of a graph, and requests come and go between steps.

Knows nothing of threads, and nothing of who may come when: `jobs` is set by the owner between two steps, and
a step that finds it changed lays the caches of all jobs out anew. What a job needs to go on is kept with the
job, in the cache only while its tokens are drawn, so that nothing is left behind where one leaves.

Results: a job is computed in rows of its own, which begin at slot 0 whatever the others have, and hidden slots are
zero. Only how long the buffers are depends on the others, and with it the order in which a library may sum: a few units
in the last place. Jobs of one batch may be at any token and step, and take windows of one size.

Legend: R requests, N representation tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.backends.host.cache import KVCache
from runtime.backends.host.stages import PixelStep, TokenPass, TokenRow, prefill
from runtime.backends.windows import TokenWindow
from runtime.errors import RFError
from runtime.events import StepEvent, TokenEvent
from runtime.loading import LoadedModel
from runtime.scheduling.handle import DrawingHandle
from runtime.scheduling.prefixes import CacheMemory, Prefix, copy_row, lay_out


@dataclass(eq=False)
class Job:
    """A request on its way, and all that it needs to go on."""

    handle: DrawingHandle
    window: TokenWindow
    prefix: Prefix | None = None  # None until its text is read, and while its tokens are drawn
    pixels: npt.NDArray[np.float32] | None = None  # [3, height, width], a row of what its last step was bound to
    step: int = 0  # of denoising, the next one

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.handle.request.plan.height, self.handle.request.plan.width

    @property
    def guided(self) -> bool:
        """Whether its tokens have an unconditional row."""
        return self.handle.request.plan.guides_tokens


def make_job(handle: DrawingHandle, model: LoadedModel) -> Job:
    """A request that nothing has been done for."""
    request, start_id = handle.request, model.manifest.model.rep_start_id
    return Job(handle, TokenWindow(request.plan.grid, start_id, request.plan.window, request.forced))


class TokenBatch:
    """Draws the representation tokens of up to `max_requests` jobs: a pass is for all windows of one size.

    Attributes:
        jobs: Whom the next step is for.
    """

    def __init__(self, model: LoadedModel, max_requests: int) -> None:
        self.jobs: list[Job] = []
        self._model = model
        # The longest prefix, N + 1 tokens and the text, and its pixels take max_positions.
        self._memory = _memory_for(model, max_requests)
        self._laid_out: list[Job] = []
        self._groups: dict[int, _TokenGroup] = {}  # by window, that whose turn it is first

    def step(self) -> list[Job]:
        """Make the next pass of all jobs whose windows have one size.

        Returns:
            The jobs that have all their tokens in their prefix. The owner takes them out of `jobs`.
        """
        if self.jobs != self._laid_out:
            self._lay_out()
        size = next(iter(self._groups))
        group = self._groups[size] = self._groups.pop(size)  # to the end of the line
        group.step()
        ended = [job for job in group.jobs if job.window.ended]
        for job in ended:
            job.prefix = Prefix(copy_row(group.cache, group.jobs.index(job)), None)
        return ended

    def clear(self) -> None:
        """Forget all jobs, also where a step broke off."""
        self.jobs, self._laid_out, self._groups = [], [], {}

    def _lay_out(self) -> None:
        for group in self._groups.values():
            group.take_out([job for job in group.jobs if job in self.jobs])
        self._read_texts([job for job in self.jobs if job not in self._laid_out])
        sizes = dict.fromkeys([*self._groups, *(job.window.size for job in self.jobs)])
        self._laid_out, self._groups = [], {}
        self._memory.clear()
        for size in sizes:
            jobs = [job for job in self.jobs if job.window.size == size]
            if jobs:
                self._groups[size] = _TokenGroup(self._model, self._memory, jobs)
        self._laid_out = list(self.jobs)

    def _read_texts(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        ids = [job.handle.request.ids for job in jobs]
        cache = KVCache(self._memory.model, self._memory.variant, len(jobs), max(map(len, ids)))
        prefill(self._model.sessions["text_decoder"], ids, cache)
        for row, job in enumerate(jobs):
            conditional = copy_row(cache, row)
            job.prefix = Prefix(conditional, conditional[:, :, :0] if job.guided else None)


class _TokenGroup:
    """Jobs whose windows have one size, laid out in a cache of their own: conditional rows, then unconditional ones."""

    def __init__(self, model: LoadedModel, memory: CacheMemory, jobs: list[Job]) -> None:
        self.jobs = jobs
        self._guided = [job for job in jobs if job.guided]
        prefixes = [_prefix_of(job) for job in jobs]
        rows = [prefix.conditional for prefix in prefixes]
        rows += [prefix.unconditional for prefix in prefixes if prefix.unconditional is not None]
        slots = max(len(job.handle.request.ids) + job.window.num_tokens + 1 for job in jobs)
        self.cache = lay_out(memory, rows, slots)
        token_rows = []
        for job in jobs:
            request = job.handle.request
            row = TokenRow(request.plan, job.window, len(request.ids), job.guided, request.fill_gumbel)
            token_rows.append(row)
            job.prefix = None
        self._run = TokenPass(model.sessions["rep_decoder"], token_rows, self.cache)

    def step(self) -> None:
        """Run once, and tell who wants to know."""
        starts = [job.window.start for job in self.jobs]
        for line, (job, known) in enumerate(zip(self.jobs, self._run(), strict=True)):
            if not job.handle.reports_steps:
                continue
            for token in known:
                logits = self._run.logits[line, token - starts[line]][None].copy()
                drawn = job.window.drawn[token : token + 1].copy()
                job.handle.report(TokenEvent(token, job.window.num_tokens, drawn, logits))

    def take_out(self, jobs: Sequence[Job]) -> None:
        """Copy out what these have."""
        for job in jobs:
            unconditional = None
            if job.guided:
                unconditional = copy_row(self.cache, len(self.jobs) + self._guided.index(job))
            job.prefix = Prefix(copy_row(self.cache, self.jobs.index(job)), unconditional)


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
            picture = request.finish(run.x_t[row], job.window.rep_ids, self._model.variant.precision)
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
        prefixes = [_prefix_of(job).conditional for job in jobs]
        cache = lay_out(self._memory, prefixes, max(values.shape[2] for values in prefixes))
        x_t = np.stack([job.handle.request.first_pixels() if job.pixels is None else job.pixels for job in jobs])
        for row, job in enumerate(jobs):
            job.pixels = x_t[row]
        return PixelStep(self._model.sessions["denoiser"], [job.handle.request.plan for job in jobs], cache, x_t)


def _memory_for(model: LoadedModel, max_requests: int) -> CacheMemory:
    spec = model.manifest.model
    return CacheMemory(spec, model.variant, 2 * max_requests, spec.max_positions)


def _prefix_of(job: Job) -> Prefix:
    assert job.prefix is not None
    return job.prefix
