"""The benchmark compares like with like: every contender draws the right picture, and the arithmetic is right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cli
from rf_export.benchmark.baseline import Baseline
from rf_export.benchmark.bench import baseline_variants
from rf_export.benchmark.compiled import Compiled
from rf_export.benchmark.contenders import draw_reference
from rf_export.benchmark.floor import Rates, StepCost, denoise_step_cost, rep_step_cost
from rf_export.benchmark.workload import Workload
from rf_export.checkpoint import load_checkpoint, save_checkpoint
from rf_export.config import preset
from rf_export.model import RFModel
from rf_export.training.scenes import SceneConfig
from rf_export.training.tokens import build_tokenizer
from runtime.bundle import open_bundle
from runtime.figures import psnr_db
from runtime.options import GenerationOptions
from runtime.timing import Timing, interleave, median_interval, ratio


@pytest.fixture(scope="module")
def workload(tiny_bundle: Path) -> Workload:
    return Workload.of(open_bundle(tiny_bundle).manifest, 7, GenerationOptions(num_steps=3))


@pytest.fixture(scope="module")
def drawn(tiny_checkpoint: Path, workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and picture of the independent eager loop."""
    result = draw_reference(load_checkpoint(tiny_checkpoint), workload, 3)
    return result.rep_ids.numpy(), result.pixels.numpy()


VARIANTS = list(baseline_variants(compiled=False))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_eager_baseline_draws_what_the_reference_draws(
    variant, workload: Workload, drawn: tuple[np.ndarray, np.ndarray], tiny_checkpoint: Path
) -> None:
    baseline = Baseline(load_checkpoint(tiny_checkpoint), workload, variant)
    baseline.prefill()
    ids, pixels = baseline.draw_tokens(), baseline.denoise(3)
    if variant.dtype == torch.float32:
        assert (ids == drawn[0]).all()
        assert psnr_db(pixels, drawn[1]) > 100
    else:  # bf16 may choose other tokens; the picture is then another one
        assert np.isfinite(pixels).all()
        assert psnr_db(pixels, drawn[1]) > 20 or (ids != drawn[0]).any()


def test_repeating_a_stage_changes_nothing(workload: Workload, tiny_checkpoint: Path) -> None:
    baseline = Baseline(load_checkpoint(tiny_checkpoint), workload, VARIANTS[0])
    baseline.prefill()
    first = baseline.draw_tokens(), baseline.denoise(3)
    again = baseline.draw_tokens(), baseline.denoise(3)
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()


def test_our_contender_draws_it_too(
    tiny_bundle: Path, workload: Workload, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    ours = Compiled(tiny_bundle, workload, "fp32", 1, "none")
    ours.prefill()
    for _ in range(2):
        assert (ours.draw_tokens() == drawn[0]).all()
        assert psnr_db(ours.denoise(3), drawn[1]) > 100


def test_step_costs_count_the_weights_that_the_model_has() -> None:
    config = preset("tiny")
    parameters = dict(RFModel(config).named_parameters())

    def num_bytes(*parts: str) -> int:
        names = [name for name in parameters if not name.startswith("encoder.") and any(part in name for part in parts)]
        return 4 * sum(parameters[name].numel() for name in names if parameters[name].ndim == 2)

    attention = num_bytes(".qkv.", ".out.")
    assert rep_step_cost(config, 10).weight_bytes == attention + num_bytes("representation.ffn", "rep_head")
    pixel = num_bytes("pixel.ffn", "pixel_in.weight", "pixel_out.weight")
    assert denoise_step_cost(config, 10, 24).weight_bytes == attention + pixel


def test_the_floor_is_the_larger_bound() -> None:
    cost = StepCost(weight_bytes=80, cache_bytes=20, flops=1000)
    assert Rates(bandwidth=10, matrix=1000).floor_seconds(cost) == 10
    assert Rates(bandwidth=1000, matrix=10).floor_seconds(cost) == 100


def test_contenders_take_turns_in_a_rotating_order_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []

    def contender(name: str):
        def run() -> int:
            calls.append(name)
            return 2

        return run

    timings = interleave({name: contender(name) for name in "abc"}, num_rounds=3)
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert all(len(timing.wall) == len(timing.cpu) == 3 for timing in timings.values())
    calls.clear()
    interleave({name: contender(name) for name in "ab"}, num_rounds=1, warm=True)
    assert "".join(calls) == "aabb" + "bbaa"


def test_the_interval_of_a_median_comes_from_order_statistics() -> None:
    # Conover 1999, 3.2: n = 16, ranks 4 and 13 for 95% by the normal approximation, rounded outwards.
    low, high = median_interval([float(i) for i in range(1, 17)])
    assert (low, high) == (4.0, 13.0)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    slow, fast = Timing([2.0, 30.0, 8.0], [0.0] * 3), Timing([1.0, 10.0, 2.0], [0.0] * 3)
    assert ratio(slow, fast)["median"] == 3.0


def test_bench_prints_a_table_and_the_same_as_json(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    arguments = ["bench", str(tiny_bundle), "--checkpoint", str(tiny_checkpoint), "--rounds", "1", "--no-compile"]
    text = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert text.exit_code == 0
    for word in ("eager fp32", "eager bf16", "onnx fp32", "floor fp32", "denoise step", "resident"):
        assert word in text.stdout
    result = json.loads(CliRunner().invoke(cli.main, [*arguments, "--json"], catch_exceptions=False).stdout)
    run = result["runs"][0]
    assert run["agreement"]["onnx fp32"]["tokens_equal"] == run["agreement"]["onnx fp32"]["tokens"] == 6
    assert run["timings"]["picture"]["eager fp32"]["median_ms"] > 0
    assert set(result["footprint"]) == {"onnx"}  # no engine was built


def test_bench_refuses_another_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_checkpoint(RFModel(preset("tiny")), build_tokenizer(SceneConfig()).to_str(), tmp_path / "other")
    result = CliRunner().invoke(cli.main, ["bench", str(tiny_bundle), "--checkpoint", str(tmp_path / "other")])
    assert result.exit_code == 1
    assert "another checkpoint" in result.stderr
