"""What a verification tries is the same for one model in every version, so that verdicts can be compared."""

from dataclasses import asdict

import pytest
from manifests import sample_model

from runtime import GenerationOptions
from verification.cases import choose_cases

FULL = [
    ("pair", [7, 3], {}),
    ("unguided", [7], {"num_steps": 1, "rep_guidance_scale": 1, "pix_guidance_scale": 1}),
    ("alone", [5], {}),
    ("shortest and longest", [96, 1, 0], {"num_steps": 4}),
    ("no text", [0], {"num_steps": 3}),
    ("greedy", [4, 6], {"num_steps": 3, "temperature": 0}),
    ("two of the tokens", [6, 2], {"num_steps": 3, "temperature": 2, "top_k": 2}),
    ("one step", [3], {"num_steps": 1}),
    ("without guidance", [4], {"num_steps": 3, "rep_guidance_scale": 0, "pix_guidance_scale": 0}),
    ("one cell", [5, 2], {"num_steps": 2, "height": 8, "width": 8}),
    ("tall", [5], {"num_steps": 2, "height": 32, "width": 8}),
    ("wide", [5], {"num_steps": 2, "height": 8, "width": 32}),
    ("large", [5], {"num_steps": 2, "height": 32, "width": 32}),
]
QUESTIONS = [
    ("two pictures, greedy", ((8, 8), (16, 24)), 4, 12),
    ("two pictures, sampled", ((8, 8), (16, 24)), 4, 12),
    ("one token, no picture", (), 1, 12),
    ("longest text, no picture", (), 96, 12),
    ("one picture, one token", ((8, 16),), 1, 12),
]


def said(options):
    """What differs from a plain drawing."""
    plain = asdict(GenerationOptions())
    return {name: value for name, value in asdict(options).items() if value != plain[name]}


def test_the_fixed_cases_are_these():
    cases = choose_cases(sample_model(), None, "full")
    draws = {case.name: ([len(ids) for ids in case.prompts], said(case.options)) for case in cases.draws}
    assert {name: draws.get(name) for name, _, _ in FULL} == {name: (lengths, how) for name, lengths, how in FULL}
    asked = [(case.name, case.sizes, len(case.question), case.max_tokens) for case in cases.answers]
    assert [case for case in asked if case in QUESTIONS] == QUESTIONS


def test_the_quick_profile_draws_and_asks_as_the_full_one_does():
    quick, full = (choose_cases(sample_model(), None, profile) for profile in ("quick", "full"))
    assert {"pair", "unguided"} <= {case.name for case in quick.draws}
    assert all(case in full.draws for case in quick.draws)
    assert quick.answers == full.answers[: len(quick.answers)]


@pytest.mark.parametrize("seed", [0, 3])
def test_random_drawings_go_through_all_that_can_be_drawn(seed):
    cases = choose_cases(sample_model(), None, num_random=300, seed=seed).draws[-300:]
    options = [case.options for case in cases]
    assert {each.num_steps for each in options} == set(range(2, 9))
    assert {each.height for each in options} == {each.width for each in options} == {8, 16, 24, 32}
    assert {len(case.prompts) for case in cases} == {1, 2, 3}
    assert {len(ids) for case in cases for ids in case.prompts} == set(range(24))
    assert (min(each.top_k for each in options), max(each.top_k for each in options)) == (1, 40)
    for name, low, high in (("rep_guidance_scale", 0, 4), ("pix_guidance_scale", 0, 4), ("temperature", 0.5, 1.5)):
        values = [getattr(each, name) for each in options]
        assert low <= min(values) < low + 0.1 < high - 0.1 < max(values) <= high


@pytest.mark.parametrize("slots", [9, 14, 26])
def test_the_longest_text_leaves_room_for_two_tokens_of_an_answer(slots):
    (longest,) = (
        case for case in choose_cases(sample_model(), slots).answers if case.name == "longest text, no picture"
    )
    assert (len(longest.question), longest.max_tokens) == (slots - 1, 2)
