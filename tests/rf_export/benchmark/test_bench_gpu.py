"""The GPU benchmark, rehearsed on the CPU: all of its logic runs here, only the calls into CUDA do not.

Each contender is held against eager before it is timed, a bad one spoils nothing, and a process that dies loses
nothing.
"""

import json
import shutil
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import gpu
import numpy as np
import pytest
import torch
from accelerator import Cpu, busy_seconds
from click.testing import CliRunner
from gpu_cell import Cell, CellOptions, _leads, use_fused_norms
from gpu_tables import format_cell

from engines import DimRange, EngineConfig, TensorRTConfig, build
from rf_export.benchmark.baseline import Baseline, Spelling
from rf_export.benchmark.compiled import Compiled
from rf_export.benchmark.contenders import draw_reference
from rf_export.benchmark.models import manifest_of
from rf_export.benchmark.workload import DrawingWork
from rf_export.checkpoint import load_checkpoint
from runtime import Pipeline
from runtime.options import GenerationOptions
from tests.emulation.machine import machine
from verification.measures.metrics import psnr_db

__all__ = ["machine"]  # a fixture

OPTIONS = CellOptions(
    dtype=torch.float32,
    attentions=("sdpa", "split"),
    compile=False,
    num_rounds=2,
    num_picture_rounds=1,
    stage_seconds=2.0,
    floor_repeats=1,
)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def workload(model):
    return DrawingWork.of(manifest_of(model), 7, GenerationOptions(num_steps=4))


@pytest.fixture(scope="module")
def drawn(model, workload):
    """Tokens, and the picture after three steps, of the independent eager loop."""
    result = draw_reference(model, workload, 3)
    return result.rep_ids.numpy(), result.pixels.numpy()


def measure(tiny_checkpoint, workload, ours, options=OPTIONS):
    saved = []
    model = load_checkpoint(tiny_checkpoint)
    cell = Cell(model, workload, options, Cpu(), lambda result: saved.append(json.dumps(result)))
    cell.run(ours)
    return cell.result, [json.loads(text) for text in saved]


@pytest.fixture(scope="module")
def measured(tiny_checkpoint, pipeline, workload):
    class Liar(Compiled):
        def denoise(self, num_steps):
            return super().denoise(num_steps) * 1.05

    class Guesser(Compiled):
        def draw_tokens(self, forced=None):
            return (super().draw_tokens(forced) + 1) % 40

    class Tired(Compiled):
        def denoise(self, num_steps):
            if num_steps == 4:
                raise RuntimeError("CUDA out of memory")
            return super().denoise(num_steps)

    def absent():
        raise ModuleNotFoundError("No module named 'tensorrt'")

    kinds = {"ort": Compiled, "liar": Liar, "guesser": Guesser, "tired": Tired}
    ours = {name: lambda kind=kind: kind(pipeline, workload) for name, kind in kinds.items()}
    return measure(tiny_checkpoint, workload, {**ours, "absent": absent})


def test_contenders_that_agree_are_timed_in_every_stage(measured):
    result, _ = measured
    for name in ("eager fp32", "CUDA graphs of eager fp32", "ort"):
        entry = result["contenders"][name]
        assert entry["status"] == "agrees"
        assert entry["agreement"]["tokens_equal"] == entry["agreement"]["tokens"] == 6
        assert entry["agreement"]["psnr_db"] > 60
        for stage in ("rep_step", "denoise_step", "picture"):
            row = entry["stages"][stage]
            assert row["median_ms"] > 0
            assert row["times_eager"]["median"] > 0
            assert row["kernel_ms"] is None, "a CPU does not tell"
    assert result["contenders"]["eager fp32"]["stages"]["rep_step"]["times_eager"]["median"] == 1
    assert set(result["trials"]["eager fp32"]["rep_step"]["ms"]) == {"sdpa", "split"}
    assert result["floor"]["rep_step"]["floor_ms"] > 0
    assert result["finished"]


@pytest.mark.parametrize("name", ["liar", "guesser"])
def test_a_contender_that_draws_something_else_is_reported_and_not_timed(measured, name):
    entry = measured[0]["contenders"][name]
    assert entry["status"] == "disagrees"
    assert not entry["agreement"]["passed"]
    assert "stages" not in entry


def test_a_contender_that_fails_spoils_nothing(measured):
    contenders = measured[0]["contenders"]
    assert contenders["absent"] == {"status": "failed", "reason": "ModuleNotFoundError: No module named 'tensorrt'"}
    stages = contenders["tired"]["stages"]
    assert "out of memory" in stages["denoise_step"]["error"]
    assert stages["rep_step"]["median_ms"] > 0
    assert contenders["ort"]["stages"]["denoise_step"]["median_ms"] > 0


def test_everything_is_handed_out_as_soon_as_it_is_known(measured):
    result, saved = measured
    assert saved[0]["contenders"] == {"eager fp32": {"status": "running"}}, "known by name before it may crash"
    assert not saved[-2]["finished"]
    assert saved[-1] == json.loads(json.dumps(result))
    assert sum("stages" in each["contenders"].get("ort", {}) for each in saved) >= 3


def test_the_table_has_every_contender_and_the_reasons(measured):
    text = "\n".join(format_cell({"model": "tiny", "size": 16, **measured[0]}))
    for part in (
        "tiny, 16 px",
        "eager fp32",
        "1.00x",
        "floor",
        "liar: disagrees",
        "6/6",
        "absent: failed; ModuleNotFoundError",
        "RuntimeError: CUDA out of memory",
    ):
        assert part in text


@pytest.mark.parametrize("attention", ["sdpa", "repeat", "split", "matmul"])
@pytest.mark.parametrize("graphs", [False, True])
def test_every_spelling_of_eager_draws_what_the_reference_draws(tiny_checkpoint, workload, drawn, attention, graphs):
    spelling = Spelling(attention=attention, graphs=graphs)
    model = use_fused_norms(load_checkpoint(tiny_checkpoint)).requires_grad_(False)
    baseline = Baseline(model, workload, spelling, Cpu().capture)
    baseline.prefill()
    assert baseline.turn_tokens() == 7  # disturbs nothing
    for forced in (None, drawn[0]):
        assert (baseline.draw_tokens(forced) == drawn[0]).all()
        assert psnr_db(baseline.denoise(3), drawn[1]) > 100
    other = (drawn[0] + 1) % 40
    assert (baseline.draw_tokens(other) != drawn[0]).any(), "what is forced decides what comes next"


def test_a_backend_draws_by_its_own_stages_on_an_emulated_gpu(tiny_bundle, tmp_path, workload, drawn, machine):
    here = machine()
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    dims = {"batch": DimRange(1, 1, 1), "prompt": DimRange(7, 7, 7)}
    engine = build(bundle, EngineConfig(backend=here.backend, num_threads=1, tensorrt=TensorRTConfig(dims=dims)))
    staged = Compiled(Pipeline.load(bundle, "fp32", here.backend, engine=engine), workload)
    staged.prefill()
    captures = len(here.gpu.log.captures)
    for _ in range(2):
        assert (staged.draw_tokens() == drawn[0]).all()
        assert psnr_db(staged.denoise(3), drawn[1]) > 100
    assert staged.turn_tokens() == 7
    assert len(here.gpu.log.captures) == captures + 2, "a turn replays the stage"
    assert (staged.draw_tokens(forced=drawn[0]) == drawn[0]).all()


def kernel(start, stop, on_gpu=True, annotation=False):
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    return types.SimpleNamespace(
        start_ns=lambda: start,
        duration_ns=lambda: stop - start,
        device_type=lambda: kind,
        is_user_annotation=lambda: annotation,
    )


def test_the_device_is_busy_while_any_kernel_runs():
    events = [
        kernel(0, 10),
        kernel(30, 40),
        kernel(5, 20),
        kernel(32, 35),
        kernel(0, 99, on_gpu=False),
        kernel(0, 99, annotation=True),
    ]
    assert busy_seconds(events) == pytest.approx(30e-9)
    assert busy_seconds([]) is None
    known = dir(torch._C._autograd._KinetoEvent)
    assert set(vars(events[0])) <= set(known), "PyTorch's events have these methods"


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch):
    monkeypatch.setattr(gpu, "find_accelerator", lambda: "PyTorch finds no NVIDIA GPU")
    result = CliRunner().invoke(gpu.main, [])
    assert result.exit_code == 1
    assert result.output == "Error: this benchmark needs an NVIDIA GPU: PyTorch finds no NVIDIA GPU\n"


def test_a_cell_is_measured_from_nothing_but_the_name_of_a_preset(tiny_checkpoint, tiny_bundle, tmp_path):
    """The whole script in this process; the export, which takes longest, is there already."""
    shutil.copytree(tiny_checkpoint, tmp_path / "tiny/checkpoint")
    shutil.copytree(tiny_bundle, tmp_path / "tiny/fp32-classic-18", ignore=shutil.ignore_patterns("engines"))
    out = str(tmp_path / "out")
    arguments = ["--cpu", "--cell", "tiny:16", "--rounds", "1", "--work", str(tmp_path), "--child", out]
    CliRunner().invoke(gpu.main, arguments, catch_exceptions=False)
    result = json.loads((tmp_path / "out").read_text())
    assert result["finished"]
    assert {name: entry["status"] for name, entry in result["contenders"].items()} == dict.fromkeys(
        ("eager fp32", "CUDA graphs of eager fp32", "ort"), "agrees"
    )
    assert result["weights"] == "random"
    assert (result["rep_tokens"], result["patches"], result["prompt_tokens"]) == (4, 16, 32)


def test_it_measures_pytorch_where_nothing_else_is_installed(tmp_path):
    """In a process of its own, in which these modules cannot be imported."""
    code = textwrap.dedent("""
        import sys
        for name in ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt", "safetensors", "tokenizers", "pycuda"):
            sys.modules[name] = None
        import gpu
        work = sys.argv[1]
        gpu.main(["--cpu", "--cell", "tiny:16", "--rounds", "1", "--work", work, "--child", work + "/out"])
    """)
    root = Path(__file__).parents[3]
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        cwd=root,
        env={"PYTHONPATH": f"{root}:{root}/benchmarks"},
    )
    result = json.loads((tmp_path / "out").read_text())
    assert result["contenders"]["eager fp32"]["stages"]["picture"]["median_ms"] > 0
    assert result["contenders"]["ort"]["status"] == "missing"
    assert "onnxruntime" in result["contenders"]["ort"]["reason"]
    assert result["weights"] == "random, of no checkpoint: safetensors is not installed"


# ---- the parent, with processes that only write what a cell would


CHILD = """
import json, os, sys, time
out = sys.argv[sys.argv.index("--child") + 1]
skipped = [sys.argv[i + 1] for i, word in enumerate(sys.argv) if word == "--skip"]
contenders = {name: {"status": "agrees"} for name in ("eager", "ort")}
def write(**more):
    with open(out + ".partial", "w") as file:
        json.dump({"num_parameters": 1, "contenders": {**contenders, **more}, "finished": "x" not in more}, file)
    os.replace(out + ".partial", out)
"""
CRASH = "if 'x' not in skipped:\n    write(x={'status': 'running'})\n    os.kill(os.getpid(), 11)\nwrite()\n"
HANG = "write(x={'status': 'running'})\ntime.sleep(60)\n"


def run_cell(code, tmp_path, deadline=None):
    cell, saves = {"model": "tiny", "size": 16}, []
    gpu.run_cell(cell, [sys.executable, "-c", CHILD + code], tmp_path, deadline, lambda: saves.append(dict(cell)))
    return cell, saves


def test_a_cell_whose_process_crashes_is_measured_without_whom_it_died_of(tmp_path):
    cell, saves = run_cell(CRASH, tmp_path)
    assert cell["finished"]
    assert cell["contenders"]["x"] == {"status": "failed", "reason": "the process ended with code -11"}
    assert cell["contenders"]["ort"] == {"status": "agrees"}
    assert len(saves) >= 2


def test_a_cell_that_always_crashes_is_given_up(tmp_path):
    cell, _ = run_cell("sys.exit(3)\n", tmp_path)
    assert cell == {"model": "tiny", "size": 16, "reason": "the process ended with code 3"}


def test_what_is_known_when_the_time_is_over_is_kept(tmp_path):
    started = time.monotonic()
    cell, saves = run_cell(HANG, tmp_path, started + 1.5)
    assert time.monotonic() - started < 20
    assert cell["contenders"]["ort"] == {"status": "agrees"}
    assert cell["contenders"]["x"]["reason"] == cell["reason"] == "cut off: the time limit was reached"
    assert saves


def test_the_script_names_every_cell_and_leaves_out_what_is_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "run_cell", lambda cell, *rest: cell.update(reason="measured") or time.sleep(0.02))
    monkeypatch.setattr(gpu.time, "monotonic", iter(range(0, 1000, 1)).__next__)
    out = tmp_path / "out.json"
    done = CliRunner().invoke(gpu.main, ["--cpu", "--time-limit", "3", "--output", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    result = json.loads(out.read_text())
    assert [f"{cell['model']}:{cell['size']}" for cell in result["cells"]] == list(gpu.CELLS)
    reasons = [cell["reason"] for cell in result["cells"]]
    assert reasons[:4] == ["measured"] * 3 + ["left out: the time limit was reached"]
    assert "left out" in done.output
    assert CliRunner().invoke(gpu.main, ["--cpu", "--cell", "tiny"]).exit_code == 2


def test_forced_tokens_that_differ_by_rounding_are_told_from_wrong_ones(workload, model):
    reference = draw_reference(model, workload, 1)
    leads = _leads(reference, workload)
    assert leads.shape == (6,)
    assert (leads > 0).all()
    logits = reference.logits[0].numpy() / workload.plan.temperature
    threshold = np.sort(logits)[-workload.plan.top_k]
    order = np.sort(np.where(logits >= threshold, logits + workload.gumbel[0], -np.inf))
    assert leads[0] == pytest.approx(order[-1] - order[-2], abs=1e-5)
