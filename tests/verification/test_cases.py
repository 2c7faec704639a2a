"""What a verification tries is the same for one model in every version, so that verdicts can be compared."""

import hashlib
import json
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


@pytest.mark.parametrize(("profile", "num_draws", "num_questions"), [("quick", 2, 2), ("full", len(FULL) + 2, 5)])
def test_the_fixed_cases_are_these(profile, num_draws, num_questions):
    cases = choose_cases(sample_model(), None, profile)
    assert (len(cases.draws), len(cases.answers)) == (num_draws, num_questions)
    for case, (name, lengths, options) in zip(cases.draws, FULL, strict=False):
        assert (case.name, [len(ids) for ids in case.prompts], said(case.options)) == (name, lengths, options)
    for case, expected in zip(cases.answers, QUESTIONS, strict=False):
        assert (case.name, case.sizes, len(case.question), case.max_tokens) == expected


@pytest.mark.parametrize(
    ("profile", "slots", "digest"), [("quick", None, "b34670249c5d495e"), ("full", None, "ad496d4978c727fa"), ("full", 26, "cfd4a71f22d7f42d")]
)
def test_numbers_of_all_cases_are_those_of_every_version(profile, slots, digest):
    cases = choose_cases(sample_model(), slots, profile, num_random=12)
    draws = [
        (case.name, case.seed, [list(map(int, ids)) for ids in case.prompts], said(case.options))
        for case in cases.draws
    ]
    answers = [
        (case.name, case.sizes, list(map(int, case.question)), case.max_tokens, case.seed) for case in cases.answers
    ]
    content = json.dumps([draws, answers], sort_keys=True)
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == digest
