"""Ranges, smoothing and sampled statistics are what their definitions say, for any values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from calibration.config import METHODS, CalibrationConfig
from calibration.histogram import LEVELS, Histogram
from calibration.smoothing import choose_range, product_error, smoothing_factors
from calibration.statistics import NUM_SAMPLES, Activations
from runtime.errors import RFError

FLOATS = st.floats(-1e4, 1e4, width=32)
VALUES = arrays.arrays(np.float32, st.integers(1, 400), elements=FLOATS)


def quantisation_error(values: np.ndarray, largest: float) -> float:
    step = max(largest, 1e-12) / LEVELS
    return float(np.mean((np.clip(np.rint(values / step), -LEVELS, LEVELS) * step - values) ** 2))


@given(VALUES, st.sampled_from(METHODS))
def test_a_range_is_never_above_the_largest_magnitude(values, method):
    histogram = Histogram.of(values)
    assert 0 <= histogram.range(method) <= histogram.largest == np.abs(values).max()
    if method == "minmax":
        assert histogram.range(method) == histogram.largest


@given(VALUES, VALUES)
def test_values_may_come_in_pieces_and_in_any_order(first, second):
    together, pieces = Histogram.of(np.concatenate([first, second])), Histogram.of(second)
    pieces.add(first)
    assert (together.counts == pieces.counts).all()
    assert (together.num_zeros, together.largest) == (pieces.num_zeros, pieces.largest)
    assert together.num_zeros + together.counts.sum() == first.size + second.size


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.integers(0, 40))
def test_the_mse_range_errs_no_more_than_the_largest_value(seed, scale, num_outliers):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(4000) * scale).astype(np.float32)
    values[:num_outliers] *= 50
    histogram = Histogram.of(values)
    best, naive = (quantisation_error(values, histogram.range(method)) for method in ("mse", "minmax"))
    assert best <= 1.05 * naive  # bins are 2% wide


def test_mse_and_entropy_cut_off_rare_outliers_and_percentile_cuts_where_it_says():
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    values[0] = 1000
    histogram = Histogram.of(values)
    assert histogram.range("entropy") < 100
    assert histogram.range("percentile", 99.0) == pytest.approx(2.576, rel=0.03)
    wide = np.random.default_rng(1).standard_normal(1_000_000).astype(np.float32)
    wide[0] = 20
    assert Histogram.of(wide).range("mse") < 12


def naive_entropy(histogram: Histogram) -> float:
    """The range by the definition, bin by bin: merge to 128 levels, spread evenly over what was there, compare."""
    num_bins, num_levels = 2048, LEVELS + 1
    counts = histogram._linear(num_bins)
    best, best_end = np.inf, num_bins
    for end in range(num_levels, num_bins + 1, 16):
        p = [float(count) for count in counts[:end]]
        p[-1] += float(sum(counts[end:]))
        groups: dict[int, list[int]] = {}
        for i in range(end):
            groups.setdefault(i * num_levels // end, []).append(i)
        q = [0.0] * end
        for members in groups.values():
            there = [i for i in members if counts[i] > 0]
            for i in there:
                q[i] = sum(counts[j] for j in members) / len(there)
        divergence, total_p, total_q = 0.0, sum(p), max(sum(q), 1e-12)
        for a, b in zip(p, q, strict=True):
            a, b = a / total_p, b / total_q
            if a > 0 and b > 0:
                divergence += a * np.log(a / b)
            elif a > 0:
                divergence += 10 * a
        if divergence < best:
            best, best_end = divergence, end
    return histogram.largest * best_end / num_bins


@pytest.mark.parametrize("seed", range(3))
def test_the_entropy_range_is_that_of_a_naive_reference(seed):
    rng = np.random.default_rng(seed)
    values = (rng.exponential(1, 20_000) if seed else rng.standard_normal(20_000)).astype(np.float32)
    values[: 1 + seed] *= 40
    histogram = Histogram.of(values)
    assert histogram._entropy() == naive_entropy(histogram) < histogram.largest


def test_equal_bins_hold_every_value_once_but_for_the_first():
    values = np.abs(np.random.default_rng(0).standard_normal(5000).astype(np.float32)) + 0.5
    counts = Histogram.of(np.append(values, np.zeros(700, np.float32)))._linear(64)
    assert len(counts) == 64
    assert counts.sum() == pytest.approx(5000, rel=0.01)  # zeros are left out: nothing lies beside them here
    middle = np.histogram(values, 64, (0, values.max()))[0]
    assert np.abs(np.cumsum(counts) - np.cumsum(middle)).max() < 0.03 * 5000  # bins are cut in two linearly


def test_values_that_are_all_zero_have_a_range_of_zero():
    assert [Histogram.of(np.zeros(7, np.float32)).range(method) for method in METHODS] == [0] * len(METHODS)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_smoothing_changes_no_product(seed, alpha):
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((9, 12)).astype(np.float32), rng.standard_normal((12, 5)).astype(np.float32)
    x[:, 3], weight[4] = 0, 0
    factors = smoothing_factors(np.abs(x).max(0), np.abs(weight).max(1), alpha)
    assert (factors > 0).all()
    np.testing.assert_allclose((x / factors) @ (weight * factors[:, None]), x @ weight, rtol=1e-3, atol=1e-4)


def activations_of(x: np.ndarray) -> Activations:
    found = Activations(x.shape[1], 1)
    found.add(0, 0, x, "here")
    return found


def test_outlying_channels_are_smoothed_away_and_even_ones_left_alone():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((200, 64)).astype(np.float32), rng.standard_normal((64, 32)).astype(np.float32)
    config = CalibrationConfig(method="minmax")
    x[:, 7] *= 80
    chosen = choose_range(activations_of(x), weight, config, np.ones(64, np.float32))
    plain = choose_range(activations_of(x), weight, config, None)
    assert chosen.alpha is not None
    assert chosen.error < plain.error / 4
    assert plain.smoothing is None
    assert plain.error == pytest.approx(product_error(x, weight, plain.largest))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(0, 100))
def test_samples_are_rows_that_were_seen_and_counts_are_exact(sizes, seed):
    found, seen = Activations(3, 2, seed), []
    for number, size in enumerate(sizes):
        rows = np.arange(3 * size, dtype=np.float32).reshape(size, 3) + 1000 * number
        seen += rows.tolist()
        found.add(number % 2, 0, rows, "here")
    assert found.counts.sum() == len(seen)
    assert len(found.samples) == min(NUM_SAMPLES, len(seen))
    assert all(row in seen for row in found.samples.tolist())
    assert found.channel_max.tolist() == np.abs(seen).max(0).tolist()


def test_every_row_is_equally_likely_to_be_sampled():
    found = Activations(1, 1)
    for start in range(0, 8 * NUM_SAMPLES, 100):
        found.add(0, 0, np.arange(start, min(start + 100, 8 * NUM_SAMPLES), dtype=np.float32)[:, None], "here")
    quarters = np.histogram(found.samples, bins=4, range=(0, 8 * NUM_SAMPLES))[0]
    assert quarters.min() > NUM_SAMPLES / 8  # each about a quarter


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(value):
    rows = np.array([[1.0, value]], np.float32)
    with pytest.raises(RFError, match=r"layer x is fed values that are not finite in step 1 \(unconditional row\)"):
        Activations(2, 2).add(1, 1, rows, "layer x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "guess"}, "method must be one of"),
        ({"target": "cuda"}, "target must be one of"),
        ({"formats": ()}, "formats must be among"),
        ({"block": 24}, "block must be 0 or a power of two"),
        ({"percentile": 30.0}, "percentile must be"),
        ({"gate_fraction": 1.0}, "gate_fraction must be"),
    ],
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CalibrationConfig(**change)


@pytest.mark.parametrize("scale", [0.01, 1, 300])
def test_bins_begin_at_zero_hold_every_count_and_the_first_is_as_the_second(scale):
    values = np.random.default_rng(4).uniform(0, scale, 20_000).astype(np.float32)
    values[:9_000] = 0
    counts = Histogram.of(values)._linear(8)
    expected, _ = np.histogram(values[9_000:], 8, (0, values.max()))
    assert counts[0] == counts[1]
    assert np.abs(counts[1:] - expected[1:]).max() < 0.1 * expected.max()


@pytest.mark.parametrize("changes", [{"percentile": 100}, {"percentile": 50.1}, {"block": 16}, {"block": 0}])
def test_limits_of_the_options_are_taken(changes):
    CalibrationConfig(**changes)


@pytest.mark.parametrize("changes", [{"percentile": 50}, {"percentile": 100.1}, {"block": 8}, {"block": 17}])
def test_what_is_beyond_the_limits_is_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        CalibrationConfig(**changes)
