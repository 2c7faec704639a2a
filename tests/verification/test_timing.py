"""What a timing tells of its samples."""

import pytest

from verification.measures.timing import Timing


def test_a_timing_is_told_in_milliseconds_with_its_ends():
    told = Timing(wall=[n / 1000 for n in range(1, 201)], cpu=[n / 500 for n in range(1, 200)]).as_dict()
    assert (told["min_ms"], told["p95_ms"], told["p99_ms"]) == pytest.approx((1, 190, 198))
    assert (told["median_ms"], told["cpu_median_ms"], told["rounds"]) == (pytest.approx(100.5), pytest.approx(200), 200)
    assert told["low_ms"] < told["median_ms"] < told["high_ms"]
    assert told["samples_ms"][:3] == [1, 2, 3] and told["cpu_samples_ms"][-1] == 398
