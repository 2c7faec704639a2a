"""Our engine drawing the same picture, through the runtime's own stages.

Knows nothing of torch. What is timed is what ships: the noise, the events and the cache writes are in it. `Compiled`
calls sessions step by step, with its memory in the host; `Staged` runs a backend's own stages, which on a GPU are one
CUDA graph each.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from rf_export.benchmark.workload import Workload
from runtime.cache import KVCache
from runtime.pipeline import Pipeline
from runtime.signature import Precision
from runtime.stages import denoise, draw_tokens, prefill

Value = TypeVar("Value")


class Compiled:
    """Draws the workload's picture; `draw_tokens` and `denoise` may be repeated."""

    def __init__(
        self, bundle: Path, workload: Workload, precision: Precision, num_threads: int, engine: Literal["auto", "none"]
    ) -> None:
        self.pipeline = Pipeline.load(bundle, precision, num_threads=num_threads, engine=engine)
        self.work = workload
        self._cache = KVCache(self.pipeline.bundle.manifest.model, precision, 2, workload.num_slots)

    def prefill(self) -> None:
        """Read the prompt."""
        self._starts = prefill(self.pipeline.sessions["text_decoder"], [self.work.prompt_ids.tolist()], self._cache)

    def draw_tokens(self, forced: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """The representation stage after `prefill`, `[N]`: what was drawn; it goes on with `forced` where given."""
        self._cache.length = len(self.work.prompt_ids)

        def fill_noise(step: int, out: NDArray[np.float32]) -> None:
            out[0] = self.work.gumbel[step]

        session = self.pipeline.sessions["rep_decoder"]
        events = draw_tokens(
            session, self.work.plan, self._cache, self._starts, self.work.rep_start_id, fill_noise,
            None if forced is None else forced[None],
        )  # fmt: skip
        return np.concatenate([event.rep_ids for event in events])

    def turn_tokens(self) -> int:
        """The whole stage; returns the number of runs."""
        self.draw_tokens()
        return self.work.num_decoder_runs

    def denoise(self, num_steps: int) -> NDArray[np.float32]:
        """The first `num_steps` Euler steps after `draw_tokens`, `[3, H, W]`."""
        times = self.work.times[: num_steps + 1]
        pixels = self.work.noise[None].copy()
        for event in denoise(
            self.pipeline.sessions["denoiser"], self.work.plan, self._cache, self._starts, times, pixels
        ):
            result = event.x_next
        return np.asarray(result[0])


class Staged:
    """Draws the workload's picture by the stages of a pipeline's backend; they may be repeated."""

    def __init__(self, pipeline: Pipeline, workload: Workload) -> None:
        self.pipeline, self.work = pipeline, workload
        plan = workload.plan
        self._stages = pipeline.start(1, len(workload.prompt_ids), plan.num_rep_tokens, previews=False)

    def prefill(self) -> None:
        """Read the prompt."""
        self._stages.prefill([self.work.prompt_ids.tolist()])

    def draw_tokens(self, forced: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """As `Compiled.draw_tokens`."""

        def fill_noise(step: int, out: NDArray[np.float32]) -> None:
            out[0] = self.work.gumbel[step]

        rows = None if forced is None else forced[None]
        return _result(self._stages.draw_tokens(self.work.plan, fill_noise, rows))[0]

    def turn_tokens(self) -> int:
        """The whole stage: it is launched at once. Returns the number of runs."""
        self.draw_tokens()
        return self.work.num_decoder_runs

    def denoise(self, num_steps: int) -> NDArray[np.float32]:
        """The first `num_steps` Euler steps after `draw_tokens`, `[3, H, W]`."""
        times, noise = self.work.times[: num_steps + 1], self.work.noise[None].copy()
        return _result(self._stages.denoise(self.work.plan, times, noise))[0]


def _result(events: Generator[Any, None, Value]) -> Value:
    """What a stage returns, its events passed over."""
    while True:
        try:
            next(events)
        except StopIteration as stop:
            value: Value = stop.value
            return value
