"""How close two arrays or pictures are, and how sure a share is: figures of several reports. Knows no models."""

import math
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

WILSON_Z: Final = 1.959963984540054  # 97.5 % quantile of the normal distribution
_NOTHING: Final = 1e-12  # a smaller norm is none
_Steps: TypeAlias = npt.NDArray[np.float64]


def cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Cosine of two arrays, in float64; -1 where a value is not finite."""
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    value = float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))
    return value if np.isfinite(value) else -1.0


def agreement(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> tuple[_Steps, _Steps, _Steps]:
    """Cosine, ratio of norms and largest error over the last axis, the worst of every step: `[steps, ..., n]`.

    In float64. Two vectors of zeros agree; what is not finite agrees in nothing.
    """
    a, b = (side.astype(np.float64).reshape(len(side), -1, side.shape[-1]) for side in (found, expected))
    with np.errstate(over="ignore", invalid="ignore"):
        norm_a, norm_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
        zeros = (norm_a < _NOTHING) & (norm_b < _NOTHING)
        cosine = np.where(zeros, 1.0, (a * b).sum(-1) / np.maximum(norm_a * norm_b, _NOTHING**2))
        ratio = np.where(zeros, 1.0, norm_a / np.maximum(norm_b, _NOTHING))
        error = np.abs(a - b).max(-1)
    finite = np.isfinite(error)
    cosine, ratio = np.where(finite, cosine, -1.0), np.where(finite, ratio, 0.0)
    worst = np.abs(ratio - 1).argmax(1)
    return cosine.min(1), ratio[np.arange(len(ratio)), worst], np.where(finite, error, 1e30).max(1)


def relative_error(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Norm of the difference in units of the expected norm, in float64; infinite where a value is not finite."""
    a, b = (side.astype(np.float64).reshape(-1) for side in (found, expected))
    error = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), _NOTHING))
    return error if math.isfinite(error) else math.inf


@dataclass(frozen=True)
class Interval:
    """A figure and its 95% interval; a format is that of each number, with two places where there is none."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        each = spec or ".2f"
        return f"{self.value:{each}} [{self.low:{each}}, {self.high:{each}}]"

    def __str__(self) -> str:
        return format(self)


def largest_magnitude(values: npt.NDArray[Any]) -> float:
    """The largest absolute value; infinite where one is not finite."""
    return float(np.abs(values).max()) if np.isfinite(values).all() else math.inf


def psnr_db(a: npt.NDArray[Any], b: npt.NDArray[Any], *, most: float = 999.0) -> float:
    """Peak signal to noise ratio of pixels in [-1, 1], in dB.

    `most` where they are identical, so that a mean stays finite, and `-most` where a number is not finite.
    """
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    if not math.isfinite(error):
        return -most
    return most if error == 0 else min(most, 10 * math.log10(4 / error))


def ssim(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Structural similarity of pixels in [-1, 1], `[H, W, 3]`: 1 where they are identical.

    Of the luminance, in windows of 7 x 7 pixels without weights (Wang et al. 2004, IEEE TIP 13, equation 13).
    """
    x, y = (each.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) for each in (a, b))
    side = min(7, *x.shape)

    def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        windows: npt.NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(values, (side, side)).mean((2, 3))
        return windows

    mean_x, mean_y = mean(x), mean(y)
    squares = mean_x**2 + mean_y**2
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    both = (2 * mean_x * mean_y + c1) * (2 * (mean(x * y) - mean_x * mean_y) + c2)
    return float((both / ((squares + c1) * (mean(x**2) + mean(y**2) - squares + c2))).mean())


def wilson_interval(successes: float, num: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score (Wilson 1927, JASA 22, p. 209); (0, 1) without trials."""
    if not num:
        return 0.0, 1.0
    share, spread = successes / num, WILSON_Z**2 / num
    middle = (share + spread / 2) / (1 + spread)
    half = WILSON_Z / (1 + spread) * math.sqrt((share * (1 - share) + spread / 4) / num)
    low = middle - half if successes else 0.0  # exactly, not up to rounding
    return low, middle + half if successes < num else 1.0
