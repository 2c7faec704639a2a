"""The score of generated pictures: does each show exactly what its caption demands?

After GenEval (arXiv 2310.11513): a picture is correct iff the checker sees exactly the demanded (colour,
object) items, no fewer and no more, and the demanded relation holds between their centres. Every score
carries its sample size, its Wilson interval, and the checker's own figures, because the checker errs too.
Runs without torch. Knows nothing of how pictures are made, and judges nothing but demands: beauty, style and
sharpness are out of its sight, except that a spoilt object is not seen as one.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rf_export.evaluation.checker import Checker, Detection, load_checker
from rf_export.training.scenes import (
    KINDS,
    Demand,
    Kind,
    SceneConfig,
    draw_demand,
    held_out_pairs,
    relation_holds,
    trained_pairs,
)
from verification.measures.metrics import wilson_interval

PROMPT_STREAM = 0x70726F6D  # keeps the prompts' random numbers apart from every training scene's
MAX_REPEATS = 2000  # draws without a new caption after which a kind counts as exhausted


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of successes among `num` trials, with its 95 % interval."""

    successes: int
    num: int

    @property
    def value(self) -> float:
        """The share; NaN without trials."""
        return self.successes / self.num if self.num else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval; (0, 1) without trials."""
        return wilson_interval(self.successes, self.num)

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON: value (None without trials), 95 % interval and number of trials."""
        low, high = self.interval
        return {"value": self.value if self.num else None, "low": low, "high": high, "n": self.num}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} [{low:.1%}, {high:.1%}] n={self.num}" if self.num else "n=0"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is right in one picture. None: the question does not arise, because its premise fails."""

    correct: bool
    count_right: bool  # as many things seen as demanded
    objects_right: bool  # exactly the demanded objects, whatever their colours
    colours_right: bool | None  # given the objects: exactly the demanded (colour, object) items
    position_right: bool | None  # given the objects of a demanded relation: it holds
    seen: tuple[Detection, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class SceneScore:
    """The score of a set of pictures; `str()` gives a table for people, `as_dict()` one for machines."""

    overall: Rate
    kinds: Mapping[str, Rate]
    aspects: Mapping[str, Rate]  # count, objects, colours (given objects), position (given objects)
    verdicts: tuple[Verdict, ...] = field(repr=False)
    checker: Mapping[str, Any] = field(repr=False)  # the checker's own figures, from checker.json

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the verdicts."""
        return {
            "overall": self.overall.as_dict(),
            "kinds": {name: rate.as_dict() for name, rate in self.kinds.items()},
            "aspects": {name: rate.as_dict() for name, rate in self.aspects.items()},
            "checker": dict(self.checker),
        }

    def __str__(self) -> str:
        lines = [f"{'':<10}{'right':>7}  {'95 % interval':<16}{'of':>5}"]
        for name, rate in [("overall", self.overall), *self.kinds.items(), *self.aspects.items()]:
            low, high = rate.interval
            figures = f"{rate.value:>7.1%}  {f'{low:.1%} to {high:.1%}':<16}" if rate.num else f"{'-':>7}  {'':<16}"
            lines.append(f"{name:<10}{figures}{rate.num:>5}")
        return "\n".join(lines)


def judge(seen: Sequence[Detection], demand: Demand) -> Verdict:
    """Compare what the checker saw in one picture with what its caption demands."""
    count_right = len(seen) == len(demand.items)
    objects_right = Counter(thing.object for thing in seen) == Counter(name for _, name in demand.items)
    colours_right = position_right = None
    if objects_right:
        colours_right = Counter((thing.colour, thing.object) for thing in seen) == Counter(demand.items)
        if demand.relation is not None:
            centres = {thing.object: thing.centre for thing in seen}
            first, second = (centres[name] for _, name in demand.items)
            position_right = relation_holds(demand.relation, first, second)
    return Verdict(
        correct=colours_right is True and position_right is not False,
        count_right=count_right,
        objects_right=objects_right,
        colours_right=colours_right,
        position_right=position_right,
        seen=tuple(seen),
    )


def score_pictures(
    pictures: NDArray[np.uint8],  # [n, 48, 48, 3]
    demands: Sequence[Demand],
    checker: Checker | None = None,
) -> SceneScore:
    """Judge every picture against its demand.

    Raises:
        ValueError: not as many pictures as demands, pictures of another size or type, or a demanded object
            that the checker does not know.
    """
    checker = checker or load_checker()
    if len(pictures) != len(demands):
        raise ValueError(f"expected one demand per picture, got {len(pictures)} pictures and {len(demands)} demands")
    unknown = {name for demand in demands for _, name in demand.items} - set(checker.objects)
    if unknown:
        raise ValueError(f"the checker does not know {sorted(unknown)}; it knows {', '.join(checker.objects)}")
    seen = checker.detect(pictures)
    verdicts = tuple(judge(things, demand) for things, demand in zip(seen, demands, strict=True))
    by_kind: dict[Kind, list[bool]] = {kind: [] for kind in KINDS}
    for verdict, demand in zip(verdicts, demands, strict=True):
        by_kind[demand.kind].append(verdict.correct)
    return SceneScore(
        overall=_rate([verdict.correct for verdict in verdicts]),
        kinds={kind: _rate(marks) for kind, marks in by_kind.items()},
        aspects={
            "count": _rate([verdict.count_right for verdict in verdicts]),
            "objects": _rate([verdict.objects_right for verdict in verdicts]),
            "colours": _rate([verdict.colours_right for verdict in verdicts]),
            "position": _rate([verdict.position_right for verdict in verdicts]),
        },
        verdicts=verdicts,
        checker=checker.facts.get("accuracy", {}),
    )


def evaluation_demands(num: int, seed: int, config: SceneConfig, held_out: bool = False) -> list[Demand]:
    """A fixed list of prompts, as evenly over the kinds as their number allows, no caption twice.

    There are few different captions of one object (86 with 16 objects; 10 that are held out): once a kind has
    no new caption left, the others fill the list. A smaller `num` gives the beginning of a larger list.

    Args:
        num: how many.
        seed: of the list; unrelated to the seeds of scenes.
        config: which objects and kinds.
        held_out: the first (colour, object) pair of every prompt was never shown in training; otherwise none.

    Raises:
        ValueError: there are not `num` different captions.
    """
    unseen = held_out_pairs(config)
    known = trained_pairs(config)
    rng = np.random.default_rng([seed, PROMPT_STREAM, int(held_out)])
    demands: dict[str, Demand] = {}
    open_kinds = list(config.kinds)
    while open_kinds and len(demands) < num:
        for kind in tuple(open_kinds):
            for _ in range(MAX_REPEATS):
                demand = draw_demand(rng, config, known, kind)
                if held_out:
                    demand = _with_first_pair(demand, sorted(unseen)[rng.integers(len(unseen))])
                if _is_new(demand, demands):
                    demands[demand.caption] = demand
                    break
            else:
                open_kinds.remove(kind)
    if len(demands) < num:
        raise ValueError(f"only {len(demands)} different captions found, {num} wanted: use more objects or kinds")
    return list(demands.values())[:num]


def _with_first_pair(demand: Demand, pair: tuple[str, str]) -> Demand:
    rest = (pair,) * (len(demand.items) - 1) if demand.kind == "count" else demand.items[1:]
    return replace(demand, items=(pair, *rest))


def _is_new(demand: Demand, demands: Mapping[str, Demand]) -> bool:
    """A caption not yet used, of two different objects where it names two."""
    names = {name for _, name in demand.items}
    return demand.caption not in demands and (demand.kind in ("single", "count") or len(names) == 2)


def _rate(marks: Sequence[bool | None]) -> Rate:
    asked = [mark for mark in marks if mark is not None]
    return Rate(successes=sum(asked), num=len(asked))
