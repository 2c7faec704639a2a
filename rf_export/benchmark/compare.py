"""Two results of `rf-export bench`: is the later one slower, beyond noise and beyond a slower machine?

Knows nothing of measuring, needs no torch. For every contender of ours and every stage that both results have:

- `raw`: ratio of the medians, later over earlier.
- `drift`: the same ratio of the yardsticks that took turns with the contenders of this stage: those of `yardstick.py`,
  and eager PyTorch, which does the same work on the same machine in the same version, so that what slows both is not
  ours (small steps are bound by calls and cold caches, of which no kernel tells).
- `normalised`: ratio of the medians of what each round took in units of that round's yardstick, the smallest of them.
  A slowdown is charged only as far as no yardstick explains it; and one that a faster machine hides shows.

Intervals are those of Student's t with the bootstrap's standard error, on the log scale (Efron and Tibshirani 1993,
chapters 6 and 12): the rounds of each run are drawn anew with replacement. All rows together raise a false alarm with
probability 5% at most: each has 0.05 / rows (Bonferroni). A regression is a row whose interval lies above 1 + the
smallest effect of interest.

The clock is wall time. On a machine that others use, CPU time (of all threads) tells more: time that they took is not
in it. What waits, on a GPU or a disk, is not in it either.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rf_export.benchmark.tables import FORMAT, READING_TITLES, STAGE_TITLES, aligned
from runtime.errors import RFError
from runtime.sections import read_json

NUM_RESAMPLES = 500
FALSE_ALARMS = 0.05  # of a whole comparison
MIN_ROUNDS = 6
MIN_EFFECT = 0.03
OURS = ("engine ", "onnx ")
PYTORCH = "eager fp32"
EXPECTED_EQUAL = ("cpu", "features", "cores", "caches", "governor", "max_mhz", "power_mode", "python", "versions",
                  "thread_variables")  # fmt: skip
Clock = Literal["wall", "cpu"]
SAMPLES: dict[Clock, str] = {"wall": "samples_ms", "cpu": "cpu_samples_ms"}
Verdict = Literal["slower", "faster", "same", "unclear"]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """One contender and stage in one run, with its yardsticks; values of one round have one index."""

    times: NDArray[np.float64]  # [rounds]
    yardsticks: dict[str, NDArray[np.float64]]  # [rounds] each

    def in_units(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Times in units of yardsticks: `[yardsticks, rounds]`."""
        return np.stack([self.times / self.yardsticks[name] for name in names])


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of one contender and stage. Ratios are later over earlier: above 1 is slower."""

    threads: int
    stage: str
    contender: str
    raw: float
    drift: dict[str, float]  # by yardstick
    normalised: float
    low: float | None  # interval of `normalised`; None with too few rounds
    high: float | None
    verdict: Verdict


def read_result(path: Path) -> dict[str, Any]:
    """A result of `bench --json` or `--output`; raises RFError where it is none."""
    try:
        result: dict[str, Any] = read_json(path)
        found = result["format"], result["runs"], result["machine"], result["model"], result["options"]
    except (RFError, KeyError, TypeError) as error:
        why = str(error).rstrip(".")
        raise RFError(f"{path} is no result of rf-export bench: {why}. Write one with bench --output.") from error
    if found[0] != FORMAT:
        raise RFError(f"{path} has format {found[0]}, and this version compares format {FORMAT}. Measure it again.")
    return result


def differences(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """What makes two results incomparable: another machine, other versions, other work; a sentence each."""
    pairs = [(f"the machine's {name}", earlier["machine"].get(name), later["machine"].get(name))
             for name in EXPECTED_EQUAL]  # fmt: skip
    work = sorted({*earlier["model"], *later["model"]} - {"bundle_id", "weight_bytes"})
    pairs += [(f"the model's {name}", earlier["model"].get(name), later["model"].get(name)) for name in work]
    threads = [sorted(run["threads"] for run in result["runs"]) for result in (earlier, later)]
    pairs.append(("the number of threads", *threads))
    return [f"{name}: {_shown(a)}, then {_shown(b)}" for name, a, b in pairs if a != b]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items()) or "none"
    return "unknown" if value is None else str(value)


def compare(
    earlier: Mapping[str, Any], later: Mapping[str, Any], *, min_effect: float = MIN_EFFECT, clock: Clock = "wall",
    seed: int = 0,
) -> list[Change]:  # fmt: skip
    """Every contender and stage that both have; raises RFError where they have none in common."""
    after = dict(_samples(later, SAMPLES[clock]))
    pairs = [(key, each, after[key]) for key, each in _samples(earlier, SAMPLES[clock]) if key in after]
    if not pairs:
        raise RFError("The two results have no contender and stage in common. Measure the same precisions and threads.")
    rng = np.random.default_rng(seed)
    return [_change(key, a, b, min_effect, FALSE_ALARMS / len(pairs), rng) for key, a, b in pairs]


def _samples(result: Mapping[str, Any], name: str) -> Iterator[tuple[tuple[int, str, str], Samples]]:
    for run in result["runs"]:
        for stage, rows in run["timings"].items():
            yards = {**run["yardsticks"][stage], **({PYTORCH: rows[PYTORCH]} if PYTORCH in rows else {})}
            for contender, timing in rows.items():
                if not contender.startswith(OURS):
                    continue
                yield (run["threads"], stage, contender), Samples(
                    times=np.array(timing[name]),
                    yardsticks={each: np.array(row[name]) for each, row in yards.items()},
                )


def _change(
    key: tuple[int, str, str], a: Samples, b: Samples, min_effect: float, risk: float, rng: np.random.Generator
) -> Change:
    threads, stage, contender = key
    names = [name for name in a.yardsticks if name in b.yardsticks]  # near the ridge, one run may have had both
    drift = {name: float(np.median(b.yardsticks[name]) / np.median(a.yardsticks[name])) for name in names}
    before, after = a.in_units(names), b.in_units(names)
    ratios = np.median(after, axis=1) / np.median(before, axis=1)  # [yardsticks]
    verdict: Verdict = "unclear"
    low = high = None
    if min(len(a.times), len(b.times)) >= MIN_ROUNDS:
        again = _resampled_medians(after, rng) / _resampled_medians(before, rng)  # [yardsticks, resamples]
        quantile = student_quantile(1 - risk, len(a.times) + len(b.times) - 2)
        low, high = interval(ratios.min(), again.min(axis=0), quantile)
        _, most = interval(ratios.max(), again.max(axis=0), quantile)
        verdict = "slower" if low > 1 + min_effect else "faster" if most < 1 / (1 + min_effect) else "same"
    return Change(
        threads=threads, stage=stage, contender=contender, raw=float(np.median(b.times) / np.median(a.times)),
        drift=drift, normalised=float(ratios.min()), low=low, high=high, verdict=verdict,
    )  # fmt: skip


def _resampled_medians(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Medians of rounds that are drawn anew: `[yardsticks, rounds] -> [yardsticks, resamples]`."""
    num_rounds = values.shape[1]
    drawn = rng.integers(0, num_rounds, (NUM_RESAMPLES, num_rounds))
    medians: NDArray[np.float64] = np.median(values[:, drawn], axis=2)
    return medians


def interval(ratio: float, resampled: NDArray[np.float64], quantile: float) -> tuple[float, float]:
    """The interval of a ratio, from resampled ones."""
    half = quantile * float(np.log(resampled).std(ddof=1))
    return float(ratio) * math.exp(-half), float(ratio) * math.exp(half)


def student_quantile(probability: float, freedom: int) -> float:
    """Of Student's t, by Peizer and Pratt (1968, JASA 63, p. 1420): to 0.3% from 5 degrees of freedom on, at 97.5%."""
    z = NormalDist().inv_cdf(probability)
    return math.sqrt(freedom * math.expm1(z**2 * (freedom - 5 / 6) / (freedom - 2 / 3 + 1 / (10 * freedom)) ** 2))


def format_changes(changes: list[Change], min_effect: float) -> str:
    """A table, worst first, and the verdict."""
    titles = {**STAGE_TITLES, **READING_TITLES}
    rows = [["threads", "stage", "contender", "raw", "drift of yardsticks", "normalised", "interval", ""]]
    for each in sorted(changes, key=lambda change: -change.normalised):
        rows.append([
            str(each.threads), titles[each.stage], each.contender, f"{each.raw:.3f}",
            drifts(each.drift), f"{each.normalised:.3f}", shown_interval(each.low, each.high), each.verdict,
        ])  # fmt: skip
    head = "times, later over earlier: above 1 is slower"
    return "\n".join([head, *aligned(rows), "", verdict_line(changes, min_effect)])


def drifts(drift: Mapping[str, float]) -> str:
    """For a cell of a table."""
    return ", ".join(f"{name} {value:.3f}" for name, value in drift.items())


def shown_interval(low: float | None, high: float | None) -> str:
    """For a cell of a table."""
    return "too few rounds" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def verdict_line(changes: list[Change], min_effect: float) -> str:
    """One sentence."""
    slower = [change for change in changes if change.verdict == "slower"]
    unclear = sum(change.verdict == "unclear" for change in changes)
    faster = sum(change.verdict == "faster" for change in changes)
    rest = f"; {faster} faster" * bool(faster) + f"; {unclear} with fewer than {MIN_ROUNDS} rounds" * bool(unclear)
    if slower:
        worst = max(slower, key=lambda change: change.normalised)
        return (f"REGRESSION: {len(slower)} of {len(changes)} slower by more than {min_effect:.0%}, beyond noise and "
                f"drift; worst: {worst.contender}, {worst.stage}, {worst.normalised:.3f}{rest}")  # fmt: skip
    hidden = max((change.high for change in changes if change.high is not None), default=1.0)
    return (f"no regression: none of {len(changes)} slower by more than {min_effect:.0%}, beyond noise and drift; "
            f"noise could hide one of {max(hidden - 1, 0):.1%}{rest}")  # fmt: skip
