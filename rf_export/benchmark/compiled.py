"""Our engine drawing the same picture, through the runtime's own stages.

Knows nothing of torch. What is timed is what ships: the noise, the events and the cache writes are in it.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rf_export.benchmark.workload import Workload
from runtime.cache import KVCache
from runtime.pipeline import Pipeline
from runtime.signature import Precision
from runtime.stages import denoise, draw_tokens, prefill


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

    def draw_tokens(self) -> NDArray[np.int64]:
        """The representation stage after `prefill`, `[N]`."""
        self._cache.length = len(self.work.prompt_ids)

        def fill_noise(step: int, out: NDArray[np.float32]) -> None:
            out[0] = self.work.gumbel[step]

        session = self.pipeline.sessions["rep_decoder"]
        events = draw_tokens(
            session, self.work.plan, self._cache, self._starts, self.work.rep_start_id, fill_noise
        )
        return np.concatenate([event.rep_ids for event in events])

    def denoise(self, num_steps: int) -> NDArray[np.float32]:
        """The first `num_steps` Euler steps after `draw_tokens`, `[3, H, W]`."""
        times = self.work.times[: num_steps + 1]
        pixels = self.work.noise[None].copy()
        for event in denoise(
            self.pipeline.sessions["denoiser"], self.work.plan, self._cache, self._starts, times, pixels
        ):
            result = event.x_next
        return np.asarray(result[0])
