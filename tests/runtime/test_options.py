"""Options are filled in from the bundle and refused before anything runs."""

import math

import numpy as np
import pytest
from manifests import sample_manifest

from runtime.errors import RFError
from runtime.options import AnswerOptions, GenerationOptions
from runtime.plans import plan_answer, plan_drawing


def plan(**options):
    return plan_drawing(GenerationOptions(**options), sample_manifest())


def test_the_bundle_fills_in_what_is_left_out():
    filled = plan()
    assert (filled.height, filled.width, filled.grid, filled.num_rep_tokens) == (16, 24, (2, 3), 6)
    assert (filled.num_steps, filled.rep_guidance_scale, filled.pix_guidance_scale) == (25, 2.0, 3.0)
    assert (filled.temperature, filled.top_k, filled.greedy) == (1.0, 10, False)


def test_every_option_is_honoured_also_zero():
    chosen = plan(
        height=32, width=8, num_steps=1, rep_guidance_scale=0.0, pix_guidance_scale=0.0, temperature=0.5, top_k=40
    )
    assert (chosen.grid, chosen.num_steps, chosen.rep_guidance_scale) == ((4, 1), 1, 0.0)
    assert (chosen.pix_guidance_scale, chosen.temperature, chosen.top_k) == (0.0, 0.5, 40)


@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-45, 1e-38, 1e-30])
def test_a_temperature_that_only_takes_the_most_likely_token_is_greedy(temperature):
    greedy = plan(temperature=temperature, top_k=7)
    assert (greedy.temperature, greedy.top_k, greedy.greedy) == (1.0, 1, True)
    answer = plan_answer(AnswerOptions(temperature=temperature, top_k=7), sample_manifest())
    assert (answer.temperature, answer.top_k, answer.greedy) == (1.0, 1, True)


def test_a_small_temperature_and_top_p_stay_numbers_in_float32():
    assert not plan(temperature=1e-3).greedy
    answer = plan_answer(AnswerOptions(temperature=1e-3, top_p=5e-324), sample_manifest())
    assert (answer.temperature, answer.greedy) == (1e-3, False)
    assert np.float32(answer.top_p) > 0
    assert plan_answer(AnswerOptions(top_p=0.5), sample_manifest()).top_p == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 20}, "height must be a multiple of 8 from 8 to 32, got 20"),
        ({"width": 40}, "width must be a multiple of 8"),
        ({"width": 0}, "width must be a multiple of 8"),
        ({"num_steps": 0}, "num_steps must be 1 to 1000, got 0"),
        ({"num_steps": 1001}, "num_steps must be"),
        ({"temperature": -0.1}, "temperature must be >= 0 and at most 1000000, got -0.1"),
        ({"temperature": math.nan}, "temperature must be >= 0"),
        ({"rep_guidance_scale": math.inf}, "rep_guidance_scale must be -1000 to 1000, got inf"),
        ({"pix_guidance_scale": math.nan}, "pix_guidance_scale must be -1000 to 1000, got nan"),
        ({"top_k": 0}, "top_k must be >= 1"),
        ({"top_k": 41}, "top_k must be 1 to 40 for this model, got 41"),
    ],
)
def test_a_value_that_the_model_cannot_take_is_refused(options, message):
    with pytest.raises(RFError, match=message):
        plan(**options)
