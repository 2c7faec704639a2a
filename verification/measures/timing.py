"""Interleaved timing of several contenders, with medians and intervals. Knows nothing of what it times.

A machine's speed drifts, so contenders take turns within every round, and whole rounds say how sure a ratio is.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

_RESAMPLES: Final = 2000
Seconds: TypeAlias = tuple[float, float]  # of a step: wall, and of all threads of the process


@dataclass(frozen=True)
class Timing:
    """Seconds per step of one contender, a value per round."""

    wall: list[float]
    cpu: list[float]  # of all threads of the process

    @property
    def median(self) -> float:
        """Median wall seconds per step."""
        return statistics.median(self.wall)

    def as_dict(self) -> dict[str, object]:
        """Milliseconds, for JSON; every sample is in it, so that another run can be compared with this one."""
        low, high = median_interval(self.wall)
        return {
            "median_ms": 1e3 * self.median,
            "low_ms": 1e3 * low,
            "high_ms": 1e3 * high,
            "min_ms": 1e3 * min(self.wall),
            "p95_ms": 1e3 * quantile(self.wall, 0.95),
            "p99_ms": 1e3 * quantile(self.wall, 0.99),
            "cpu_median_ms": 1e3 * statistics.median(self.cpu),
            "rounds": len(self.wall),
            **{
                name: [float(f"{1e3 * value:.6g}") for value in values]
                for name, values in (("samples_ms", self.wall), ("cpu_samples_ms", self.cpu))
            },
        }


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed: one that was measured, never one in between."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Distribution-free 95% interval of the median from order statistics (Conover 1999, section 3.2).

    With fewer than six values it is their whole range.
    """
    ordered, n = sorted(values), len(values)
    reach = math.floor(n / 2 - 1.96 * math.sqrt(n) / 2)
    low = max(0, reach - 1) if n >= 6 else 0
    return ordered[low], ordered[n - 1 - low]


def interleave(
    contenders: Mapping[str, Callable[[], int | Seconds]],
    num_rounds: int,
    *,
    warm: bool = False,
    most_seconds: float = math.inf,
) -> dict[str, Timing]:
    """Time every contender once per round, in an order that rotates, after one round that does not count.

    Args:
        contenders: functions that do some steps and return how many, or what they measured themselves.
        num_rounds: rounds that count.
        warm: run every contender once more, untimed, before its turn: the one before it has left the caches full of
            other weights, and what is wanted is a steady state.
        most_seconds: begin no further round after so long; one counts in any case.
    """
    timings = {name: Timing([], []) for name in contenders}
    names = list(contenders)
    started = time.perf_counter()
    for turn in range(num_rounds + 1):
        if turn > 1 and time.perf_counter() - started > most_seconds:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if warm:
                contenders[name]()
            wall, cpu = timed(contenders[name])
            if turn:  # the first round warms caches, pools and compilers
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


def timed(run: Callable[[], int | Seconds]) -> Seconds:
    """Run once; seconds per step."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return result if isinstance(result, tuple) else (wall / result, cpu / result)


def ratio(slow: Timing, fast: Timing) -> dict[str, float]:
    """How many times as long `slow` takes: the ratio of the medians, which cannot contradict them, and an interval.

    The interval (95%) comes from drawing rounds again, both times of a round together: what slows a round for both is
    no doubt about their ratio (bootstrap of pairs, Efron and Tibshirani 1993, chapters 8 and 13).
    """
    walls = np.array([slow.wall, fast.wall])  # [2, rounds]
    rounds = np.random.default_rng(0).integers(walls.shape[1], size=(_RESAMPLES, walls.shape[1]))
    ratios = np.divide(*np.median(walls[:, rounds], axis=2))  # [resamples]
    low, high = np.quantile(ratios, (0.025, 0.975))
    median = slow.median / fast.median
    return {"median": median, "low": min(float(low), median), "high": max(float(high), median)}
