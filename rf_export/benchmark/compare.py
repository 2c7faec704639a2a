"""Two results of `rf-export bench --repeat`: is the later one slower, beyond noise and beyond a slower machine?

Knows nothing of measuring, needs no torch. A process has its memory in one place for its whole life, so that rounds
within one process say nothing about how much two builds differ (`repeats.py` cites who found it): the value of a
process is a median over its rounds, and intervals come from how far fresh processes of the same result lie apart. For
every contender of ours and every stage that both results have, and for all stages of a contender together (`overall`):

- `raw`: ratio of the times, later over earlier.
- `drift`: the same ratio of the yardsticks that took turns with the contenders of this stage: those of `yardstick.py`,
  and eager PyTorch, which does the same work on the same machine in the same version, so that what slows both is not
  ours (small steps are bound by calls and cold caches, of which no kernel tells).
- `normalised`: ratio of what each round took in units of that round's yardstick, by the yardstick that explains most.
  A slowdown is charged only as far as no yardstick explains it (it has to be one by each of them: an
  intersection-union test, Berger 1982), and one that a faster machine hides shows.

Ratios are of geometric means over processes, those of `overall` over stages too (Fleming and Wallace 1986); intervals
are Student's for two samples, on the log scale. A regression is a row whose interval lies above 1 + the smallest effect
of interest. All rows together raise a false alarm with probability 5% at most: half of it is shared by the `overall`
rows, half by all others (Bonferroni).

The clock is wall time. On a machine that others use, CPU time (of all threads) tells more: time that they took is not
in it. What waits, on a GPU or a disk, is not in it either.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rf_export.benchmark.tables import FORMAT, TITLES, aligned
from runtime.bundle.strict_json import read_json
from runtime.errors import RFError

FALSE_ALARMS = 0.05  # of a whole comparison
MIN_PROCESSES = 3  # of each result
MIN_EFFECT = 0.03
OVERALL = "overall"
KERNELS = "kernels"  # all of `yardstick.py` that a stage has
OURS = ("engine ", "onnx ")
PYTORCH = "eager fp32"
EXPECTED_EQUAL = (
    "cpu",
    "features",
    "cores",
    "caches",
    "governor",
    "max_mhz",
    "power_mode",
    "python",
    "versions",
    "thread_variables",
)
Clock = Literal["wall", "cpu"]
SAMPLES: dict[Clock, str] = {"wall": "samples_ms", "cpu": "cpu_samples_ms"}
Verdict = Literal["slower", "faster", "same", "unclear"]
Key = tuple[int, str, str]  # threads, stage, contender


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One contender and stage in one process: logarithms of medians over the rounds."""

    time: float
    yardsticks: dict[str, float]  # their own times
    units: dict[str, float]  # the contender's time in units of each yardstick, round by round

    def only(self, names: Collection[str]) -> "Measured":
        """With these yardsticks."""
        yardsticks, units = ({name: each[name] for name in names} for each in (self.yardsticks, self.units))
        return Measured(time=self.time, yardsticks=yardsticks, units=units)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of one contender and stage. Ratios are later over earlier: above 1 is slower."""

    threads: int
    stage: str
    contender: str
    raw: float
    drift: dict[str, float]  # by yardstick
    normalised: float
    low: float | None  # interval of `normalised`; None with too few processes
    high: float | None
    verdict: Verdict


def read_result(path: Path) -> dict[str, Any]:
    """A result of `bench --json` or `--output`; raises RFError where it is none."""
    try:
        result: dict[str, Any] = read_json(path)
        found = result["format"], result["runs"], result["machine"], result["model"], result["options"]
        for runs in (result["runs"], *result.get("repeats", ())):
            for run in runs:
                _ = run["threads"], run["timings"], run["yardsticks"]
    except (RFError, KeyError, TypeError) as error:
        why = str(error).rstrip(".")
        raise RFError(f"{path} is no result of rf-export bench: {why}. Write one with bench --output.") from error
    if found[0] != FORMAT:
        raise RFError(f"{path} has format {found[0]}, and this version compares format {FORMAT}. Measure it again.")
    return result


def differences(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """What makes two results incomparable: another machine, other versions, other work; a sentence each."""
    pairs = [
        (f"the machine's {name}", earlier["machine"].get(name), later["machine"].get(name)) for name in EXPECTED_EQUAL
    ]
    work = sorted({*earlier["model"], *later["model"]} - {"bundle_id", "weight_bytes"})
    pairs += [(f"the model's {name}", earlier["model"].get(name), later["model"].get(name)) for name in work]
    before, after = (sorted(run["threads"] for run in result["runs"]) for result in (earlier, later))
    pairs.append(("the number of threads", before, after))
    return [f"{name}: {_shown(a)}, then {_shown(b)}" for name, a, b in pairs if a != b]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items()) or "none"
    return "unknown" if value is None else str(value)


def compare(
    earlier: Mapping[str, Any], later: Mapping[str, Any], *, min_effect: float = MIN_EFFECT, clock: Clock = "wall"
) -> list[Change]:
    """Every contender and stage that both have, and each contender's stages together.

    Where a result has no fresh processes, the one that measured everything stands for them, and no verdict is possible.

    Raises:
        RFError: They have none in common.
    """
    processes = [
        [dict(_measured(runs, SAMPLES[clock])) for runs in result.get("repeats") or [result["runs"]]]
        for result in (earlier, later)
    ]
    everywhere = [rows for result in processes for rows in result]
    keys = [key for key in everywhere[0] if all(key in rows for rows in everywhere)]
    if not keys:
        raise RFError("The two results have no contender and stage in common. Measure the same precisions and threads.")
    for key in keys:  # near the ridge, one process may have had both kernels and another one of them
        names = set.intersection(*(set(rows[key].units) for rows in everywhere))
        for rows in everywhere:
            rows[key] = rows[key].only(sorted(names))
    together = {
        (threads, OVERALL, contender): [key for key in keys if (key[0], key[2]) == (threads, contender)]
        for threads, _, contender in keys
    }
    for rows in everywhere:
        rows |= {key: _together([rows[part] for part in parts]) for key, parts in together.items()}
    return [
        _change(
            key,
            *([rows[key] for rows in result] for result in processes),
            min_effect=min_effect,
            risk=FALSE_ALARMS / 2 / len(group),
        )
        for group in (list(together), keys)
        for key in group
    ]


def _measured(runs: Sequence[Mapping[str, Any]], name: str) -> Iterator[tuple[Key, Measured]]:
    """Of one process."""
    for run in runs:
        for stage, rows in run["timings"].items():
            yards = {**run["yardsticks"][stage], **({PYTORCH: rows[PYTORCH]} if PYTORCH in rows else {})}
            logs = {each: np.log(row[name]) for each, row in yards.items()}
            for contender, timing in rows.items():
                if contender.startswith(OURS):
                    times = np.log(timing[name])
                    yield (
                        (run["threads"], stage, contender),
                        Measured(
                            time=float(np.median(times)),
                            yardsticks={each: float(np.median(log)) for each, log in logs.items()},
                            units={each: float(np.median(times - log)) for each, log in logs.items()},
                        ),
                    )


def _together(parts: Sequence[Measured]) -> Measured:
    """Mean over stages; of the kernels that a stage has, first over these."""

    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    def merged(stages: Sequence[Mapping[str, float]]) -> dict[str, float]:
        kernels = mean(mean(value for name, value in each.items() if name != PYTORCH) for each in stages)
        with_pytorch = all(PYTORCH in each for each in stages)
        return {KERNELS: kernels, **({PYTORCH: mean(each[PYTORCH] for each in stages)} if with_pytorch else {})}

    return Measured(
        time=mean(each.time for each in parts),
        yardsticks=merged([each.yardsticks for each in parts]),
        units=merged([each.units for each in parts]),
    )


def _change(
    key: Key, before: Sequence[Measured], after: Sequence[Measured], *, min_effect: float, risk: float
) -> Change:
    threads, stage, contender = key
    names = list(before[0].units)
    values = {name: [np.array([each.units[name] for each in side]) for side in (before, after)] for name in names}
    verdict: Verdict = "unclear"
    low = high = None
    if min(len(before), len(after)) >= MIN_PROCESSES:
        intervals = [interval(*sides, probability=1 - risk) for sides in values.values()]
        low, high = (min(ends) for ends in zip(*intervals, strict=True))
        most = max(end for _, end in intervals)
        verdict = "slower" if low > 1 + min_effect else "faster" if most < 1 / (1 + min_effect) else "same"

    def ratio(log: Callable[[Measured], float]) -> float:
        return math.exp(float(np.mean(list(map(log, after))) - np.mean(list(map(log, before)))))

    return Change(
        threads=threads,
        stage=stage,
        contender=contender,
        raw=ratio(lambda each: each.time),
        drift={name: ratio(lambda each, name=name: each.yardsticks[name]) for name in names},  # type: ignore[misc]
        normalised=min(ratio(lambda each, name=name: each.units[name]) for name in names),  # type: ignore[misc]
        low=low,
        high=high,
        verdict=verdict,
    )


def interval(before: NDArray[np.float64], after: NDArray[np.float64], *, probability: float) -> tuple[float, float]:
    """Ends that the ratio of geometric means lies above, and below, with this probability each; of logarithms `[P]`."""
    freedom = len(before) + len(after) - 2
    squares = sum(float(((side - side.mean()) ** 2).sum()) for side in (before, after))
    half = student_quantile(probability, freedom) * math.sqrt(squares / freedom * (1 / len(before) + 1 / len(after)))
    middle = float(after.mean() - before.mean())
    return math.exp(middle - half), math.exp(middle + half)


def student_quantile(probability: float, freedom: int) -> float:
    """Of Student's t, by Peizer and Pratt (1968, JASA 63, p. 1420).

    Never too small, from 4 degrees of freedom on: by 3% too large there at 99.9%, by 0.5% with 8, by 0.1% with 14.
    """
    z = NormalDist().inv_cdf(probability)
    return math.sqrt(freedom * math.expm1(z**2 * (freedom - 5 / 6) / (freedom - 2 / 3 + 1 / (10 * freedom)) ** 2))


def format_changes(changes: list[Change], min_effect: float) -> str:
    """A table, worst first, and the verdict."""
    rows = [["threads", "stage", "contender", "raw", "drift of yardsticks", "normalised", "interval", ""]]
    for each in sorted(changes, key=lambda change: -change.normalised):
        rows.append(
            [
                str(each.threads),
                TITLES.get(each.stage, each.stage),
                each.contender,
                f"{each.raw:.3f}",
                drifts(each.drift),
                f"{each.normalised:.3f}",
                shown_interval(each.low, each.high),
                each.verdict,
            ]
        )
    head = "times, later over earlier: above 1 is slower"
    return "\n".join([head, *aligned(rows), "", verdict_line(changes, min_effect)])


def drifts(drift: Mapping[str, float]) -> str:
    """For a cell of a table."""
    return ", ".join(f"{name} {value:.3f}" for name, value in drift.items())


def shown_interval(low: float | None, high: float | None) -> str:
    """For a cell of a table."""
    return "too few processes" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def verdict_line(changes: list[Change], min_effect: float) -> str:
    """One sentence."""
    slower = [change for change in changes if change.verdict == "slower"]
    faster = sum(change.verdict == "faster" for change in changes)
    rest = f"; {faster} faster" * bool(faster)
    if slower:
        worst = max(slower, key=lambda change: change.normalised)
        return (
            f"REGRESSION: {len(slower)} of {len(changes)} slower by more than {min_effect:.0%}, beyond noise and "
            f"drift; worst: {worst.contender}, {worst.stage}, {worst.normalised:.3f}{rest}"
        )
    if all(change.verdict == "unclear" for change in changes):  # all rows have the same processes
        return f"no verdict: fewer than {MIN_PROCESSES} fresh processes"
    together, single = (_could_hide(changes, overall=overall) for overall in (True, False))
    return (
        f"no regression: none of {len(changes)} slower by more than {min_effect:.0%}, beyond noise and drift; "
        f"noise could hide one of {together:.1%} over all stages, of {single:.1%} in one{rest}"
    )


def _could_hide(changes: list[Change], *, overall: bool) -> float:
    """The largest slowdown that an interval of these rows reaches."""
    return max([0.0, *(each.high - 1 for each in changes if each.high and (each.stage == OVERALL) == overall)])
