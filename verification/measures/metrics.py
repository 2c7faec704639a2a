"""Figures that several reports state: how close two pictures are, and how sure a share is. Knows nothing of models."""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

WILSON_Z: Final = 1.959963984540054  # 97.5 % quantile of the normal distribution


def cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Cosine of two arrays, in float64; -1 where a value is not finite."""
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    value = float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))
    return value if np.isfinite(value) else -1.0


def psnr_db(a: npt.NDArray[Any], b: npt.NDArray[Any], *, most: float = 999.0) -> float:
    """Peak signal to noise ratio of pixels in [-1, 1], in dB.

    `most` where they are identical, so that a mean stays finite, and `-most` where a number is not finite.
    """
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    if not math.isfinite(error):
        return -most
    return most if error == 0 else min(most, 10 * math.log10(4 / error))


def wilson_interval(successes: int, num: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score (Wilson 1927, JASA 22, p. 209); (0, 1) without trials."""
    if not num:
        return 0.0, 1.0
    share, spread = successes / num, WILSON_Z**2 / num
    middle = (share + spread / 2) / (1 + spread)
    half = WILSON_Z / (1 + spread) * math.sqrt((share * (1 - share) + spread / 4) / num)
    low = middle - half if successes else 0.0  # exactly, not up to rounding
    return low, middle + half if successes < num else 1.0
