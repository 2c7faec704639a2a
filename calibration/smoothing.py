"""Ranges of a layer's input, and how much of its outlying channels the weight takes over.

After SmoothQuant (Xiao et al., arXiv 2211.10438): channel j of the input is divided by
s_j = max|X_j|**alpha / max|W_j|**(1 - alpha) and row j of the weight multiplied by it. Alpha is chosen per layer by the
error of the product on sampled rows, and no migration is one of the choices. Knows nothing of graphs.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from calibration.config import CalibrationConfig
from calibration.histogram import LEVELS, Histogram
from calibration.quantise import column_scales
from calibration.statistics import Activations

ALPHAS: Final = (0.3, 0.4, 0.5, 0.6, 0.7)
_LARGEST_FACTOR: Final = 1e3
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Range:
    """The range of a layer's input.

    Attributes:
        largest: magnitude that becomes 127, after smoothing.
        alpha: of the migration; None for none.
        smoothing: [in] factors, or None.
        error: relative error of the product on the sampled rows.
    """

    largest: float
    alpha: float | None
    smoothing: Matrix | None
    error: float


def choose_range(activations: Activations, weight: Matrix, config: CalibrationConfig, *, can_smooth: bool) -> Range:
    """The range of least error among those that the config allows.

    Args:
        activations: What the layer was fed.
        weight: [in, out].
        config: Method of the range, and whether to smooth.
        can_smooth: Whether anyone can take over the factors.
    """
    x = activations.samples
    plain = activations.histogram.range(config.method, config.percentile)
    best = Range(plain, None, None, product_error(x, weight, plain))
    if not (config.smooth and can_smooth):
        return best
    for alpha in ALPHAS:
        factors = smoothing_factors(activations.channel_max, weight, alpha)
        histogram = Histogram.of(x / factors)
        histogram.largest = float((activations.channel_max / factors).max())
        largest = histogram.range(config.method, config.percentile)
        error = product_error(x / factors, weight * factors[:, None], largest)
        if error < best.error:
            best = Range(largest, alpha, factors, error)
    return best


def smoothing_factors(channel_max: Matrix, weight: Matrix, alpha: float) -> Matrix:
    """Factors of the migration, `[in]`, of geometric mean 1; 1 for channels that are always 0."""
    row_max = np.abs(weight).max(1)
    used = (channel_max > 0) & (row_max > 0)
    logs = alpha * np.log(channel_max[used]) - (1 - alpha) * np.log(row_max[used])
    factors = np.ones(len(channel_max), np.float32)
    factors[used] = np.clip(np.exp(logs - logs.mean()), 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    return factors


def product_error(x: Matrix, weight: Matrix, largest: float) -> float:
    """Relative error of `x @ weight` where both become INT8: `||q - exact|| / ||exact||`."""
    step = max(largest, 1e-12) / LEVELS
    scales = column_scales(weight)
    rounded_x = np.clip(np.rint(x / step), -LEVELS, LEVELS) * step
    rounded_w = np.clip(np.rint(weight / scales), -LEVELS, LEVELS) * scales
    exact = x @ weight
    return float(np.linalg.norm(rounded_x @ rounded_w - exact) / max(float(np.linalg.norm(exact)), 1e-12))
