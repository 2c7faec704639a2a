"""The noise equals an independent implementation of its definition, and has the right distribution."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import noise

MASK = 2**64 - 1

# Random123 1.14, tests/kat_vectors, "philox4x64 10": counter, key, result.
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], [0, 0], [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]),
    ([MASK] * 4, [MASK] * 2, [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
    ),
]


def philox4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, section 3.3, in Python integers."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (second >> 64) ^ b ^ k0, second & MASK, (first >> 64) ^ d ^ k1, first & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [a, b, c, d]


def reference_uniforms(seed: int, stage: int, step: int, size: int) -> list[float]:
    raw: list[int] = []
    while len(raw) < size:
        raw += philox4x64_10([len(raw) // 4 + 1, 0, 0, 0], [seed, stage << 32 | step])
    return [((number >> 11) + 0.5) * 2.0**-53 for number in raw[:size]]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_the_reference_gives_the_published_answers(counter, key, result):
    assert philox4x64_10(counter, key) == result


seeds = st.integers(0, noise.MAX_SEED)
steps = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(0, 1), steps, st.integers(1, 23))
def test_uniform_numbers_equal_the_reference_exactly(seed, stage, step, size):
    assert noise.uniform(seed, stage, step, size).tolist() == reference_uniforms(seed, stage, step, size)


@given(seeds, steps, st.integers(1, 9))
def test_gumbel_noise_follows_its_formula(seed, step, size):
    expected = [-math.log(-math.log(u)) for u in reference_uniforms(seed, 0, step, size)]
    np.testing.assert_allclose(noise.gumbel(seed, step, size), expected, rtol=2e-7, atol=1e-14)


@given(seeds, st.integers(1, 4))
def test_normal_noise_follows_box_muller_also_for_odd_sizes(seed, width):
    size = 3 * width
    u = reference_uniforms(seed, 1, 0, size + size % 2)
    expected = []
    for first, second in zip(u[::2], u[1::2], strict=True):
        radius = math.sqrt(-2 * math.log(first))
        expected += [radius * math.cos(2 * math.pi * second), radius * math.sin(2 * math.pi * second)]
    result = noise.normal(seed, (3, 1, width))
    assert result.shape == (3, 1, width)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.ravel(), expected[:size], rtol=1e-6, atol=1e-12)


def test_the_first_numbers_are_fixed_for_ever():
    """A change here changes every picture of every seed."""
    assert noise.gumbel(7, 3, 3).tolist() == pytest.approx([0.31533507, 1.1307946, -1.0954956], rel=1e-6)
    assert noise.normal(7, (3,)).tolist() == pytest.approx([-0.33781397, -0.65019816, 0.076245859], rel=1e-6)


def test_noise_is_finite_at_both_ends():
    ends = noise.uniform_from_raw(np.array([0, MASK], np.uint64))
    assert 0 < ends[0] < ends[1] < 1
    assert np.isfinite(-np.log(-np.log(ends))).all()


@given(seeds, steps)
def test_seeds_and_steps_and_stages_give_different_noise(seed, step):
    here = noise.uniform(seed, 0, step, 4)
    for other in (
        noise.uniform(seed ^ 1, 0, step, 4),
        noise.uniform(seed, 0, step ^ 1, 4),
        noise.uniform(seed, 1, step, 4),
    ):
        assert not (here == other).any()


def test_a_longer_noise_starts_with_the_shorter_one():
    assert (noise.gumbel(1, 0, 100)[:10] == noise.gumbel(1, 0, 10)).all()


def test_normal_noise_has_mean_0_and_variance_1():
    values = noise.normal(0, (3, 256, 256)).astype(np.float64)
    assert abs(values.mean()) < 4 / math.sqrt(values.size)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / values.size)
    assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / values.size)
    assert abs(np.corrcoef(values.ravel()[::2], values.ravel()[1::2])[0, 1]) < 4 / math.sqrt(values.size / 2)


def test_gumbel_noise_draws_from_the_softmax():
    logits = np.array([0.0, 1.0, 2.0])
    draws = [int(np.argmax(logits + noise.gumbel(seed, 0, 3))) for seed in range(20_000)]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(np.bincount(draws) / len(draws), expected, atol=0.012)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be 0 to"):
        noise.gumbel(seed, 0, 1)


@pytest.mark.parametrize("step", [-1, 2**32])
def test_a_step_out_of_range_is_refused(step):
    with pytest.raises(ValueError, match="step must be 0 to"):
        noise.gumbel(0, step, 1)
