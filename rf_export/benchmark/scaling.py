"""How our engine's steps grow with what is asked: prompt length, batch, threads; and one picture, step by step.

Knows nothing of baselines. All sizes of a kind take turns, as contenders do.
"""

import itertools
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from rf_export.benchmark.compiled import Compiled
from rf_export.benchmark.workload import DrawingWork
from runtime.backends.host.machine import usable_cpus
from runtime.pipeline import Pipeline
from verification.measures.timing import interleave, quantile

PROMPT_TOKENS = (8, 64, 256, 1024, 4096)
BATCHES = (1, 2, 4)
NUM_ROUNDS = 6


def measure_timeline(pipeline: Pipeline, work: DrawingWork, num_pictures: int) -> dict[str, Any]:
    """Milliseconds of every step of some pictures, after one that does not count; 0: of this one."""
    drawer = Compiled(pipeline, work, previews=True)
    pictures = []
    for _ in range(num_pictures + 1):
        started = time.perf_counter()
        drawer.prefill()
        pictures.append(
            {
                "prefill": [1e3 * (time.perf_counter() - started)],
                "rep_step": _step_ms(drawer.token_events(), more=True),  # the last one only fills the cache
                "denoise_step": _step_ms(drawer.pixel_events(work.plan.num_steps)),
            }
        )
    pictures = pictures[1:] or pictures
    steps = {kind: [value for picture in pictures for value in picture[kind]] for kind in pictures[0]}
    shares = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
    return {
        "precision": pipeline.precision,
        "threads": pipeline.num_threads,
        "pictures": pictures,
        "steps": {
            kind: {"num": len(values), **{name: quantile(values, share) for name, share in shares.items()}}
            for kind, values in steps.items()
        },
    }


def _step_ms(events: Generator[Any, None, Any], *, more: bool = False) -> list[float]:
    """Milliseconds between events; `more` where a step without one follows the last of them."""
    marks = [time.perf_counter()]
    for _ in events:
        marks.append(time.perf_counter())
    if more:
        marks.append(time.perf_counter())
    return [1e3 * (after - before) for before, after in itertools.pairwise(marks)]


def measure_scaling(pipeline: Pipeline, work: DrawingWork, most_seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Steps over prompt lengths, batches (per picture) and threads; each kind takes about `most_seconds` at most."""
    manifest, plan = pipeline.bundle.manifest, work.plan
    room = manifest.model.max_positions - plan.num_rep_tokens - 2
    fixed = pipeline.sessions["rep_decoder"].signature.cache_slots
    lengths = [length for length in PROMPT_TOKENS if length <= min(room, 8 * work.num_slots) and fixed is None]
    threads = [count for count in (1, 2, 4, 8, 16) if count <= usable_cpus()]
    return {
        "prompt_tokens": _measure(
            {n: Compiled(pipeline, DrawingWork.of(manifest, n, work.options)) for n in lengths}, most_seconds
        ),
        "batch": _measure(
            {n: Compiled(pipeline, work, num_requests=n) for n in BATCHES}, most_seconds, pictures=lambda n: n
        ),
        "threads": _measure({n: Compiled(_with_threads(pipeline, n), work) for n in threads}, most_seconds),
    }


def _with_threads(pipeline: Pipeline, num_threads: int) -> Pipeline:
    return Pipeline.load(
        pipeline.bundle.path,
        pipeline.precision,
        num_threads=num_threads,
        engine="none" if pipeline.engine is None else pipeline.engine.path,
        verify="size",
        allow_unverified=True,
        allow_spinning=pipeline.model.allow_spinning,
    )


def _measure(
    drawers: dict[int, Compiled], most_seconds: float, pictures: Callable[[int], int] = lambda n: 1
) -> list[dict[str, Any]]:
    for drawer in drawers.values():
        drawer.prefill()
        drawer.draw_tokens()

    def tokens(n: int) -> int:
        return drawers[n].turn_tokens() * pictures(n)

    def pixels(n: int) -> int:
        drawer = drawers[n]
        drawer.denoise(drawer.work.num_trial_steps)
        return drawer.work.num_trial_steps * pictures(n)

    stages = {
        stage: interleave({str(n): partial(run, n) for n in drawers}, NUM_ROUNDS, most_seconds=most_seconds / 2)
        for stage, run in (("rep_step", tokens), ("denoise_step", pixels))
    }
    return [
        {
            "x": n,
            "cache_slots": drawer.work.num_slots,
            **{stage: timings[str(n)].as_dict() for stage, timings in stages.items()},
        }
        for n, drawer in drawers.items()
    ]
