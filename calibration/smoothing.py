"""Ranges of a layer's input, and how much of its outlying channels the weight takes over.

After SmoothQuant (Xiao et al., arXiv 2211.10438): channel j of the input is divided by
s_j = max|X_j|**alpha / max|W_j|**(1 - alpha) and row j of the weight multiplied by it. Alpha is chosen per layer by the
error of the product on sampled rows, and no migration is one of the choices. Knows nothing of graphs.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from calibration.config import CalibrationConfig
from calibration.histogram import LEVELS, Histogram
from calibration.quantise import QuantisedWeight, stored_scales
from calibration.statistics import Activations
from verification.measures.metrics import relative_error

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


def choose_range(
    activations: Activations, weight: npt.NDArray[Any], config: CalibrationConfig, owner: Matrix | None
) -> Range:
    """The range of least error among those that the config allows.

    Args:
        activations: What the layer was fed.
        weight: [in, out] in the type that the graph computes in, and that scales are stored in.
        config: Method of the range, and whether to smooth.
        owner: [in] largest magnitudes of what takes over the factors; None where nothing can.
    """
    x, dtype, weight = activations.samples, weight.dtype, weight.astype(np.float32)
    plain = activations.histogram.range(config.method, config.percentile)
    best = Range(plain, None, None, product_error(x, weight, plain, dtype))
    if owner is None or not config.smooth:
        return best
    row_max = np.abs(weight).max(1)
    bounds = factor_bounds(activations.channel_max, row_max, owner, dtype)
    for alpha in ALPHAS:
        factors = np.clip(smoothing_factors(activations.channel_max, row_max, alpha), *bounds).astype(np.float32)
        histogram = Histogram.of(x / factors)
        histogram.largest = float((activations.channel_max / factors).max())
        largest = histogram.range(config.method, config.percentile)
        error = product_error(x / factors, weight * factors[:, None], largest, dtype)
        if error < best.error:
            best = Range(largest, alpha, factors, error)
    return best


def smoothing_factors(channel_max: Matrix, row_max: Matrix, alpha: float) -> Matrix:
    """Factors of the migration, `[in]`, of geometric mean 1; 1 for channels that are always 0.

    Args:
        channel_max: [in] largest magnitudes of the input.
        row_max: [in] largest magnitudes of the weight.
        alpha: How much of an outlier goes into the weight.
    """
    used = (channel_max > 0) & (row_max > 0)
    factors = np.ones(len(channel_max), np.float32)
    if used.any():  # nothing is where a layer is dead
        logs = alpha * np.log(channel_max[used]) - (1 - alpha) * np.log(row_max[used])
        factors[used] = np.clip(np.exp(logs - logs.mean()), 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    return factors


def factor_bounds(
    channel_max: Matrix, row_max: Matrix, owner: Matrix, dtype: npt.DTypeLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The least and the largest factor `[in]` with which everything stays in the range of a type; 1 is between them.

    What is divided (the input and its owner) must not overflow, nor the owner lose bits among the subnormal numbers;
    what is multiplied (the weight) must not overflow.
    """
    info = np.finfo(dtype)
    most, least = float(info.max) / 4, float(info.tiny) * (LEVELS + 1)
    low = np.maximum(channel_max, owner).astype(np.float64) / most
    high = np.minimum(owner.astype(np.float64) / least, most / np.maximum(row_max.astype(np.float64), float(info.tiny)))
    return np.minimum(low, 1.0), np.maximum(high, 1.0)


def product_error(x: Matrix, weight: Matrix, largest: float, dtype: npt.DTypeLike = np.float32) -> float:
    """Relative error of `x @ weight` where both become INT8: `||q - exact|| / ||exact||`."""
    step = stored_scales(largest, LEVELS, dtype).astype(np.float32)
    rounded_x = np.clip(np.rint(x / step), -LEVELS, LEVELS) * step
    rounded_w = QuantisedWeight.of(weight, LEVELS, len(weight), dtype).restored
    return relative_error(rounded_x @ rounded_w, x @ weight)
