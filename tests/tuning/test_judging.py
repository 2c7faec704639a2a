"""Paired figures are right, their intervals cover the truth, and few pictures never make two plans equal."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.config import TuneConfig
from tuning.judging import Mark, change_interval, compare, mcnemar, mean_interval
from verification.measures.metrics import ssim

CONFIG = TuneConfig()
scores = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=60
)


def judged(pairs, groups=None, psnr=30.0):
    full = [Mark(before, 99.0, 1.0) for before, _ in pairs]
    found = [Mark(after, psnr, 0.9) for _, after in pairs]
    return compare(full, found, groups or [str(i) for i in range(len(pairs))])


@given(pairs=scores)
def test_counts_and_means_are_those_of_the_pairs(pairs):
    found = judged(pairs)
    assert found.pictures == len(pairs)
    assert found.lost == sum(after < before for before, after in pairs)
    assert found.won == sum(after > before for before, after in pairs)
    assert found.change.value == pytest.approx(found.score.value - found.full.value, abs=1e-6)
    assert found.change.low < found.change.high
    for each in (found.full, found.score):
        assert -1e-6 <= each.low <= each.value + 1e-6
        assert each.value - 1e-6 <= each.high <= 100 + 1e-6


@given(pairs=scores)
def test_swapping_the_plans_turns_the_change_around(pairs):
    there, back = judged(pairs), judged([(after, before) for before, after in pairs])
    assert (there.lost, there.won) == (back.won, back.lost)
    assert there.p_value == back.p_value
    assert there.change.low == pytest.approx(-back.change.high)


@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=199))
def test_fewer_than_200_pictures_never_make_two_plans_equal(pairs):
    assert judged(pairs).verdict(CONFIG) != "as good"


@pytest.mark.parametrize(
    ("lost", "won", "same", "verdict"),
    [
        (0, 0, 200, "as good"),
        (2, 0, 198, "as good"),  # a loss of a point
        (3, 0, 197, "worse"),
        (1, 7, 192, "as good"),
        (16, 3, 181, "worse"),
        (40, 40, 120, "cannot tell"),  # no loss, but known to 9 points either way
        (0, 0, 199, "cannot tell"),
        (0, 100, 0, "cannot tell"),
        (100, 0, 0, "worse"),
    ],
)
def test_the_verdict_on_counts(lost, won, same, verdict):
    pairs = [(1.0, 0.0)] * lost + [(0.0, 1.0)] * won + [(1.0, 1.0)] * same
    assert judged(pairs).verdict(CONFIG) == verdict


def test_a_hopeless_plan_is_surely_worse_and_never_promising():
    bad = judged([(1.0, 0.0)] * 12 + [(1.0, 1.0)] * 12)
    assert bad.is_hopeless(CONFIG)
    assert not bad.is_promising(CONFIG)
    unlucky = judged([(1.0, 0.0)] + [(1.0, 1.0)] * 23)  # a loss of 4 points that may be chance
    assert not unlucky.is_hopeless(CONFIG)
    assert not unlucky.is_promising(CONFIG)


@pytest.mark.parametrize(
    ("lost", "won", "p"), [(0, 0, 1.0), (0, 1, 1.0), (1, 7, 18 / 256), (0, 10, 2 / 1024), (5, 5, 1)]
)
def test_mcnemar(lost, won, p):
    assert mcnemar(lost, won) == pytest.approx(min(1.0, p))


def test_intervals_of_a_change_cover_the_truth():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        changes = rng.choice([-100.0, 0.0, 100.0], 200, p=[0.03, 0.95, 0.02])
        found = change_interval(changes.tolist(), [str(i) for i in range(200)])
        covered.append(found.low <= -1.0 <= found.high)
    assert 0.92 <= statistics.fmean(covered) <= 0.995


def test_pictures_of_one_prompt_are_no_independent_trials():
    rng = np.random.default_rng(0)
    per_prompt = rng.choice([-100.0, 0.0], 20, p=[0.3, 0.7])
    changes, groups = np.repeat(per_prompt, 10).tolist(), np.repeat(np.arange(20), 10).astype(str).tolist()
    alone = change_interval(changes, [str(i) for i in range(200)])
    together = change_interval(changes, groups)
    assert together.high - together.low > 2.5 * (alone.high - alone.low)


def test_one_picture_says_nothing_of_a_mean():
    assert mean_interval([20.0], ["a"]).low < -900
    found = mean_interval([20.0, 22.0, 24.0], ["a", "b", "c"])
    assert (found.value, found.low < 20.9, found.high > 23.1) == (22.0, True, True)


def test_without_a_scorer_the_sure_distance_decides():
    near = compare(
        [Mark(None, 99.0, 1.0)] * 200, [Mark(None, 26.0 + i % 3, 0.9) for i in range(200)], list(map(str, range(200)))
    )
    assert near.change is None
    assert near.verdict(CONFIG) == "as good"
    assert near.verdict(TuneConfig(min_psnr=27.0)) == "worse"  # it is 27 on average, and not for sure
    assert near.verdict(TuneConfig(min_held_out=201)) == "cannot tell"
    assert "to the full plan, 200 pictures" in str(near)


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise():
    rng = np.random.default_rng(0)
    picture = rng.uniform(-1, 1, (16, 24, 3)).astype(np.float32)
    assert ssim(picture, picture) == pytest.approx(1)
    found = [ssim(np.clip(picture + rng.normal(0, s, picture.shape), -1, 1), picture) for s in (0.05, 0.2, 0.8)]
    assert 1 > found[0] > found[1] > found[2] > -0.1
    assert ssim(picture[:2, :2], picture[:2, :2]) == pytest.approx(1)


def test_a_distance_may_be_asked_for_beside_a_score():
    soft = judged([(1.0, 1.0)] * 200, psnr=22.0)
    assert soft.verdict(CONFIG) == "as good"
    assert soft.verdict(TuneConfig(min_psnr=20.0)) == "as good"
    near = TuneConfig(min_psnr=24.0)
    assert (soft.verdict(near), soft.is_hopeless(near), soft.is_promising(near)) == ("worse", True, False)
