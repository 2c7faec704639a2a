"""What a timing tells of its samples."""

from types import SimpleNamespace

import pytest

from verification import rebuilds
from verification.candidates import NotRun
from verification.measures.timing import Timing, interleave


def test_a_timing_is_told_in_milliseconds_with_its_ends():
    told = Timing(wall=[n / 1000 for n in range(1, 201)], cpu=[n / 500 for n in range(1, 200)]).as_dict()
    assert (told["min_ms"], told["p95_ms"], told["p99_ms"]) == pytest.approx((1, 190, 198))
    assert (told["median_ms"], told["cpu_median_ms"], told["rounds"]) == (pytest.approx(100.5), pytest.approx(200), 200)
    assert told["low_ms"] < told["median_ms"] < told["high_ms"]
    assert told["samples_ms"][:3] == [1, 2, 3] and told["cpu_samples_ms"][-1] == 398


def test_samples_are_differences_of_clocks_per_step():
    timings = interleave({"quick": lambda: 4, "other": lambda: 1}, num_rounds=3, warm=False)
    for timing in timings.values():
        assert len(timing.wall) == len(timing.cpu) == 3
        assert all(0 <= value < 1 for value in (*timing.wall, *timing.cpu))


def test_of_several_builds_the_worst_verdict_counts():
    passed, bad, failed, worst = (
        SimpleNamespace(verdict=verdict, record={"fp32": {"cosine": cosine}})
        for verdict, cosine in (("passed", 0.999), ("passed", 0.99), ("failed", 1.0), ("failed", -0.5))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuilds, "worst_cosine", lambda record: record["fp32"]["cosine"])
        lost = NotRun(candidate=None, reason="gone")
        outcomes = [lost, passed, worst, failed, bad]
        assert sorted(outcomes, key=rebuilds._badness) == [passed, bad, failed, worst, lost]
