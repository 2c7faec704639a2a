"""What calibration keeps of the activations that it has seen, in bounded memory. Knows nothing of how they come about.

Axes: K input channels of a layer, T steps (positions of tokens or timesteps), G guidance rows (conditional,
unconditional), n sampled rows.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from calibration.histogram import Histogram
from runtime.errors import RFError

NUM_SAMPLES: Final = 256
GUIDANCE: Final = ("conditional", "unconditional")


class Activations:
    """The inputs of one layer.

    Attributes:
        histogram: of all magnitudes.
        channel_max: float32 [K] largest magnitude of every channel.
        step_max: float32 [T, G] largest magnitude of every step and guidance row.
        counts: int64 [T, G] rows seen.
        samples: float32 [n, K] rows drawn uniformly from all, at most `NUM_SAMPLES`.
    """

    def __init__(self, num_channels: int, num_steps: int, seed: int = 0) -> None:
        self.histogram = Histogram()
        self.channel_max = np.zeros(num_channels, np.float32)
        self.step_max = np.zeros((num_steps, len(GUIDANCE)), np.float32)
        self.counts = np.zeros((num_steps, len(GUIDANCE)), np.int64)
        self.samples = np.zeros((0, num_channels), np.float32)
        self._seed = seed

    def add(self, step: int, guidance: int, rows: npt.NDArray[np.float32], where: str) -> None:
        """Take in rows [m, K].

        Raises:
            RFError: A value is not finite; `where` names the layer.
        """
        if not np.isfinite(rows).all():
            raise RFError(
                f"{where} is fed values that are not finite in step {step} ({GUIDANCE[guidance]} row). The model "
                "overflows: export it in fp32, or check the checkpoint."
            )
        self._sample(rows)
        self.histogram.add(rows)
        largest = np.abs(rows).max(0)
        np.maximum(self.channel_max, largest, out=self.channel_max)
        self.step_max[step, guidance] = max(self.step_max[step, guidance], largest.max())
        self.counts[step, guidance] += len(rows)

    def _sample(self, rows: npt.NDArray[np.float32]) -> None:
        """Reservoir sampling (Vitter 1985, algorithm R), reproducible also after a resume."""
        seen = int(self.counts.sum())
        free = max(0, NUM_SAMPLES - len(self.samples))
        self.samples = np.concatenate([self.samples, rows[:free].astype(np.float32)])
        rest = rows[free:]
        if not len(rest):
            return
        rng = np.random.default_rng([self._seed, seen])
        slots = (rng.random(len(rest)) * (seen + free + 1 + np.arange(len(rest)))).astype(np.int64)
        for row in np.flatnonzero(slots < NUM_SAMPLES):
            self.samples[slots[row]] = rest[row]

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Everything as arrays, for a file."""
        totals = np.array([self.histogram.num_zeros, self.histogram.largest], np.float64)
        return {
            "counts": self.counts,
            "histogram": self.histogram.counts,
            "totals": totals,
            "samples": self.samples,
            "channel_max": self.channel_max,
            "step_max": self.step_max,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[np.generic]], seed: int = 0) -> "Activations":
        """The inverse of `arrays`; raises KeyError and ValueError for other content."""
        found = cls(len(arrays["channel_max"]), len(arrays["counts"]), seed)
        for name, expected in found.arrays().items():
            same = arrays[name].shape == expected.shape or (name == "samples" and arrays[name].ndim == 2)
            if not same or arrays[name].dtype != expected.dtype:
                raise ValueError(f"{name} has shape {arrays[name].shape} and dtype {arrays[name].dtype}")
        found.histogram.counts = arrays["histogram"]  # type: ignore[assignment]
        found.histogram.num_zeros, found.histogram.largest = int(arrays["totals"][0]), float(arrays["totals"][1])
        found.channel_max, found.step_max = arrays["channel_max"], arrays["step_max"]  # type: ignore[assignment]
        found.counts, found.samples = arrays["counts"], arrays["samples"]  # type: ignore[assignment]
        return found


Recorded = dict[str, dict[str, Activations]]  # graph -> weight -> its inputs


def missing_coverage(recorded: Recorded, expects_guidance: Sequence[str]) -> str:
    """What a recording lacks, for a message: the first step, guidance row and layer that were never fed; or nothing.

    Args:
        recorded: What was recorded.
        expects_guidance: Graphs that have an unconditional row.
    """
    for graph, layers in recorded.items():
        for weight, activations in layers.items():
            num_rows = 2 if graph in expects_guidance else 1
            empty = np.argwhere(activations.counts[:, :num_rows] == 0)
            if len(empty):
                step, guidance = map(int, empty[0])
                return f"{graph} saw no {GUIDANCE[guidance]} row in step {step} at {weight}"
    return ""


def coverage_table(recorded: Recorded) -> list[dict[str, object]]:
    """Per graph: layers, steps, guidance rows, and how many rows the least and the most covered cell has seen."""
    table: list[dict[str, object]] = []
    for graph, layers in recorded.items():
        counts = np.stack([activations.counts for activations in layers.values()])  # [layers, T, G]
        used = counts[..., counts.any((0, 1))]
        table.append(
            {
                "graph": graph,
                "layers": counts.shape[0],
                "steps": counts.shape[1],
                "guidance_rows": used.shape[2],
                "cells": int(used.size),
                "fewest_rows": int(used.min()),
                "most_rows": int(used.max()),
                "values": int(sum(a.counts.sum() * len(a.channel_max) for a in layers.values())),
            }
        )
    return table
