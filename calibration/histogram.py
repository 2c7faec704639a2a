"""A histogram of magnitudes in bounded memory, and the ranges that INT8 may take from it.

Bins are spaced by the logarithm, so that values of any size can come in any order and nothing is binned again.
Symmetric INT8 with zero point 0: a range `r` gives the scale `r / 127`.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from calibration.config import Method

LEVELS: Final = 127
BINS_PER_OCTAVE: Final = 32  # a bin is 2.2% wide
_LOWEST: Final = -24  # smaller magnitudes than 2**-24 count as 0
_HIGHEST: Final = 24
NUM_BINS: Final = BINS_PER_OCTAVE * (_HIGHEST - _LOWEST)
_EDGES: Final = 2.0 ** (_LOWEST + np.arange(NUM_BINS + 1) / BINS_PER_OCTAVE)
_CENTRES: Final = np.sqrt(_EDGES[:-1] * _EDGES[1:])
_ENTROPY_BINS: Final = 2048


class Histogram:
    """Counts of magnitudes.

    Attributes:
        counts: int64 [NUM_BINS].
        num_zeros: values of magnitude 0, or nearly.
        largest: the largest magnitude.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(NUM_BINS, np.int64)
        self.num_zeros = 0
        self.largest = 0.0

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> "Histogram":
        """The histogram of some values."""
        histogram = cls()
        histogram.add(values)
        return histogram

    def add(self, values: npt.NDArray[np.floating]) -> None:
        """Count values of any shape, all of them finite."""
        magnitudes = np.abs(values, dtype=np.float32).reshape(-1)
        self.largest = max(self.largest, float(magnitudes.max(initial=0.0)))
        seen = magnitudes[magnitudes >= _EDGES[0]]
        self.num_zeros += magnitudes.size - seen.size
        bins = ((np.log2(seen) - _LOWEST) * BINS_PER_OCTAVE).astype(np.int32)
        self.counts += np.bincount(np.minimum(bins, NUM_BINS - 1), minlength=NUM_BINS)

    def range(self, method: Method, percentile: float = 99.99) -> float:
        """The magnitude that becomes 127; 0 where all values are 0."""
        if not self.counts.any():
            return self.largest
        methods: dict[Method, Callable[[], float]] = {
            "minmax": lambda: self.largest,
            "percentile": lambda: self._percentile(percentile),
            "entropy": self._entropy,
            "mse": self._mse,
        }
        return min(methods[method](), self.largest)

    def _percentile(self, percentile: float) -> float:
        cumulated = self.num_zeros + np.cumsum(self.counts)
        wanted = percentile / 100 * cumulated[-1]
        return float(_EDGES[1:][np.searchsorted(cumulated, wanted)])

    def _mse(self) -> float:
        """The range of least mean squared error: clipped values lose the excess, others are rounded.

        Rounding errs by step**2 / 12 on average, and by the whole value below half a step.
        """
        used = np.flatnonzero(self.counts)
        x, n = _CENTRES[used], self.counts[used].astype(np.float64)
        candidates = np.append(_EDGES[1:][used[x > x[-1] / 64]], self.largest)
        clipped = np.maximum(x[None] - candidates[:, None], 0.0) ** 2
        rounded = np.minimum(x[None] ** 2, (candidates[:, None] / LEVELS) ** 2 / 12)
        errors = (np.where(x[None] > candidates[:, None], clipped, rounded) * n).sum(1)
        return float(candidates[errors.argmin()])

    def _entropy(self) -> float:
        """The range of least Kullback-Leibler divergence (Migacz, "8-bit inference with TensorRT", GTC 2017)."""
        counts = self._linear(_ENTROPY_BINS)
        best, best_range = np.inf, _ENTROPY_BINS
        for end in range(LEVELS + 1, _ENTROPY_BINS + 1, 16):
            clipped = counts[:end].copy()
            clipped[-1] += counts[end:].sum()
            level = np.arange(end) * (LEVELS + 1) // end
            present = counts[:end] > 0
            sums = np.bincount(level, counts[:end], LEVELS + 1)
            sizes = np.bincount(level, present, LEVELS + 1)
            quantised = np.where(present, (sums / np.maximum(sizes, 1))[level], 0.0)
            divergence = _divergence(clipped, quantised)
            if divergence < best:
                best, best_range = divergence, end
        return self.largest * best_range / _ENTROPY_BINS

    def _linear(self, num_bins: int) -> npt.NDArray[np.float64]:
        """The counts over equal bins from 0 to the largest magnitude."""
        cumulated = self.num_zeros + np.concatenate([[0], np.cumsum(self.counts)])
        edges = np.linspace(0, self.largest, num_bins + 1)
        inner = np.interp(edges, np.minimum(_EDGES, self.largest), cumulated)
        inner[0], inner[-1] = 0, cumulated[-1]
        counts = np.diff(inner)
        counts[0] = counts[1]  # zeros cost no level, and would drown the rest (as TensorRT's own calibrator does)
        return np.asarray(counts, np.float64)


def _divergence(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    p, q = p / p.sum(), q / max(q.sum(), 1e-12)
    both = (p > 0) & (q > 0)
    missed = p[(p > 0) & (q <= 0)].sum()  # what has no level at all
    return float((p[both] * np.log(p[both] / q[both])).sum() + missed * 10)
