"""Timesteps: exact ends, monotone, shifted as SD3 says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.schedule import timesteps


@given(st.integers(1, 200), st.integers(1, 4096), st.floats(0.1, 10), st.integers(1, 4096))
def test_times_rise_from_exactly_0_to_exactly_1(num_steps, num_patches, shift, base):
    times = timesteps(num_steps, num_patches, shift=shift, shift_base_patches=base)
    assert times.dtype == np.float32
    assert len(times) == num_steps + 1
    assert (times[0], times[-1]) == (0, 1)
    assert (np.diff(times) > 0).all()


def test_at_the_base_size_the_steps_are_even():
    np.testing.assert_allclose(
        timesteps(25, 256, shift_base_patches=256), np.arange(26, dtype=np.float32) / 25, atol=1e-7
    )


def test_the_shift_is_equation_23_of_sd3():
    """With alpha = sqrt(m / n): t_m = alpha t_n / (1 + (alpha - 1) t_n), where SD3's t is our noise level."""
    times = timesteps(10, 1024, shift_base_patches=256)
    for step, t in enumerate(times):
        level = 1 - step / 10
        assert 1 - t == pytest.approx(2 * level / (1 + level), abs=1e-6)


@given(st.integers(2, 100), st.integers(1, 1000))
def test_a_larger_picture_stays_longer_in_the_noise(num_steps, patches):
    small = timesteps(num_steps, patches, shift_base_patches=64)
    large = timesteps(num_steps, 4 * patches, shift_base_patches=64)
    assert (large[1:-1] < small[1:-1]).all()


@pytest.mark.parametrize(
    ("num_steps", "num_patches", "shift", "base"),
    [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, math.nan, 1), (1, 1, math.inf, 1), (1, 1, 1, 0)],
)
def test_arguments_that_are_not_positive_are_refused(num_steps, num_patches, shift, base):
    with pytest.raises(ValueError, match="must be positive"):
        timesteps(num_steps, num_patches, shift=shift, shift_base_patches=base)
