"""Finds out by drawing how many representation tokens a pass of an engine should take on this machine.

Tokens are the same with any window (runtime/backends/windows.py): a longer one takes fewer passes, each of which costs
more, how much more depends on the machine. Knows nothing of any library.
"""

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from runtime.backends.interface import DrawingShape, Runner, Session
from runtime.backends.windows import WINDOWS
from runtime.bundle.manifest import Manifest
from runtime.events import result_of
from runtime.options import DrawingPlan, GenerationOptions
from runtime.plans import plan_drawing
from runtime.request import fill_gumbel, make_requests
from runtime.signature import GraphName, Variant

_CLEARLY: Final = 0.95  # of the time of single tokens: what takes longer is no gain
_ROUNDS: Final = (2, 8)  # at least, and at most, where they take more than
_SECONDS: Final = 1.0


@dataclass(frozen=True)
class DrawingSizes:
    """At what an engine is measured.

    Attributes:
        num_requests: Pictures that are drawn together.
        height: Of each, in pixels.
        width: Of each, in pixels.
        max_window: The longest window that the engine takes.
    """

    num_requests: int
    height: int
    width: int
    max_window: int


@dataclass(frozen=True)
class Windows:
    """What was found.

    Attributes:
        best: The window that takes the least time, or 1 where none takes clearly less.
        table: Of each window the passes of a picture, and the seconds that all of them take.
    """

    best: int
    table: dict[int, tuple[float, float]]

    def to_dict(self) -> dict[str, list[float]]:
        """The table as a record has it."""
        return {str(window): [round(passes, 2), round(seconds, 6)] for window, (passes, seconds) in self.table.items()}


def measure_windows(
    manifest: Manifest, variant: Variant, runner: Runner, sessions: Mapping[GraphName, Session], sizes: DrawingSizes
) -> Windows:
    """Draw the tokens of some pictures without a text in windows of several sizes, each picture in all of them.

    Args:
        manifest: Of the bundle; its defaults of sampling decide.
        variant: The graphs.
        runner: What runs them.
        sessions: text_decoder and rep_decoder.
        sizes: What is drawn, and in which windows.
    """
    options = GenerationOptions(height=sizes.height, width=sizes.width)
    plans = {window: plan_drawing(options, manifest, window) for window in WINDOWS if window <= sizes.max_window}
    plans = {window: plan for window, plan in plans.items() if plan.window == window}
    num_tokens = plans[1].num_rep_tokens
    drawing = DrawingShape(
        model=manifest.model,
        variant=variant,
        num_requests=sizes.num_requests,
        prompt_length=0,
        num_rep_tokens=num_tokens,
        num_slots=sessions["rep_decoder"].signature.cache_slots or num_tokens + 1,
        previews=False,
    )
    passes: dict[int, list[int]] = {window: [] for window in plans}
    fastest: dict[int, float] = dict.fromkeys(plans, np.inf)  # seconds of a pass: other work only adds
    started = time.monotonic()
    for seed in range(_ROUNDS[1]):
        if seed >= _ROUNDS[0] and time.monotonic() - started > _SECONDS:
            break
        for window, plan in plans.items():
            num_passes, seconds = _draw(runner, sessions, drawing, plan, seed)
            passes[window].append(num_passes)
            fastest[window] = min(fastest[window], seconds / num_passes)
    table = {}
    for window, counts in passes.items():
        mean = float(np.mean(counts))
        table[window] = (mean, mean * fastest[window])
    best = min(table, key=lambda window: table[window][1])
    return Windows(best if table[best][1] <= _CLEARLY * table[1][1] else 1, table)


def _draw(
    runner: Runner, sessions: Mapping[GraphName, Session], drawing: DrawingShape, plan: DrawingPlan, seed: int
) -> tuple[int, float]:
    """Passes and seconds."""
    requests = make_requests([[]] * drawing.num_requests, seed * drawing.num_requests, plan)
    stages = runner.stages(sessions, drawing)
    try:
        stages.prefill([request.ids for request in requests])
        started = time.perf_counter()
        result_of(stages.draw_tokens(plan, functools.partial(fill_gumbel, requests), None))
        return stages.num_passes, time.perf_counter() - started
    finally:
        stages.close()
