"""The limits of the gate, to the last prompt, and which prompts judge."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibration import CalibrationConfig, GateLimits, read_prompts
from calibration.calibrate import CalibrationResult
from calibration.examples import hold_back, split_prompts
from calibration.gate import Quality, mean_interval, paired_change, proportion
from runtime import RFError
from verification.measures.metrics import Interval

PROMPTS = [f"{number} red {name}" for number in ("two", "three") for name in ("cars", "keys", "cups", "hats")]
CONFIG = CalibrationConfig(min_prompts=4, limits=GateLimits(cosine=0.99))


def test_one_prompt_more_or_less_decides_at_the_limits():
    enough = PROMPTS[:4]
    learn, judge = split_prompts(enough, CONFIG)
    assert (len(learn), len(judge)) == (3, 1)
    with pytest.raises(RFError, match="3 different prompts are too few"):
        split_prompts(enough[:3] + enough[:1], CONFIG)
    assert [len(part) for part in hold_back(list(range(3)), CONFIG)] == [3, 0]
    assert hold_back(list(range(8)), replace(CONFIG, gate_fraction=0.5)) == ([0, 2, 4, 6], [1, 3, 5, 7])
    assert hold_back([0, 1], replace(CONFIG, gate_fraction=0.9)) == ([0], [1]), "half at most"


def quality_of(**changes: Any) -> Quality:
    """A quality that just passes the limits of `CONFIG`."""
    at, cosine = Interval(25.0, 25.0, 25.0), CONFIG.limits.cosine
    found = Quality(1, [1.0, cosine], [cosine, 1.0], cosine, cosine, 2, Interval(1, 1, 1), at, 25.0)
    return replace(found, **changes)


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({}, None),
        ({"logits_cosine": [1.0, 0.98]}, "logits of rep_decoder: cosine 0.980000 in step 1, expected at least 0.99"),
        ({"x_pred_cosine": [0.98, 1.0]}, "x_pred of denoiser: cosine 0.980000 in step 0, expected at least 0.99"),
        ({"features_cosine": 0.98}, "vision_encoder: cosine 0.980000, expected at least 0.99"),
        ({"psnr_db": Interval(24.9, 0, 99)}, "pictures: PSNR 24.9 dB, expected at least 25.0"),
        ({"x_pred_cosine": [float("nan"), 1.0]}, "x_pred of denoiser: cosine nan in step 0, expected at least 0.99"),
        ({"score_change": Interval(-1.0, -9, 9)}, None),
        ({"score_change": Interval(-1.1, -9, 9)}, "task score: -1.1 points, expected a loss of at most 1.0"),
    ],
)
def test_each_limit_of_the_gate_is_told_by_itself_and_the_limit_passes(change, failure):
    quality = quality_of(**change)
    assert quality.failures(CONFIG.limits) == ([failure] if failure else [])
    if failure is None:
        assert quality.shortfall(CONFIG.limits) == pytest.approx(1)
    elif "score" not in failure and "nan" not in failure:
        assert quality.shortfall(CONFIG.limits) > 1


def test_prompts_of_the_gate_are_never_calibrated_with():
    learn, judge = split_prompts(PROMPTS, CONFIG)
    assert len(judge) == 2
    assert sorted(prompt for prompt, _ in learn + judge) == sorted(PROMPTS)
    assert not {prompt for prompt, _ in learn} & {prompt for prompt, _ in judge}


def test_files_of_prompts_may_have_comments_and_empty_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\n\na red car \n  a blue fish\n", encoding="utf-8")
    assert read_prompts(path) == ["a red car", "a blue fish"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RFError, match="no text in UTF-8"):
        read_prompts(path)


def test_intervals_of_the_gate():
    assert str(proportion(8, 10)) == "0.80 [0.49, 0.94]"  # Wilson
    same = mean_interval([3.0, 3.0, 3.0])
    assert (same.value, same.low, same.high) == (3, 3, 3)
    before, after, change = paired_change([True, True, False, True], [True, False, False, True])
    assert (before.value, after.value, change.value) == (75, 50, -25)
    assert change.low <= -25 <= change.high


@pytest.mark.parametrize("captions", [None, Interval(96.0, 90.0, 99.0)])
def test_captions_are_in_the_table_where_they_were_judged(captions):
    quality = replace(quality_of(), captions=captions)
    result = CalibrationResult(Path("b"), Path("r.html"), [], quality, 0.4, ())
    assert ("captions of the same pictures: 96" in result.table()) == (captions is not None)


def test_the_table_tells_why_static_groups_were_preferred():
    result = CalibrationResult(Path("b"), Path("r.html"), [], quality_of(), 0.4, (), "of the library")
    assert "static groups are preferred: of the library" in result.table()
    assert "preferred" not in replace(result, static_first=None).table()


def test_a_figure_with_its_interval_has_two_places_where_no_format_says_otherwise():
    found = Interval(36.32753618, 35.2, 37.28855)
    assert f"{found}" == str(found) == "36.33 [35.20, 37.29]"
    assert f"{found:.0f}" == "36 [35, 37]"
