"""Is a plan as good as the full one? Paired figures over the same pictures, their 95% intervals, and the verdict.

Knows nothing of plans and pictures: marks in, one per picture and in the same order for both plans.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from tuning.config import MIN_PSNR, TuneConfig
from verification.measures.metrics import WILSON_Z, Interval, wilson_interval

_ANYTHING: Final = 999.0  # half of an interval of which nothing is known

Verdict: TypeAlias = Literal["as good", "worse", "cannot tell"]


@dataclass(frozen=True)
class Mark:
    """What a picture came to: its score, where there is a scorer, and how near it is to that of the full plan."""

    score: float | None
    psnr_db: float
    ssim: float


@dataclass(frozen=True)
class Comparison:
    """A plan against the full one on the same pictures.

    Attributes:
        pictures: How many.
        full, score: Mean scores in percent of the full plan and of this one, with Wilson's intervals; None without a
            scorer, as everything else about scores.
        change: In points, by pairs.
        lost, won: Pictures whose score fell, and rose.
        p_value: Of as uneven a count of both or a more uneven one by chance: McNemar's test, exact, two-sided.
        psnr_db, ssim: Of the pictures against those of the full plan, mean.
    """

    pictures: int
    full: Interval | None
    score: Interval | None
    change: Interval | None
    lost: int
    won: int
    p_value: float | None
    psnr_db: Interval
    ssim: Interval

    def verdict(self, config: TuneConfig) -> Verdict:
        """What so many pictures say."""
        if not self.is_promising(config):
            return "worse"
        doubt = 0.0 if self.change is None else (self.change.high - self.change.low) / 2
        enough = self.pictures >= config.min_held_out and doubt <= config.max_doubt
        return "as good" if enough else "cannot tell"

    def is_hopeless(self, config: TuneConfig) -> bool:
        """Whether it is sure, at 97.5%, that more pictures would show it to be worse."""
        is_far = self.psnr_db.high < self._least_psnr(config)
        return is_far or (self.change is not None and self.change.high < -config.max_loss)

    def is_promising(self, config: TuneConfig) -> bool:
        """Whether the pictures show nothing against it; a distance has to be kept for sure."""
        is_near = self.psnr_db.low >= self._least_psnr(config)
        return is_near and (self.change is None or self.change.value >= -config.max_loss)

    def _least_psnr(self, config: TuneConfig) -> float:
        if config.min_psnr is not None:
            return config.min_psnr
        return MIN_PSNR if self.change is None else -math.inf

    @property
    def merit(self) -> float:
        """The larger, the better, among plans that cost the same."""
        return self.psnr_db.value if self.change is None else self.change.value

    def __str__(self) -> str:
        near = f"PSNR {self.psnr_db.value:.1f} dB"
        if self.score is None or self.full is None or self.change is None:
            return (
                f"{near} [{self.psnr_db.low:.1f}, {self.psnr_db.high:.1f}] to the full plan, {self.pictures} pictures"
            )
        return (
            f"score {self.score:.1f}% against {self.full:.1f}%, change {self.change.value:+.1f} points "
            f"[{self.change.low:+.1f}, {self.change.high:+.1f}], {self.lost} lost and {self.won} won of "
            f"{self.pictures}; {near}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(full: Sequence[Mark], found: Sequence[Mark], groups: Sequence[str]) -> Comparison:
    """Compare a plan with the full one.

    Args:
        full: Marks of the full plan.
        found: Those of the plan.
        groups: The prompt of each picture: several of one prompt are no independent trials.
    """
    psnr, ssim = (mean_interval([getattr(mark, name) for mark in found], groups) for name in ("psnr_db", "ssim"))
    pairs = [
        (before.score, after.score)
        for before, after in zip(full, found, strict=True)
        if before.score is not None and after.score is not None
    ]
    if not pairs:
        return Comparison(len(found), None, None, None, 0, 0, None, psnr, ssim)
    lost, won = (sum(sign * (after - before) > 0 for before, after in pairs) for sign in (-1, 1))
    return Comparison(
        pictures=len(found),
        full=_percent([before for before, _ in pairs]),
        score=_percent([after for _, after in pairs]),
        change=change_interval([100 * (after - before) for before, after in pairs], groups),
        lost=lost,
        won=won,
        p_value=mcnemar(lost, won),
        psnr_db=psnr,
        ssim=ssim,
    )


def _percent(scores: Sequence[float]) -> Interval:
    low, high = wilson_interval(sum(scores), len(scores))
    return Interval(100 * sum(scores) / len(scores), 100 * low, 100 * high)


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p-value (McNemar 1947, by the binomial distribution)."""
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1))
    return min(1.0, float(tail) / 2.0 ** (lost + won - 1))


def change_interval(changes: Sequence[float], groups: Sequence[str]) -> Interval:
    """Mean change in points of 100 and its interval, which is never of no width.

    Half a pair is added to each of the four outcomes of a pair, as Agresti and Min do (Statistics in Medicine 24, 2005,
    p. 729): where nothing was lost in n pictures, that does not mean that nothing ever is. Pictures of one group count
    as one sum.
    """
    return _interval(changes, groups, pseudo=[(0.5, 100.0), (0.5, -100.0), (1.0, 0.0)])


def mean_interval(values: Sequence[float], groups: Sequence[str]) -> Interval:
    """A mean and its interval from the spread of the groups' sums."""
    return _interval(values, groups, pseudo=[])


def _interval(values: Sequence[float], groups: Sequence[str], pseudo: Sequence[tuple[float, float]]) -> Interval:
    data = np.asarray(values, np.float64)
    weight = len(data) + sum(each for each, _ in pseudo)
    middle = (float(data.sum()) + sum(each * value for each, value in pseudo)) / weight
    _, places = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(places, data - middle).astype(np.float64)
    spread = float((sums**2).sum()) + sum(each * (value - middle) ** 2 for each, value in pseudo)
    if not pseudo and len(sums) > 1:
        spread *= len(sums) / (len(sums) - 1)
    half = WILSON_Z * math.sqrt(spread) / weight if pseudo or len(sums) > 1 else _ANYTHING
    return Interval(float(data.mean()), middle - half, middle + half)
