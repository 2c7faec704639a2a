"""A bundle gets INT8 graphs that draw, or stays as it was with one sentence that says why."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from exporting import CALIBRATION as CONFIG
from exporting import CALIBRATION_PROMPTS as PROMPTS
from PIL import Image

import cli
from calibration import GateLimits, calibrate, read_prompts, record, workbench
from calibration import recordings as cache
from calibration.gate import draw_originals, measure_quality
from calibration.job import load_pipeline
from calibration.layers import find_layers
from calibration.statistics import missing_coverage
from calibration.trajectory import plan_passes
from engines import EngineConfig, build
from runtime import Pipeline, RFError
from runtime.backends import create_backend
from runtime.bundle.folder import compute_bundle_id, describe_file, open_bundle, write_manifest
from runtime.bundle.manifest import FileEntry
from runtime.signature import GRAPHS, Variant

MODULE = sys.modules["calibration.calibrate"]  # the package has a function of that name
MORE = [f"a {colour} {name}" for colour in ("red", "blue") for name in ("hat", "bell", "star", "tree")]


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch):
    monkeypatch.setattr(workbench, "_TURN_SECONDS", 0.001)


@pytest.fixture(scope="module")
def calibrated(calibrated_bundle):
    """A copy of the bundle with an engine, then INT8 graphs; not to be changed."""
    return calibrated_bundle


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_new_graphs_draw_nearly_the_same_picture(calibrated):
    full, int8 = (Pipeline.load(calibrated, precision, num_threads=1, engine="none") for precision in ("fp32", "int8"))
    pictures = [pipeline.draw("a red car", seed=3).astype(float) for pipeline in (full, int8)]
    assert 0 < np.abs(pictures[0] - pictures[1]).mean() < 6


def test_every_graph_has_integers_and_the_bundle_is_sound(calibrated):
    opened = open_bundle(calibrated, verify="hash")
    assert "int8" in opened.manifest.precisions
    for name in GRAPHS:
        entry = opened.graph(name, Variant("int8"))
        weights = [value.const_value.dtype for value in ir.load(opened.file(entry.file)).graph.initializers.values()]
        assert ir.DataType.INT8 in weights
        assert "onnxruntime-1.24" not in entry.lint  # nobody told who takes it
    sizes = {file: entry.size for file, entry in opened.manifest.files.items()}
    assert sizes["graphs/weights/int8.bin"] < 0.5 * sizes["graphs/weights/fp32.bin"]


def test_engines_of_the_other_graphs_stay_valid_and_int8_gets_its_own(calibrated, tmp_path):
    folder = shutil.copytree(calibrated, tmp_path / "bundle")
    assert Pipeline.load(folder, num_threads=1).engine is not None
    build(folder, EngineConfig(precision="int8", num_threads=1))
    compiled = Pipeline.load(folder, "int8", num_threads=1)
    assert compiled.engine is not None
    plain = Pipeline.load(folder, "int8", num_threads=1, engine="none")
    difference = compiled.draw("a red car").astype(float) - plain.draw("a red car")
    assert np.abs(difference).mean() < 2


def test_the_decision_table_says_of_every_group_what_became_of_it_and_why(calibrated):
    summary = open_bundle(calibrated).manifest.verified["int8"]
    for decision in summary["decisions"]:
        rows = decision["rows"]
        if decision["graph"] != "vision_encoder":  # the tiny one is too narrow
            assert {row["kind"] for row in rows} >= {"qkv", "out", "ffn.gate_up", "ffn.down"}
        assert all(row["why"] and 0 <= row["kept"] <= row["layers"] for row in rows)
        assert sum(row["kept"] for row in rows) == decision["int8_layers"]
    assert {row["graph"] for row in summary["coverage"]} == set(GRAPHS)
    assert all(row["fewest_rows"] > 0 for row in summary["coverage"])
    assert summary["quality"]["tokens"] == 2 * 6  # two prompts were kept for the gate
    captions = summary["quality"]["captions"]
    assert captions["answers"] == 2
    assert captions["tokens_alike_interval"][0] >= CONFIG.limits.answer_tokens
    page = (calibrated.parent / "bundle.calibration.html").read_text()
    assert "Each group earns its place" in page
    assert "equal or near ties (judged)" in page
    assert "http" not in page.replace("http-equiv", "")


def test_int8_that_is_slower_is_refused_and_the_bundle_untouched(bundle, monkeypatch):
    slower = {"original": workbench.StepTime(1.0, 0.0)}

    class Slow(dict):
        def __missing__(self, name):
            return workbench.StepTime(2.0, 0.0)

    monkeypatch.setattr(
        workbench.Workbench,
        "time",
        lambda self, sessions: Slow(slower) | {name: Slow(slower)[name] for name in sessions},
    )
    before = content(bundle)
    with pytest.raises(
        RFError, match=r"no layer of rep_decoder and denoiser is good enough in INT8 and as fast.*--force"
    ):
        calibrate(bundle, PROMPTS, replace(CONFIG, force=False))
    assert content(bundle) == before
    assert "Failed" in (bundle.parent / "bundle.calibration.html").read_text()


def test_int8_that_is_wrong_is_mended_layer_by_layer_or_refused(bundle, monkeypatch):
    """Scales that are three times too large clip every weight: no group agrees any more."""
    import calibration.quantise as module

    honest = module.stored_scales
    monkeypatch.setattr(module, "stored_scales", lambda largest, *of: (honest(largest, *of) / 3).astype(of[-1]))
    before = content(bundle)
    with pytest.raises(RFError, match="no layer of rep_decoder and denoiser is good enough in INT8"):
        calibrate(bundle, PROMPTS, replace(CONFIG, force=False))
    assert content(bundle) == before


def test_a_gate_that_cannot_be_passed_gives_back_layers_and_then_fails_closed(bundle):
    limits = GateLimits(cosine=0.9, psnr_db=300.0, answer_tokens=0.5)
    with pytest.raises(RFError, match=r"pictures: PSNR .* dB, expected at least 300"):
        calibrate(bundle, PROMPTS, replace(CONFIG, force=False, limits=limits))
    assert "int8" not in open_bundle(bundle, verify="hash").manifest.precisions


def test_answers_that_change_fail_the_gate_though_every_picture_is_as_good(tiny_bundle, tmp_path):
    """Nothing but answers goes through the text head."""
    config = replace(CONFIG, limits=GateLimits(answer_tokens=0.8))
    base = load_pipeline(open_bundle(tiny_bundle), "fp32", create_backend("ort"), config)
    originals = draw_originals(base, [("a red car", 0), ("a key", 1)], [np.zeros((9, 9, 3), np.uint8)])
    graph = shutil.copytree(tiny_bundle / "graphs", tmp_path / "graphs") / "text_decoder.fp32.classic.onnx"
    model = ir.load(graph)
    head = next(value for name, value in model.graph.initializers.items() if "text_head" in name)
    weight = head.const_value.numpy()
    noise = np.random.default_rng(0).normal(scale=weight.std(), size=weight.shape).astype(np.float32)
    head.const_value = ir.tensor(weight + noise, name=head.name)
    ir.save(model, graph)
    other = create_backend("ort").open(graph, num_threads=1, compiled=False)

    told: list[int] = []
    same = measure_quality(originals, base, told.append)
    assert told == [1, 2]
    plan = base.check(["a red car"])[0].plan
    assert (len(same.logits_cosine), len(same.x_pred_cosine)) == (plan.num_rep_tokens, plan.num_steps)
    assert (same.prompts, same.tokens) == (2, 2 * plan.num_rep_tokens)
    assert same.captions.answers_equal == same.captions.answers == 3
    assert (same.failures(config.limits), same.captions.shortfall(0.8)) == ([], 0)
    changed = measure_quality(originals, base.with_sessions({"text_decoder": other}), lambda done: None)
    assert min(changed.logits_cosine) > 0.999999
    (failure,) = changed.failures(config.limits)
    assert failure.startswith("answers: ")
    assert changed.shortfall(config.limits) > 1


def test_captions_too_few_to_judge_are_told_before_anything_is_decided(bundle, monkeypatch):
    monkeypatch.delattr(MODULE, "decide")
    limits = GateLimits(cosine=0.99)
    with pytest.raises(RFError, match=r"2 captions of \d+ tokens are too few to show that 95% of the"):
        calibrate(bundle, PROMPTS, replace(CONFIG, force=False, limits=limits))


def test_a_task_score_that_falls_is_refused(bundle):
    def scorer(pipeline, report):
        return [True] * 50 if pipeline.precision == "fp32" else [True] * 40 + [False] * 10

    with pytest.raises(RFError, match=r"task score: -20\.0 points, expected a loss of at most 1"):
        calibrate(bundle, PROMPTS, replace(CONFIG, limits=replace(CONFIG.limits), force=False), scorer=scorer)


def test_calibrating_again_goes_on_from_the_cache_and_gives_the_same_ranges(calibrated, tmp_path):
    folder = shutil.copytree(calibrated, tmp_path / "bundle")
    recorded = calibrated.parent / "bundle.fp32.calibration.npz"
    shutil.copy(recorded, tmp_path / "cache.npz")
    told = []
    calibrate(
        folder,
        PROMPTS,
        replace(CONFIG, cache_path=tmp_path / "cache.npz"),
        on_progress=lambda what, *_: told.append(what),
    )
    assert "recording" not in told
    assert open_bundle(folder, verify="hash").manifest.precisions == ("fp32", "fp16", "int8")


def test_a_recording_that_was_interrupted_goes_on_to_the_same_end(bundle, tmp_path, monkeypatch):
    class Interruption(BaseException):
        pass

    def stop(what, done, total):
        if (what, done) == ("recording", 5):
            raise Interruption

    monkeypatch.setattr(record, "SAVE_EVERY", 2)
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    calibrate(bundle, PROMPTS, replace(CONFIG, cache_path=whole))
    with pytest.raises(Interruption):
        calibrate(bundle, PROMPTS, replace(CONFIG, cache_path=parts), on_progress=stop)
    with np.load(parts) as file:
        assert json.loads(file["meta"].tobytes())["progress"] == {"passes": 0, "prompts": 4}
    calibrate(bundle, PROMPTS, replace(CONFIG, cache_path=parts))
    with np.load(whole) as a, np.load(parts) as b:
        assert set(a.files) == set(b.files)
        assert all((a[name] == b[name]).all() for name in a.files if name != "meta")


def test_passes_take_little_memory_and_see_the_same(bundle, tmp_path):
    one, many = tmp_path / "one.npz", tmp_path / "many.npz"
    calibrate(bundle, PROMPTS, replace(CONFIG, cache_path=one))
    layers = {
        name: find_layers(
            ir.load(open_bundle(bundle).file(open_bundle(bundle).graph(name, Variant("fp32")).file)).graph
        )
        for name in GRAPHS
    }
    passes = plan_passes(layers, dict.fromkeys(GRAPHS, 9000), 8)
    assert len(passes) > 2
    assert [item for part in passes for item in part] == [(name, w) for name, found in layers.items() for w in found]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "plan_passes", lambda *_: passes)
        calibrate(bundle, PROMPTS, replace(CONFIG, cache_path=many))
    with np.load(one) as a, np.load(many) as b:
        assert all((a[name] == b[name]).all() for name in a.files if name != "meta" and "samples" not in name)


def test_a_recording_under_other_defaults_is_not_taken(calibrated, tmp_path):
    """The graphs are the same; what is drawn with them is not."""
    folder, recorded = shutil.copytree(calibrated, tmp_path / "bundle"), tmp_path / "cache.npz"
    shutil.copy(calibrated.parent / "bundle.fp32.calibration.npz", recorded)
    manifest = open_bundle(folder).manifest
    write_manifest(folder, manifest.replace(sampling=manifest.sampling.replace(num_steps=9)))
    with pytest.raises(RFError, match="is of something else: other defaults of sampling"):
        calibrate(folder, PROMPTS, replace(CONFIG, cache_path=recorded))


def test_a_cache_that_nobody_named_is_recorded_anew_where_it_is_of_something_else(bundle, caplog):
    calibrate(bundle, PROMPTS, CONFIG)
    cached = bundle.with_name(f"{bundle.name}.fp32.calibration.npz")
    before = json.loads(np.load(cached)["meta"].tobytes())["key"]
    calibrate(bundle, [*PROMPTS[1:], "a green bell"], CONFIG)
    assert "Recording anew" in caplog.text and "other prompts or seeds" in caplog.text
    assert json.loads(np.load(cached)["meta"].tobytes())["key"] != before


def test_a_bundle_named_by_a_link_is_calibrated_where_it_lies(bundle, tmp_path):
    (tmp_path / "current").symlink_to(bundle)
    calibrate(tmp_path / "current", PROMPTS, CONFIG)
    assert (tmp_path / "current").is_symlink()
    assert "int8" in open_bundle(bundle).manifest.precisions
    assert (bundle.parent / f"{bundle.name}.fp32.calibration.npz").is_file()


def test_what_would_fail_at_the_end_is_refused_at_the_start(bundle, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red car\n", encoding="utf-8-sig")
    assert read_prompts(prompts) == ["a red car"], "a byte order mark is no letter"
    for options, words in (
        (["--min-cosine", "1"], "range -1<=x<1"),
        (["--report", str(tmp_path)], "is a directory"),
        (["--cache", str(tmp_path / "no" / "cache.npz")], "is not a folder"),
        (["--export-inputs", str(tmp_path / "out"), "--images", str(tmp_path)], "--images"),
    ):
        result = CliRunner().invoke(cli.main, ["calibrate", str(bundle), "--prompts", str(prompts), *options])
        assert (result.exit_code, words in result.stderr) == (2, True), result.output


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("change", [damage, cut_off, lambda path: path.write_bytes(b"")])
def test_a_damaged_cache_is_refused(calibrated, tmp_path, change):
    folder, recorded = shutil.copytree(calibrated, tmp_path / "bundle"), tmp_path / "cache.npz"
    shutil.copy(calibrated.parent / "bundle.fp32.calibration.npz", recorded)
    change(recorded)
    with pytest.raises(RFError, match=r"calibration cache .*cache.npz is damaged .* Delete it and calibrate again"):
        calibrate(folder, PROMPTS, replace(CONFIG, cache_path=recorded))


def test_a_cache_with_pickles_is_refused(calibrated, tmp_path):
    recorded = tmp_path / "cache.npz"
    np.savez(recorded, meta=np.array([{"format": cache.FORMAT}], dtype=object))
    with pytest.raises(RFError, match="is damaged"):
        cache.load(recorded, {})


def test_the_cache_of_another_model_or_other_prompts_is_refused(calibrated, modern_bundle, tmp_path):
    folder, recorded = shutil.copytree(calibrated, tmp_path / "bundle"), tmp_path / "cache.npz"
    shutil.copy(calibrated.parent / "bundle.fp32.calibration.npz", recorded)
    with pytest.raises(RFError, match="is of something else: other prompts or seeds"):
        calibrate(folder, [*PROMPTS[1:], "a green bell"], replace(CONFIG, cache_path=recorded))
    key = json.loads(np.load(recorded)["meta"].tobytes())["key"]
    with pytest.raises(RFError, match="is of something else: other graphs"):
        cache.load(recorded, {**key, "graphs": ["0" * 64]})


def test_too_little_coverage_is_refused(calibrated, tmp_path):
    recorded = tmp_path / "cache.npz"
    shutil.copy(calibrated.parent / "bundle.fp32.calibration.npz", recorded)
    key = json.loads(np.load(recorded)["meta"].tobytes())["key"]
    content, progress = cache.load(recorded, key)
    weight = next(iter(content["denoiser"]))
    content["denoiser"][weight].counts[7, 1] = 0
    assert missing_coverage(content, ["denoiser"]) == f"denoiser saw no unconditional row in step 7 at {weight}"
    cache.save(recorded, key, content, progress)
    folder = shutil.copytree(calibrated, tmp_path / "bundle")
    with pytest.raises(RFError, match="does not cover the model: denoiser saw no unconditional row in step 7"):
        calibrate(folder, PROMPTS, replace(CONFIG, cache_path=recorded))


def test_activations_that_overflow_are_refused(bundle):
    """A norm's weight that is infinite."""
    path = bundle / "graphs" / "denoiser.fp32.classic.onnx"
    model = ir.load(path)
    norm = next(value for name, value in model.graph.initializers.items() if "norm" in name)
    norm.const_value = ir.tensor(np.full(norm.const_value.shape.numpy(), np.inf, np.float32), name=norm.name)
    ir.save(model, path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = describe_file(path)
    del manifest["checksum"]
    manifest["files"]["graphs/denoiser.fp32.classic.onnx"] = entry.to_dict()
    manifest["bundle_id"] = compute_bundle_id({name: FileEntry(**e) for name, e in manifest["files"].items()})
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RFError, match=r"denoiser: model\S* is fed values that are not finite in step 0"):
        calibrate(bundle, PROMPTS, CONFIG)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "0 different prompts are too few"),
        (["a red car"] * 50, "1 different prompts are too few"),
        ([*PROMPTS, "xylophone"], "does not know 'xylophone'"),
    ],
)
def test_prompts_that_cannot_do_are_refused(bundle, prompts, message):
    before = content(bundle)
    with pytest.raises(RFError, match=message):
        calibrate(bundle, prompts, CONFIG)
    assert content(bundle) == before


def test_the_command_calibrates_draws_and_writes_inputs_for_other_tools(bundle, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([*PROMPTS, *MORE]))
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    (tmp_path / "images").mkdir()
    shutil.move(tmp_path / "red.png", tmp_path / "images")

    def run(*arguments):
        result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    out = run(
        "calibrate", bundle, "--prompts", prompts, "--images", tmp_path / "images", "--min-cosine", 0.99, "--force"
    )
    assert "weights at" in out
    assert "denoiser" in out
    drawing = ("generate", bundle, "a red car", "--precision", "int8", "-o", tmp_path / "car.png", "--steps", 2)
    refused = CliRunner().invoke(cli.main, list(map(str, drawing)))
    assert refused.exit_code == 1 and "failed verification" in refused.stderr  # too few pictures to be sure of answers
    run(*drawing, "--allow-unverified")
    entries = open_bundle(bundle).graph("denoiser", Variant("int8")).lint
    assert {"onnxruntime-1.24", "tensorrt-rtx-1.7"} <= set(entries)
    files = run("calibrate", bundle, "--prompts", prompts, "--export-inputs", tmp_path / "inputs").split()
    assert [Path(file).name for file in files] == sorted(
        f"{name}.{kind}" for name in GRAPHS for kind in ("json", "npz")
    )
    with np.load(tmp_path / "inputs" / "denoiser.npz") as arrays:
        signature = open_bundle(bundle).graph("denoiser", Variant("fp32")).signature
        assert set(arrays.files) == {spec.name for spec in signature.inputs}
        assert len(arrays["x_t"]) == len(arrays["past_key_values.0.key"]) == len(arrays["past_lengths"])
        assert len(set(arrays["t"].tolist())) > 4


def test_a_calibration_that_is_killed_leaves_the_bundle_as_it_was(bundle, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([*PROMPTS, *MORE]))
    before = content(bundle)
    command = [sys.executable, str(Path(cli.__file__)), "calibrate", str(bundle), "--prompts", str(prompts)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    cached = bundle.parent / "bundle.fp32.calibration.npz"
    while not cached.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert content(bundle) == before
    calibrate(bundle, read_prompts(prompts), replace(CONFIG, min_prompts=16))
    assert [path.name for path in bundle.parent.iterdir() if "partial" in path.name] == []
    assert "int8" in open_bundle(bundle, verify="hash").manifest.precisions


def test_the_installed_library_decides_whether_static_comes_first(bundle, monkeypatch):
    def stop(job, *more):
        raise RFError(str(job.config.formats_of("rep_decoder")))

    monkeypatch.setattr(MODULE, "record", stop)
    for version, formats in (("1.24.4", ("static", "weight-only")), ("1.25.0", ("weight-only",))):
        monkeypatch.setattr("onnxruntime.__version__", version)
        with pytest.raises(RFError) as raised:
            calibrate(bundle, PROMPTS, CONFIG)
        assert str(raised.value) == str(formats)
