"""The gate draws by the plan that will be drawn with, and refuses one that is not there before anything is drawn."""

import dataclasses
from pathlib import Path

import pytest

from calibration.calibrate import calibrate
from calibration.config import CalibrationConfig
from calibration.gate import draw_originals, measure_quality
from runtime import GenerationOptions, Pipeline, Plan, RFError

NAMES = ("car", "fish", "tree", "hat", "key", "cup", "bell", "star")


def test_both_sides_of_the_gate_draw_by_the_plan(pipeline: Pipeline) -> None:
    plan = Plan(num_steps=3, shift=2.0, guided=(0.0, 0.4), window=2)
    originals = draw_originals(pipeline, [("a red car", 1), ("two blue fish", 2)], [], GenerationOptions(plan=plan))
    found = measure_quality(originals, pipeline, lambda done: None)
    assert len(found.x_pred_cosine) == 3
    assert found.x_pred_cosine == pytest.approx([1.0] * 3)
    assert found.tokens_equal.value == 1
    other = dataclasses.replace(originals, options=GenerationOptions(plan=dataclasses.replace(plan, guided=(0.0, 1.0))))
    assert measure_quality(other, pipeline, lambda done: None).psnr_db.value < 60  # not the same pictures


def test_a_plan_that_the_bundle_lacks_is_refused_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    config = CalibrationConfig(plan="tuned", cache_path=tmp_path / "cache.npz", report_path=tmp_path / "report.html")
    with pytest.raises(RFError, match="no tuned plan"):
        calibrate(tiny_bundle, [f"a {colour} {name}" for colour in ("red", "blue") for name in NAMES], config)
