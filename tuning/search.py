"""The search: plans from the cheapest on, each given up as soon as it is surely worse; the held-out half decides.

Knows nothing of files and reports.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

import numpy as np

from runtime.bundle.plan import describe_plan
from runtime.events import Progress
from runtime.options import Plan
from tuning.cache import Cache
from tuning.candidates import Candidate, Candidates
from tuning.config import TuneConfig
from tuning.drawings import Drawn, Picture, Studio, batches
from tuning.judging import Comparison, Mark, Verdict, compare
from tuning.scorers import Scorer
from tuning.subjects import Halves, Subject
from verification.measures.metrics import psnr_db, ssim

LOOKS: Final = (24, 48, 96)  # pictures after which a plan may be given up
_MOST_PSNR: Final = 99.0  # of equal pictures, so that a mean stays finite


@dataclass(frozen=True)
class Tried:
    """A plan, and what the first half, or as much of it as was drawn, says of it."""

    candidate: Candidate
    found: Comparison
    is_promising: bool


@dataclass
class Found:
    """What the search came to.

    Attributes:
        tried: In the order of trial.
        judged: What the held-out half said, plan by plan.
        best: The plan that it took, if any.
        reason: Why there is none.
    """

    tried: list[Tried] = field(default_factory=list)
    judged: list[tuple[Candidate, Comparison, Verdict]] = field(default_factory=list)
    best: tuple[Candidate, Comparison] | None = None
    reason: str = ""


class Bench:
    """Draws and scores what the cache does not have yet.

    Args:
        studio: Draws.
        scorer: Scores; None leaves it to the distance.
        cache: What is known.
        report: Told how far the work is, in rows of the denoiser.
    """

    def __init__(self, studio: Studio, scorer: Scorer | None, cache: Cache, report: "RowCounter") -> None:
        self.studio, self._scorer, self._cache, self._report = studio, scorer, cache, report

    def draw_originals(self, subjects: Sequence[Subject], rows: int) -> None:
        """Draw by the full plan."""
        for batch in batches([each for each in subjects if each.index not in self._cache.originals]):
            drawn = self.studio.originals(batch)
            scores = self._score([each.picture for each in drawn], batch)
            found = {each.index: pair for each, pair in zip(batch, zip(drawn, scores, strict=True), strict=True)}
            self._cache.add_originals(found)
            self._report.add("rows drawn by the full plan", rows * len(batch))

    def original(self, subject: Subject) -> Drawn:
        """What the full plan drew."""
        return self._cache.originals[subject.index][0]

    def full_mark(self, subject: Subject) -> Mark:
        """What that came to."""
        return Mark(self._cache.originals[subject.index][1], _MOST_PSNR, 1.0)

    def marks(self, candidate: Candidate, subjects: Sequence[Subject], what: str) -> list[Mark]:
        """What pictures come to by a plan."""
        key, known = describe_plan(candidate.plan), self._cache.marks
        for batch in batches([each for each in subjects if (key, each.index) not in known]):
            pictures = self.draw(candidate.plan, batch)
            rows = zip(batch, pictures, self._score(pictures, batch), strict=True)
            found = {each.index: _mark(self.original(each).picture, picture, score) for each, picture, score in rows}
            self._cache.add_marks(key, found)
            self._report.add(f"{what}, {key}", candidate.rows * len(batch))
        return [known[key, subject.index] for subject in subjects]

    def draw(self, plan: Plan, subjects: Sequence[Subject]) -> list[Picture]:
        """Pictures by a plan, from the tokens of the full one."""
        return self.studio.again(subjects, [self.original(each).rep_ids for each in subjects], plan)

    def compare(self, candidate: Candidate, subjects: Sequence[Subject], what: str) -> Comparison:
        """A plan against the full one."""
        marks, full = self.marks(candidate, subjects, what), [self.full_mark(each) for each in subjects]
        return compare(full, marks, [each.prompt for each in subjects])

    def _score(self, pictures: Sequence[Picture], subjects: Sequence[Subject]) -> Sequence[float | None]:
        if self._scorer is None:
            return [None] * len(pictures)
        return self._scorer.score(pictures, [each.prompt for each in subjects])


def _mark(full: Picture, found: Picture, score: float | None) -> Mark:
    a, b = (each.astype(np.float32) / 127.5 - 1 for each in (full, found))
    return Mark(score, psnr_db(b, a, most=_MOST_PSNR), ssim(b, a))


class RowCounter:
    """Counts rows of the denoiser for a progress bar; how many there will be is a guess from above."""

    def __init__(self, report: Progress, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def add(self, what: str, rows: int) -> None:
        """Tell that so many more are done."""
        self._done += rows
        self._report(what, min(self._done, self._total - 1), self._total)


def search(bench: Bench, candidates: Candidates, halves: Halves, config: TuneConfig) -> Found:
    """Find the cheapest plan that is as good as the full one."""
    found = Found()
    for candidate in _promising(bench, candidates, halves.search, config, found):
        if len(found.judged) == config.max_tries:
            found.reason = f"the held-out half found {config.max_tries} plans worse that the first half took"
            return found
        comparison = bench.compare(candidate, halves.held_out, "rows drawn of the held-out half")
        verdict = comparison.verdict(config)
        found.judged.append((candidate, comparison, verdict))
        if verdict == "as good":
            found.best = candidate, comparison
            return found
        if verdict == "cannot tell":
            found.reason = _too_few(comparison, config)
            return found
    found.reason = found.reason or "no plan was as good that is cheaper than the full one"
    return found


def _promising(
    bench: Bench, candidates: Candidates, subjects: Sequence[Subject], config: TuneConfig, found: Found
) -> Iterator[Candidate]:
    """Plans that the first half takes, the cheapest first; the first of them only after finer ones were tried."""
    rest = candidates.coarse()
    best = _race(bench, rest, subjects, config, found)
    if best is None:
        return
    finer = candidates.finer(best)
    better = _race(bench, finer, subjects, config, found)
    while better is not None:
        yield better
        finer = [each for each in finer if each.rows > better.rows]
        better = _race(bench, finer, subjects, config, found)
    while best is not None:
        yield best
        rest = [each for each in rest if each.rows > best.rows]
        best = _race(bench, rest, subjects, config, found)


def _race(
    bench: Bench, candidates: Sequence[Candidate], subjects: Sequence[Subject], config: TuneConfig, found: Found
) -> Candidate | None:
    """The cheapest plan that is promising; among those that cost the same, the one that lost least."""
    for _, group in groupby(candidates, lambda each: each.rows):
        tried = [_try(bench, each, subjects, config) for each in group]
        found.tried += tried
        good = [each for each in tried if each.is_promising]
        if good:
            return max(good, key=lambda each: each.found.merit).candidate
    return None


def _try(bench: Bench, candidate: Candidate, subjects: Sequence[Subject], config: TuneConfig) -> Tried:
    for number in (*(look for look in LOOKS if look < len(subjects)), len(subjects)):
        comparison = bench.compare(candidate, subjects[:number], "rows drawn to search")
        if number < len(subjects) and comparison.is_hopeless(config):
            return Tried(candidate, comparison, False)
    return Tried(candidate, comparison, comparison.is_promising(config))


def _too_few(comparison: Comparison, config: TuneConfig) -> str:
    if comparison.pictures < config.min_held_out:
        return (
            f"{comparison.pictures} held-out pictures are too few to call two plans as good, and "
            f"{config.min_held_out} are needed: give --pictures {2 * config.min_held_out} or more"
        )
    assert comparison.change is not None
    return (
        f"the change lies between {comparison.change.low:+.1f} and {comparison.change.high:+.1f} points, too wide to "
        "call two plans as good: give more --pictures"
    )
