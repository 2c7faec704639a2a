"""A slowdown is told from noise and from a slower machine: statistics on made-up samples, never on wall time."""

import copy
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cli
from rf_export.benchmark.compare import FORMAT, MIN_PROCESSES, OVERALL, compare, differences, interval, student_quantile

ROUNDS, PROCESSES = 8, 8
STAGES = {"rep_step": 0.4, "denoise_step": 5.0, "encode_image": 2.0, "first_word": 3.0, "next_word": 0.3}
CONTENDERS = ("engine fp32", "onnx fp32", "eager fp32", "eager bf16")
MACHINE = {
    "cpu": "Some CPU",
    "features": ["avx2"],
    "cores": 2,
    "caches": [],
    "python": "3.11",
    "versions": {"onnxruntime": "1.32"},
    "thread_variables": {},
}


def made_up(seed, *, noise=0.01, luck=0.01, drift=1.0, slow=None, processes=PROCESSES, outliers=0.05, wander=0.02):
    """A result whose samples are log-normal, with outliers of up to twice, and a machine that wanders round by round.

    Every process has its `luck` with each contender and stage, in all of its rounds. `drift` slows everything, the
    yardsticks too; `slow` maps (stage, contender) to a factor of its own.
    """
    rng = np.random.default_rng(seed)

    def samples(median, machine):
        values = median * machine * np.exp(luck * rng.standard_normal() + noise * rng.standard_normal(ROUNDS))
        return list(values * np.where(rng.random(ROUNDS) < outliers, 1 + rng.random(ROUNDS), 1))

    def row(median, machine):
        values = samples(median, machine)
        return {"samples_ms": values, "cpu_samples_ms": [0.5 * value for value in values]}

    def process():
        timings, yards = {}, {}
        for stage, median in STAGES.items():
            machine = drift * np.exp(np.cumsum(wander / math.sqrt(ROUNDS) * rng.standard_normal(ROUNDS)))
            timings[stage] = {name: row(median * (slow or {}).get((stage, name), 1.0), machine) for name in CONTENDERS}
            names = ("matrix", "memory") if stage == "denoise_step" else ("memory",)
            yards[stage] = {name: row(1.0, machine) for name in names}
        return [{"threads": 1, "timings": timings, "yardsticks": yards}]

    return {
        "format": FORMAT,
        "machine": copy.deepcopy(MACHINE),
        "model": {"num_parameters": 1, "bundle_id": str(seed)},
        "options": {},
        "runs": process(),
        "repeats": [process() for _ in range(processes)],
    }


def told(verdict, earlier, later, **options):
    return {(each.stage, each.contender) for each in compare(earlier, later, **options) if each.verdict == verdict}


def slower(earlier, later, **options):
    """Single stages: one that is much slower makes all together slower too."""
    return {key for key in told("slower", earlier, later, **options) if key[0] != OVERALL}


def test_a_planted_slowdown_of_a_tenth_is_found_and_hardly_anything_else():
    """In one stage, with processes that differ by 1%; over fixed seeds: no statistic finds it always."""
    planted = list(itertools.product(STAGES, CONTENDERS[:2], (0.8, 1.0, 1.25)))
    found = other = 0
    for seed, (stage, contender, drift) in enumerate(planted):
        later = made_up(1000 + seed, drift=drift, slow={(stage, contender): 1.10})
        rows = slower(made_up(seed), later)
        found += (stage, contender) in rows
        other += bool(rows - {(stage, contender)})
    assert found >= 0.95 * len(planted)
    assert other <= 0.1 * len(planted)


def test_where_processes_differ_too_much_to_see_one_stage_all_together_still_show_it():
    everything = {(stage, name): 1.10 for stage in STAGES for name in CONTENDERS[:2]}
    pairs = [(made_up(seed, luck=0.04), made_up(1000 + seed, luck=0.04, slow=everything)) for seed in range(30)]
    found = [{stage for stage, _ in told("slower", *pair)} for pair in pairs]
    assert sum(OVERALL in stages for stages in found) >= 0.9 * len(pairs)
    assert sum(stages == set(STAGES) | {OVERALL} for stages in found) <= 0.1 * len(pairs)


def test_two_runs_of_one_build_are_quiet():
    """The stated rate of false alarms, 5% of comparisons of 12 rows each, at any level of noise, luck and drift."""
    alarms = {}
    for noise, luck in ((0.01, 0.0), (0.10, 0.01), (0.01, 0.10)):
        options = {"noise": noise, "luck": luck}
        runs = [(made_up(seed, **options), made_up(10_000 + seed, **options, drift=1.1)) for seed in range(30)]
        alarms[noise, luck] = sum(bool(told("slower", *pair, min_effect=0.0)) for pair in runs)
    assert max(alarms.values()) <= 4, alarms  # P(more than 4 of 30 | 5%) = 1.6%


def test_rounds_of_one_process_each_give_no_verdict():
    """However many: two processes differ by their luck, which all rounds share."""
    changes = compare(made_up(1, processes=0), made_up(2, processes=0))
    assert {(each.verdict, each.low) for each in changes} == {("unclear", None)}
    few = compare(made_up(1), made_up(2, processes=MIN_PROCESSES - 1))
    assert {each.verdict for each in few} == {"unclear"}


def test_a_slower_machine_is_no_regression_and_a_faster_one_hides_none():
    slow_machine = compare(made_up(1), made_up(2, drift=1.3))
    assert all(each.raw > 1.2 and each.verdict == "same" for each in slow_machine)
    hidden = {("next_word", "engine fp32"): 1.15}
    assert slower(made_up(1), made_up(2, drift=0.85, slow=hidden)) == set(hidden)


def test_what_one_yardstick_explains_is_charged_to_nobody():
    earlier, later = made_up(1), made_up(2, drift=1.2)
    for (run,) in later["repeats"]:
        yard = run["yardsticks"]["denoise_step"]  # arithmetic is as fast as before, memory is not
        yard["matrix"]["samples_ms"] = [value / 1.2 for value in yard["matrix"]["samples_ms"]]
    assert {each.verdict for each in compare(earlier, later)} == {"same"}


def test_what_slows_eager_pytorch_too_is_not_ours():
    both = {("next_word", name): 1.2 for name in ("engine fp32", "onnx fp32", "eager fp32")}
    assert slower(made_up(1), made_up(2, slow=both)) == set()
    ours = {("next_word", name): 1.2 for name in ("engine fp32", "onnx fp32")}
    assert slower(made_up(1), made_up(2, slow=ours)) == set(ours)


def test_a_yardstick_that_one_run_alone_has_is_not_used():
    earlier, later = made_up(1), made_up(2, drift=1.2)
    del later["repeats"][0][0]["yardsticks"]["denoise_step"]["matrix"]
    changes = compare(earlier, later)
    assert {each.verdict for each in changes} == {"same"}
    assert all(set(each.drift) == {"memory", "eager fp32"} for each in changes if each.stage != OVERALL)


def test_a_change_for_the_better_is_told():
    better = {("rep_step", "engine fp32"): 0.8}
    assert told("faster", made_up(1), made_up(2, slow=better)) - {(OVERALL, "engine fp32")} == set(better)


def test_the_cpu_clock_does_not_see_what_others_took():
    earlier, later = made_up(1), made_up(2)
    for (run,) in later["repeats"]:
        row = run["timings"]["next_word"]["onnx fp32"]
        row["samples_ms"] = [1.5 * value for value in row["samples_ms"]]
    assert slower(earlier, later) == {("next_word", "onnx fp32")}
    assert slower(earlier, later, clock="cpu") == set()


@pytest.mark.parametrize(("freedom", "t"), [(5, 2.5706), (11, 2.2010), (30, 2.0423)])
def test_quantiles_of_students_t_are_those_of_the_tables(freedom, t):
    assert student_quantile(0.975, freedom) == pytest.approx(t, rel=3e-3)


def test_the_interval_is_students_for_two_samples():
    low, high = interval(np.log([1.0, 1.1, 1.2]), np.log([1.3, 1.4, 1.5]), probability=0.975)
    assert (low, high) == pytest.approx((1.0580, 1.5342), rel=3e-3)  # exp(0.24222 +- 2.7764 * 0.06693)


def run_compare(tmp_path: Path, earlier, later, *options):
    for name, result in (("a.json", earlier), ("b.json", later)):
        (tmp_path / name).write_text(json.dumps(result))
    return CliRunner().invoke(
        cli.main, ["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *options]
    )


def test_the_command_says_it_in_its_exit_code(tmp_path):
    quiet = run_compare(tmp_path, made_up(1), made_up(2))
    assert quiet.exit_code == 0
    assert "no regression: none of 12" in quiet.stdout
    found = run_compare(tmp_path, made_up(1), made_up(2, slow={("next_word", "onnx fp32"): 1.2}))
    assert found.exit_code == 1
    assert "REGRESSION: 2 of 12" in found.stdout  # all stages together are the second
    assert "onnx fp32, next_word" in found.stdout
    rows = json.loads(run_compare(tmp_path, made_up(1), made_up(2), "--json").stdout)
    assert len(rows) == 12
    once = run_compare(tmp_path, made_up(1, processes=0), made_up(2, processes=0))
    assert once.exit_code == 2
    assert "Measure both again with --repeat 5" in once.stderr


def test_results_of_different_machines_get_no_verdict_unless_asked_for(tmp_path):
    other = made_up(2)
    other["machine"]["versions"]["onnxruntime"] = "1.40"
    other["model"]["num_parameters"] = 2
    assert len(differences(made_up(1), other)) == 2
    refused = run_compare(tmp_path, made_up(1), other)
    assert refused.exit_code == 2
    assert "onnxruntime 1.32, then onnxruntime 1.40" in refused.stderr
    assert "REGRESSION" not in refused.stdout
    assert run_compare(tmp_path, made_up(1), other, "--despite-differences").exit_code == 0


def test_another_bundle_is_what_is_compared_and_no_difference():
    assert differences(made_up(1), made_up(2)) == []


OLD = json.dumps({"format": 1, "runs": [], "machine": {}, "model": {}, "options": {}})


LACKING = json.dumps({"format": FORMAT, "runs": [{"threads": 1}], "machine": {}, "model": {}, "options": {}})


@pytest.mark.parametrize("content", ["{}", "[]", "nonsense", OLD, LACKING])
def test_a_file_that_is_no_result_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    path = str(tmp_path / "a.json")
    result = CliRunner().invoke(cli.main, ["bench", "--compare", path, path])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert path in result.stderr
