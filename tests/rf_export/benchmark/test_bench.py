"""The benchmark compares like with like: every contender draws the right picture, and the arithmetic is right."""

import importlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cli
from benchmarks.document import document
from rf_export.benchmark.baseline import Baseline, Spelling, spelt
from rf_export.benchmark.baseline_reading import BaselineReader
from rf_export.benchmark.compiled import Compiled, CompiledReader
from rf_export.benchmark.contenders import draw_reference, read_reference
from rf_export.benchmark.energy import EnergyMeter
from rf_export.benchmark.environment import describe_machine, describe_state
from rf_export.benchmark.floor import Rates, StepCost, denoise_step_cost, encode_cost, read_cost, rep_step_cost
from rf_export.benchmark.repeats import in_fresh_process
from rf_export.benchmark.selection import baseline_spellings
from rf_export.benchmark.tables import FORMAT
from rf_export.benchmark.task import BenchOptions, left_out_for_memory
from rf_export.benchmark.workload import DrawingWork, ReadingWork
from rf_export.benchmark.yardstick import bounding, yardsticks
from rf_export.checkpoint import load_checkpoint, save_checkpoint
from rf_export.config import preset
from rf_export.model import RFModel
from rf_export.training.scenes import SceneConfig
from rf_export.training.tokens import build_tokenizer
from runtime.bundle.folder import open_bundle
from runtime.errors import RFError
from runtime.options import GenerationOptions
from runtime.pipeline import Pipeline
from verification.measures.metrics import psnr_db
from verification.measures.timing import Timing, interleave, median_interval, quantile, ratio


@pytest.fixture(scope="module")
def workload(tiny_bundle: Path) -> DrawingWork:
    return DrawingWork.of(open_bundle(tiny_bundle).manifest, 7, GenerationOptions(num_steps=3))


@pytest.fixture(scope="module")
def drawn(tiny_checkpoint: Path, workload: DrawingWork) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and picture of the independent eager loop."""
    result = draw_reference(load_checkpoint(tiny_checkpoint), workload, 3)
    return result.rep_ids.numpy(), result.pixels.numpy()


SPELLINGS = list(baseline_spellings(compiled=False))


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)
def test_every_eager_baseline_draws_what_the_reference_draws(
    spelling, workload: DrawingWork, drawn: tuple[np.ndarray, np.ndarray], tiny_checkpoint: Path
) -> None:
    baseline = Baseline(spelt(load_checkpoint(tiny_checkpoint), spelling), workload, spelling)
    baseline.prefill()
    ids, pixels = baseline.draw_tokens(), baseline.denoise(3)
    if spelling.dtype == torch.float32:
        assert (ids == drawn[0]).all()
        assert psnr_db(pixels, drawn[1]) > 100
    else:  # bf16 may choose other tokens; the picture is then another one
        assert np.isfinite(pixels).all()
        assert psnr_db(pixels, drawn[1]) > 20 or (ids != drawn[0]).any()


def test_repeating_a_stage_changes_nothing(workload: DrawingWork, tiny_checkpoint: Path) -> None:
    baseline = Baseline(load_checkpoint(tiny_checkpoint), workload, SPELLINGS[0])
    baseline.prefill()
    first = baseline.draw_tokens(), baseline.denoise(3)
    again = baseline.draw_tokens(), baseline.denoise(3)
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()


def test_our_contender_draws_it_too(
    pipeline: Pipeline, workload: DrawingWork, drawn: tuple[np.ndarray, np.ndarray]
) -> None:
    ours = Compiled(pipeline, workload)
    ours.prefill()
    for _ in range(2):
        assert (ours.draw_tokens() == drawn[0]).all()
        assert psnr_db(ours.denoise(3), drawn[1]) > 100
    together = Compiled(pipeline, workload, num_requests=2)
    together.prefill()
    assert (together.draw_tokens() == drawn[0]).all()
    assert psnr_db(together.denoise(3), drawn[1]) > 100


@pytest.fixture(scope="module")
def questions(tiny_bundle: Path) -> ReadingWork:
    return ReadingWork.of(open_bundle(tiny_bundle).manifest, 5, 9)


def check_reader(reader, reference) -> None:
    reader.prepare()
    for _ in range(2):  # in an order in which one stage could spoil the next
        assert reader.second_question() == reference.second_word
        assert reader.words(reference.words) == reference.words
        assert reader.words() == reference.words
        assert reader.first_word() == reference.words[0]
    assert np.allclose(reader.encode(), reference.features, atol=1e-5)
    others = [(word + 1) % 67 for word in reference.words]
    assert reader.words(others) != reference.words, "what is forced decides what comes next"


@pytest.mark.parametrize("spelling", SPELLINGS[:4], ids=lambda spelling: spelling.name)
def test_every_eager_baseline_answers_what_the_reference_answers(spelling, questions, tiny_checkpoint) -> None:
    model = load_checkpoint(tiny_checkpoint)
    check_reader(BaselineReader(spelt(model, spelling), questions, spelling), read_reference(model, questions))


def test_our_contender_answers_it_too(pipeline: Pipeline, questions, tiny_checkpoint) -> None:
    check_reader(CompiledReader(pipeline, questions), read_reference(load_checkpoint(tiny_checkpoint), questions))


def test_spellings_share_the_weights_where_they_can(tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)
    assert spelt(model, Spelling(attention="matmul")) is model
    other = spelt(model, Spelling(layout="out_in"))
    assert other.rep_head.weight.t().is_contiguous()
    assert model.rep_head.weight.is_contiguous()


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

    vision = sum(
        parameter.numel()
        for name, parameter in parameters.items()
        if name.startswith(("encoder.", "connector.")) and parameter.ndim == 2 and ".position." not in name
    )
    assert encode_cost(config, 24).weight_bytes == 4 * vision
    assert read_cost(config, 3, 5).weight_bytes == attention + num_bytes("understanding.ffn", "text_head")


def test_reading_in_two_goes_attends_as_much_as_reading_in_one() -> None:
    config = preset("tiny")
    head = 2 * config.hidden_size * config.vocab_size
    whole, halves = read_cost(config, 10, 0).flops, (read_cost(config, 6, 0) + read_cost(config, 4, 6)).flops
    assert halves == whole + head


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


def test_no_further_round_begins_when_the_time_is_over() -> None:
    calls: list[int] = []
    timings = interleave({"a": lambda: calls.append(1) or 1}, num_rounds=9, most_seconds=0)
    assert len(calls) == 2
    assert len(timings["a"].wall) == 1


def test_a_quantile_is_a_value_that_was_measured() -> None:
    values = [float(i) for i in range(1, 101)]
    assert [quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert quantile([3.0, 1.0], 0.99) == 3.0


def test_a_ratio_is_that_of_the_medians_which_stand_beside_it() -> None:
    slow, fast = Timing([2.0, 30.0, 8.0], [0.0] * 3), Timing([1.0, 10.0, 2.0], [0.0] * 3)
    assert ratio(slow, fast) == {"median": 4.0, "low": 2.0, "high": 4.0}


def test_what_slows_a_round_for_both_is_no_doubt_about_their_ratio() -> None:
    rounds = [float(value) for value in np.random.default_rng(0).lognormal(sigma=1, size=20)]
    both = ratio(Timing([3 * value for value in rounds], []), Timing(rounds, []))
    assert (both["low"], both["high"]) == pytest.approx((3, 3))
    alone = ratio(Timing([3 * value for value in rounds[::-1]], []), Timing(rounds, []))
    assert alone["low"] < 2 < 3 < alone["high"]


@pytest.fixture(scope="module")
def bench_run(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """What the command prints, and the result and the page that it writes."""
    folder = tmp_path_factory.mktemp("bench")
    arguments = [
        "bench",
        str(tiny_bundle),
        "--checkpoint",
        str(tiny_checkpoint),
        "--rounds",
        "2",
        "--no-compile",
        "--repeat",
        "1",
        "--output",
        str(folder / "result.json"),
        "--report",
        str(folder / "page.html"),
    ]
    printed = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert printed.exit_code == 0
    return printed.stdout, json.loads((folder / "result.json").read_text()), (folder / "page.html").read_text()


def test_bench_prints_tables_of_drawing_and_answering(bench_run) -> None:
    for word in (
        "eager fp32",
        "eager bf16",
        "onnx fp32",
        "floor fp32",
        "denoise step",
        "resident",
        "words/s",
        "2nd question",
        "first picture",
        "left out: torch.compile",
    ):
        assert word in bench_run[0]


def test_all_precisions_of_the_bundle_compete_and_only_fp32_has_to_agree(bench_run) -> None:
    run = bench_run[1]["runs"][0]
    assert set(run["speedups"]) == {"onnx fp32", "onnx fp16"}
    assert run["agreement"]["onnx fp16"]["passed"]
    assert run["agreement"]["onnx fp16"]["psnr_db"] < run["agreement"]["onnx fp32"]["psnr_db"]


def test_the_result_has_every_sample_and_what_it_was_measured_on(bench_run) -> None:
    result = bench_run[1]
    assert result["format"] == FORMAT
    run = result["runs"][0]
    agreement = run["agreement"]["onnx fp32"]
    assert agreement["tokens_equal"] == agreement["tokens"] == 6
    assert agreement["words_equal"] == agreement["words"] > 10
    stages = {"rep_step", "denoise_step", "picture", "encode_image", "first_word", "next_word", "second_question"}
    assert set(run["timings"]) == set(run["yardsticks"]) == stages
    for stage in stages:
        for row in (*run["timings"][stage].values(), *run["yardsticks"][stage].values()):
            assert len(row["samples_ms"]) == len(row["cpu_samples_ms"]) == row["rounds"]
            assert row["median_ms"] > 0
    assert set(result["footprint"]) == {"eager fp32", "onnx fp32", "onnx fp16"}  # no engine was built
    assert result["footprint"]["onnx fp32"]["peak_bytes"] < result["footprint"]["eager fp32"]["peak_bytes"]
    steps = result["timeline"]["steps"]
    assert (steps["rep_step"]["num"], steps["denoise_step"]["num"]) == (3 * 7, 3 * 25)
    assert [row["x"] for row in result["scaling"]["batch"]] == [1, 2, 4]
    assert result["state"]["end"]["free_gib"] > 0


def test_fresh_processes_time_ours_and_pytorch_again(bench_run) -> None:
    printed, result, page = bench_run
    again = result["repeats"][0][0]
    assert again["threads"] == 1
    assert set(again["timings"]) == set(again["yardsticks"]) == set(result["runs"][0]["timings"])
    for rows in again["timings"].values():
        assert set(rows) == {"onnx fp32", "onnx fp16", "eager fp32"}
        assert all(len(row["samples_ms"]) == len(row["cpu_samples_ms"]) > 0 for row in rows.values())
    assert "fresh processes: 1; their medians" in printed
    assert "Fresh processes" in page


def test_a_fresh_process_that_fails_says_why_in_one_sentence(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RFError, match=r"could not repeat the benchmark: .*nowhere") as caught:
        in_fresh_process(tiny_bundle, tmp_path / "nowhere", BenchOptions())
    assert "\n" not in str(caught.value)


def test_the_page_has_plots_with_units_and_fetches_nothing(bench_run) -> None:
    page = bench_run[2]
    for word in ("FLOP per byte", "GFLOP/s", "ms per step", "cache slots at the end", "roof: ", "AR step: 7<"):
        assert word in page
    assert page.count("<svg") >= 4
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_a_result_is_compared_with_itself_slowed_by_a_tenth(bench_run, tmp_path: Path) -> None:
    """A real result of the command, as it wrote it, but for the number of samples."""
    result = bench_run[1]
    for run in result["runs"]:
        for stage, rows in run["timings"].items():
            for row in (*rows.values(), *run["yardsticks"][stage].values()):
                for name in ("samples_ms", "cpu_samples_ms"):
                    row[name] = [row["median_ms"] * (1 + 0.002 * i) for i in range(20)]
    result["repeats"] *= 3  # processes that happen to be alike: without any noise a tenth shows for sure
    (tmp_path / "a.json").write_text(json.dumps(result))
    for (run,) in result["repeats"][:1]:  # the list holds one object three times
        slowed = run["timings"]["next_word"]["onnx fp32"]
        slowed["samples_ms"] = [1.1 * value for value in slowed["samples_ms"]]
    (tmp_path / "b.json").write_text(json.dumps(result))
    paths = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    found = CliRunner().invoke(cli.main, ["bench", "--compare", *paths])
    assert found.exit_code == 1
    assert "worst: onnx fp32, next_word, 1.1" in found.stdout
    assert CliRunner().invoke(cli.main, ["bench", "--compare", paths[0], paths[0]]).exit_code == 0


def test_the_document_has_every_shape_and_says_what_was_planted(bench_run) -> None:
    result = {"preset": "tiny", "command": "python benchmarks/cpu.py tiny", **bench_run[1]}
    change = {
        "stage": "next_word",
        "contender": "onnx fp32",
        "raw": 1.1,
        "drift": {"memory": 1.0},
        "normalised": 1.1,
        "low": 1.05,
        "high": 1.15,
        "verdict": "slower",
    }
    planted = {
        "preset": "tiny",
        "share": 0.1,
        "clock": "cpu",
        "min_effect": 0.03,
        "found": 1,
        "planted_rows": 1,
        "processes": 8,
        "right": True,
        "same_build": {"verdict": "no regression: none"},
        "planted": {"verdict": "REGRESSION: 1 of 1", "changes": [change]},
    }
    page = document([result, result], planted)
    for part in (
        "## tiny",
        "| AR step | floor fp32 |",
        "python benchmarks/cpu.py tiny",
        "REGRESSION: 1 of 1",
        "First word of an answer",
        "Left out: torch.compile",
        "| pictures together",
    ):
        assert part in page
    for table in page.split("\n\n"):
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) <= 1, table


def test_where_memory_is_short_what_copies_the_weights_again_is_left_out() -> None:
    assert left_out_for_memory(100_000_000, 8 << 30) == {}
    left_out = left_out_for_memory(1_300_000_000, 20 << 30)
    assert "torch.compile" in left_out
    assert "38 GiB, and 20 GiB are free" in left_out["torch.compile"]


def test_a_stage_is_held_against_what_bounds_it() -> None:
    assert bounding(9, 1) == ("matrix",)
    assert bounding(1, 9) == ("memory",)
    assert bounding(1, 2) == ("matrix", "memory")
    assert all(run() > 0 for run in yardsticks(("matrix", "memory"), 1000).values())


def test_energy_is_told_where_the_board_tells_it(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).source is None
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "9500000"), ("max_energy_range_uj", "10000000")):
        (zone / name).write_text(text + "\n")
    (zone.parent / "intel-rapl:0:0").mkdir()  # a part of it, not to be counted twice
    meter = EnergyMeter(tmp_path)
    assert meter.source == "RAPL, package-0"
    assert meter.joules(lambda: (zone / "energy_uj").write_text("9700000")) == pytest.approx(0.2)
    assert meter.joules(lambda: (zone / "energy_uj").write_text("200000")) == pytest.approx(0.5), "it began anew"


def test_energy_of_a_jetson_is_power_times_time(tmp_path: Path) -> None:
    sensor = tmp_path / "sys/class/hwmon/hwmon3"
    sensor.mkdir(parents=True)
    for name, text in (("name", "ina3221"), ("in1_label", "VDD_IN"), ("in1_input", "5000"), ("curr1_input", "2000")):
        (sensor / name).write_text(text + "\n")
    meter = EnergyMeter(tmp_path)
    assert meter.source == "INA3221, VDD_IN"
    started = time.perf_counter()
    joules = meter.joules(lambda: time.sleep(0.05))
    assert 10 * 0.05 <= joules <= 10 * (time.perf_counter() - started)


def test_the_machine_tells_its_governor_caches_and_clock(tmp_path: Path) -> None:
    cpu = tmp_path / "sys/devices/system/cpu/cpu0"
    for path, text in (
        ("cpufreq/scaling_governor", "performance"),
        ("cpufreq/cpuinfo_max_freq", "3700000"),
        ("cpufreq/scaling_cur_freq", "3500000"),
        ("cache/index0/level", "1"),
        ("cache/index0/type", "Data"),
        ("cache/index0/size", "32K"),
    ):
        (cpu / path).parent.mkdir(parents=True, exist_ok=True)
        (cpu / path).write_text(text + "\n")
    machine = describe_machine(tmp_path)
    assert (machine["governor"], machine["max_mhz"], machine["caches"]) == ("performance", 3700, ["L1 Data 32K"])
    assert machine["energy"] == "not available"
    assert describe_state(tmp_path)["clock_mhz"] == 3500
    assert "governor" not in describe_machine(tmp_path / "nothing")


def test_bench_refuses_another_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_checkpoint(RFModel(preset("tiny")), build_tokenizer(SceneConfig()).to_str(), tmp_path / "other")
    result = CliRunner().invoke(cli.main, ["bench", str(tiny_bundle), "--checkpoint", str(tmp_path / "other")])
    assert result.exit_code == 1
    assert "another checkpoint" in result.stderr
    assert "two results with --compare" in CliRunner().invoke(cli.main, ["bench", str(tiny_bundle)]).stderr


def test_what_nobody_verified_is_refused_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU benchmark tells so for large shapes: to verify them would take longer than to measure them."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    cpu = importlib.import_module("cpu")
    monkeypatch.setattr(cpu, "LARGE", 0)
    options = BenchOptions(num_rounds=1, num_picture_rounds=1, compile=False, scaling=False)
    (tmp_path / "results").mkdir()
    cpu.measure("tiny", tmp_path / "work", tmp_path / "results", options)
    (file,) = (tmp_path / "results").iterdir()
    assert json.loads(file.read_text())["runs"][0]["agreement"]["engine fp32"]["passed"]
    checkpoint, bundle = cpu.prepare("tiny", tmp_path / "work")
    refused = CliRunner().invoke(cli.main, ["bench", str(bundle), "--checkpoint", str(checkpoint), "--no-compile"])
    assert refused.exit_code == 1 and "--allow-unverified" in refused.stderr
