"""Comparing tells every wrong shape and number in a failure, and limits hold exactly where they are."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.events import TokenEvent
from runtime.options import DrawingPlan
from verification.cases import GUIDED, AnswerCase, DrawCase
from verification.compare import compare_answer, compare_drawing, compare_windows
from verification.limits import LIMITS, limits_of
from verification.measures.metrics import largest_magnitude, relative_error
from verification.tally import MAX_FAILURES, NUM_PICTURES, Tally
from verification.traces import Answer, Drawing

CASE = DrawCase(name=GUIDED, prompts=((1, 2, 3),))
QUESTION = AnswerCase(name="two pictures", sizes=((8, 8), (8, 24)), question=(1,), max_tokens=3)
PLAN = DrawingPlan(
    height=8,
    width=16,
    grid=(1, 4),
    times=(0.0, 0.5, 1.0),
    guided=(0.0, 1.0),
    rep_guidance_scale=1.0,
    pix_guidance_scale=1.0,
    temperature=1.0,
    top_k=1,
    greedy=True,
    window=1,
    noise_scale=1.0,
)
WHERE = ("denoiser", "case", 0)


def drawing(**changes: Any) -> Drawing:
    """Four tokens of eight, two steps, one layer with a text of three tokens."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, 8)).astype(np.float32)
    steps = rng.uniform(-1, 1, (2, 3, 8, 16)).astype(np.float32)
    right = Drawing(
        logits=logits,
        rep_ids=logits.argmax(-1),
        cache=rng.standard_normal((2, 1, 8, 4)).astype(np.float32),
        uncond_cache=rng.standard_normal((2, 1, 5, 4)).astype(np.float32),
        times=np.array([0, 0.5, 1], np.float32),
        x_preds=steps,
        x_nexts=steps,
        pixels=steps[-1],
    )
    return replace(right, **{name: change(getattr(right, name)) for name, change in changes.items()})


def answer(**changes: Any) -> Answer:
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((3, 8)).astype(np.float32)
    right = Answer(
        features=rng.standard_normal((4, 6)).astype(np.float32), ids=logits.argmax(-1).tolist(), logits=logits
    )
    return replace(right, **{name: change(getattr(right, name)) for name, change in changes.items()})


def test_what_is_equal_has_no_failure_and_every_token_counts() -> None:
    tally = Tally()
    compare_drawing(tally, "fp32", CASE, PLAN, [drawing()], [drawing()])
    compare_answer(tally, "fp32", QUESTION, answer(), answer())
    assert tally.failures == [] and tally.first is None
    assert (tally.num_cases, tally.denoising_steps) == (2, 2)
    assert (tally.rep_tokens, tally.rep_tokens_equal, tally.answer_tokens, tally.answer_tokens_equal) == (4, 4, 3, 3)
    assert {name: len(curve) for name, curve in tally.curves.items()} == {
        "rep_decoder logits": 4,
        "denoiser x_pred": 2,
        "denoiser x_next": 2,
    }
    assert {graph: set(tensors) for graph, tensors in tally.figures.items()} == {
        "vision_encoder": {"image_features"},
        "text_decoder": {"logits", "present.0.key", "present.0.value"},
        "rep_decoder": {"logits", "present.0.key", "present.0.value"},
        "denoiser": {"x_pred", "x_next"},
    }


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("rep_ids", lambda ids: ids[:3], "rep_decoder next_rep_ids: 3 tokens, expected 4"),
        ("logits", lambda logits: logits[:, :7], r"rep_decoder logits: shape \[4, 7\], expected \[4, 8\]"),
        ("logits", lambda logits: logits[:3], r"rep_decoder logits: shape \[3, 8\], expected \[4, 8\]"),
        ("logits", lambda logits: -logits, "rep_decoder logits: cosine -1"),
        ("cache", lambda cache: cache[:, :, :7], "rep_decoder cache: 7 tokens, expected 8"),
        ("cache", lambda cache: cache[:, :, ::-1], r"text_decoder present.0.key: cosine .* \(step 0,"),
        ("uncond_cache", lambda cache: -cache, r"rep_decoder present.0.key: cosine -1.* \(step 0,"),
        ("x_preds", lambda steps: steps[:1], "denoiser steps: 1 steps, expected 2"),
        ("x_preds", lambda steps: steps[..., :8], r"denoiser x_pred: shape \[2, 192\], expected \[2, 384\]"),
        ("x_nexts", lambda steps: steps * 1.01, "denoiser x_next: norm 1.0100 times the expected one"),
        ("times", lambda times: times + np.array([0, 0, 2e-6], np.float32), "denoiser t_next: steps to time 1.000002"),
        ("pixels", lambda pixels: pixels.swapaxes(1, 2), r"picture: shape \[3, 16, 8\], expected \[3, 8, 16\]"),
        ("pixels", lambda pixels: pixels + 0.1, "denoiser picture: PSNR 26.0 dB, expected 60"),
        ("pixels", lambda pixels: pixels * np.nan, "denoiser picture: PSNR -999.0 dB, expected 60"),
    ],
)
def test_a_drawing_with_one_wrong_part_fails_by_its_name(part: str, change: Any, told: str) -> None:
    tally = Tally()
    compare_drawing(tally, "fp32", CASE, PLAN, [drawing(**{part: change})], [drawing()])
    assert tally.first is not None
    assert re.search(told, str(tally.first)), tally.first


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("ids", lambda ids: ids[:2], "text_decoder next_ids: 2 tokens, expected 3"),
        ("ids", lambda ids: [(token + 1) % 8 for token in ids], "next_ids: token . is not what the options draw"),
        ("logits", lambda logits: logits[:, :7], r"text_decoder logits: shape \[3, 7\], expected \[3, 8\]"),
        ("features", lambda features: features[:3], r"image_features: shape \[1, 2, 6\], expected \[1, 3, 6\]"),
        ("features", lambda features: features * [[1], [1], [1], [-1]], r"image_features: cosine -1.* \(step 1,"),
    ],
)
def test_an_answer_with_one_wrong_part_fails_by_its_name(part: str, change: Any, told: str) -> None:
    tally = Tally()
    compare_answer(tally, "fp32", QUESTION, answer(**{part: change}), answer())
    assert tally.first is not None
    assert re.search(told, str(tally.first)), tally.first


def test_a_token_of_another_count_is_not_counted_as_compared() -> None:
    tally = Tally()
    compare_answer(tally, "fp32", QUESTION, answer(ids=lambda ids: ids[:2]), answer())
    compare_drawing(tally, "fp32", CASE, PLAN, [drawing(rep_ids=lambda ids: ids[:3])], [drawing()])
    assert (tally.num_cases, tally.rep_tokens, tally.answer_tokens) == (2, 0, 0)


def test_windows_may_fall_another_way_at_a_near_tie_alone() -> None:
    near = np.array([[0.0, 1.0, 1.0 - 1e-7, 0.5]], np.float32)
    one_by_one = [TokenEvent(step, 2, np.array([1]), near) for step in range(2)]
    for token, fails in ((1, False), (2, False), (3, True)):
        windowed = [one_by_one[0], TokenEvent(1, 2, np.array([token]), near)]
        for is_exact in (True, False):
            tally = Tally()
            compare_windows(tally, CASE, PLAN, one_by_one, windowed, is_exact=is_exact)
            assert (tally.windowed_tokens, tally.windowed_tokens_equal) == (2, 1 + (token == 1))
            assert bool(tally.failures) == (fails and is_exact)
            if tally.first is not None:
                assert "token 3 in windows, 1 one by one, which is no near tie (step 1" in str(tally.first)


def test_a_limit_is_still_allowed_and_a_hair_beyond_is_not() -> None:
    expected = np.array([[1.0, 0.0]], np.float64)
    found = np.array([[0.8, 0.6]], np.float64)  # a cosine of 0.8
    (cosine,) = Tally().tensor(WHERE, "x", found, expected, 0.0, 0.1)
    for least, fails in ((cosine, False), (np.nextafter(cosine, 2), True)):
        tally = Tally()
        tally.tensor(WHERE, "x", found, expected, least, 0.1)
        assert bool(tally.failures) == fails
    longer = np.array([[1.25, 0.0]])
    for norm, fails in ((0.25, False), (np.nextafter(0.25, 0), True)):
        tally = Tally()
        tally.tensor(WHERE, "x", longer, expected, 0.9, norm, first_step=7)
        assert [failure.step for failure in tally.failures] == [7] * fails
    pixels = np.zeros((3, 1, 1), np.float64)
    exact = Tally()
    exact.picture(WHERE, 0, pixels + 0.02, pixels, 0.0)
    for least, fails in ((exact.picture_psnr_db, False), (np.nextafter(exact.picture_psnr_db, 99), True)):
        tally = Tally()
        tally.picture(WHERE, 0, pixels + 0.02, pixels, least)
        assert bool(tally.failures) == fails


def test_figures_keep_the_worst_of_all_cases_and_where_it_was() -> None:
    tally = Tally()
    expected = np.array([[1.0, 0.0], [1.0, 0.0]])
    for case, found in (("a", [[1, 0], [1.5, 0]]), ("b", [[0.6, 0.8], [0.8, 0.6]]), ("c", [[0.5, 0], [0.8, 0.6]])):
        tally.tensor(("denoiser", case, 0), "x", np.array(found, np.float64), expected, -1, 9)
    figures = tally.figures["denoiser"]["x"]
    assert (figures.case, figures.step, figures.norm_ratio) == ("b", 0, 0.5)
    assert figures.cosine == pytest.approx(0.6) and figures.max_abs_error == pytest.approx(0.8)


def test_failures_and_pictures_are_kept_up_to_a_number() -> None:
    tally = Tally()
    for step in range(MAX_FAILURES + 1):
        tally.fail(WHERE, "x", step, "wrong")
    assert [failure.step for failure in tally.failures] == list(range(MAX_FAILURES))
    pixels = np.zeros((3, 2, 2))
    for error in (0.1, 0.4, 0.2, 0.3):
        tally.picture(WHERE, 0, pixels + error, pixels, 0.0)
    assert [float(pair.found.max()) for pair in tally.pictures] == [0.4, 0.3, 0.2][:NUM_PICTURES]


def test_int8_is_judged_by_less_at_sizes_that_it_was_not_calibrated_for() -> None:
    other = replace(CASE, options=replace(CASE.options, height=16, width=16))
    assert limits_of("int8", CASE) == limits_of("int8") == LIMITS["int8"]
    assert limits_of("int8", other).cosine < LIMITS["int8"].cosine
    assert limits_of("fp16", other) == LIMITS["fp16"]


def test_errors_are_relative_to_what_is_expected_and_never_hide_what_is_not_finite() -> None:
    expected = np.array([[3.0, 4.0]], np.float32)
    assert relative_error(expected * 1.5, expected) == 0.5
    assert relative_error(0 * expected, 0 * expected) == 0
    assert relative_error(expected * np.nan, expected) == np.inf
    assert (largest_magnitude(-expected), largest_magnitude(np.array([1, np.inf]))) == (4.0, np.inf)
