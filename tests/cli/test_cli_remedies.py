"""What a message advises is what helps: the right command, option, extra and file."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import invoke, refused, run
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parents[2]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 132\n"


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_pointer_of_git_lfs_is_fetched(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (checkpoint / name).write_text(POINTER)
    result = invoke("export", checkpoint, "-o", tmp_path / "out")
    refused(result, str(checkpoint / name), "git lfs pull")
    assert "partial" not in result.stderr and "bundle again" not in result.stderr


@pytest.mark.parametrize("content", ["{}", "not json", '{"model": 7}'])
def test_a_wrong_tokenizer_is_told_by_its_own_path(checkpoint: Path, tmp_path: Path, content: str) -> None:
    (checkpoint / "tokenizer.json").write_text(content)
    result = invoke("export", checkpoint, "-o", tmp_path / "out")
    refused(result, str(checkpoint / "tokenizer.json"), "Add the model's own")
    assert "partial" not in result.stderr and "xport the bundle" not in result.stderr


@pytest.mark.parametrize(
    ("value", "dtype", "precisions", "advice"),
    [
        (np.nan, np.float32, ["fp32"], "the checkpoint is broken"),
        (np.inf, np.float32, ["fp16"], "the checkpoint is broken"),
        (-np.inf, np.float16, ["fp32", "fp16"], "the checkpoint is broken"),
        (1e5, np.float32, ["fp16"], "--precision fp32"),
        (-7e4, np.float32, ["fp16"], "--precision fp32"),
    ],
)
def test_weights_that_are_not_finite_are_told_from_those_too_large_for_a_precision(
    checkpoint: Path, tmp_path: Path, value: float, dtype: type, precisions: list[str], advice: str
) -> None:
    weights = {name: array.astype(dtype) for name, array in load_file(checkpoint / "model.safetensors").items()}
    name = sorted(weights)[3]
    weights[name].reshape(-1)[0] = value
    save_file(weights, checkpoint / "model.safetensors")
    options = [word for precision in precisions for word in ("--precision", precision)]
    result = invoke("export", checkpoint, "-o", tmp_path / "out", *options)
    refused(result, name, advice)
    assert ("--precision" in result.stderr) == (advice == "--precision fp32")


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("torch", ["export", "{checkpoint}", "-o", "{out}"], "export"),
        ("onnx_ir", ["export", "{checkpoint}", "-o", "{out}"], "export"),
        ("onnx", ["export", "{checkpoint}", "-o", "{out}"], "export"),
        ("onnx_ir", ["calibrate", "{bundle}", "--prompts", "{prompts}"], "quantize"),
        ("torch", ["eval", "{checkpoint}", "--num-prompts", "1"], "export"),
    ],
)
def test_a_missing_library_names_the_extra_that_brings_what_the_command_needs(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, missing: str, arguments: list[str], extra: str
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red car {'and a red car ' * i}" for i in range(16)))
    places = {"checkpoint": tiny_checkpoint, "bundle": tiny_bundle, "out": tmp_path / "out"}
    words = [word.format(**places, prompts=tmp_path / "prompts.txt") for word in arguments]
    code = "import sys; sys.modules[sys.argv[1]] = None; sys.path.insert(0, sys.argv[2]); import cli; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}cli.main(sys.argv[3:])", missing, str(ROOT), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert f"pip install 'rf-export[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def read_only(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle into which nothing can be written, also for root."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    allowed = os.access
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: not (mode & os.W_OK and Path(path).is_relative_to(bundle)) and allowed(path, mode),
    )
    return bundle


def test_an_engine_of_a_read_only_bundle_gets_a_folder_of_its_own(read_only: Path, tmp_path: Path) -> None:
    before = sorted(read_only.rglob("*"))
    refused(invoke("build-engine", read_only), "--output DIR", "--engine DIR", str(read_only))
    engine = tmp_path / "engines" / "mine"
    told = json.loads(run("build-engine", read_only, "--output", engine, "--json"))
    assert told["path"] == str(engine) and told["is_new"]
    assert sorted(read_only.rglob("*")) == before
    for name, chosen in (("engine", engine), ("graphs", "none")):
        run("generate", read_only, "a red car", "-o", tmp_path / f"{name}.png", "--engine", chosen)
    drawn = [np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("engine", "graphs")]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1


def test_what_is_up_to_date_is_not_told_as_built(tiny_bundle: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    assert re.search(r"built in [\d.]+ s", run("build-engine", tiny_bundle, "--output", engine))
    again = run("build-engine", tiny_bundle, "--output", engine)
    assert "up to date: nothing was built" in again and "built in" not in again
    assert json.loads(run("build-engine", tiny_bundle, "--output", engine, "--json"))["is_new"] is False
    assert "built in" in run("build-engine", tiny_bundle, "--output", engine, "--force")


def test_an_engine_replaces_nothing_but_an_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    refused(invoke("build-engine", tiny_bundle, "--output", tmp_path), "not a engine")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--workspace-mib", "5"], "--workspace-mib"),
        (["--weights", "stripped"], "--weights"),
        (["--version-compatible", "--weight-streaming"], "--version-compatible, --weight-streaming"),
        (["--dim", "batch=1:2:4"], "--dim"),
        (["--compute-capability", "8.9"], "--compute-capability"),
        (["--dim", "depth=1"], "there is no dimension 'depth'"),
        (["--dim", "batch=3:2:1"], "min <= opt <= max"),
        (["--backend", "ort-cuda"], "nothing to build"),
    ],
)
def test_an_option_of_another_backend_is_a_wrong_option(tiny_bundle: Path, options: list[str], named: str) -> None:
    result = invoke("build-engine", tiny_bundle, *options)
    refused(result, named, code=2)
    assert not re.search(r"workspace_mib|version_compatible|weight_streaming|compute_cap\w+_|\bdims\b", result.stderr)


@pytest.mark.parametrize("backend", ["ort-cuda", "tensorrt", "tensorrt-rtx"])
def test_a_missing_gpu_is_told_in_the_words_of_the_backend(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("runtime.backends.cuda.driver.probe_gpu", lambda: "no driver")
    result = invoke("generate", tiny_bundle, "a red car", "--backend", backend)
    refused(result, "No GPU can be used: no driver", "--backend ort")
    assert "TensorRT" not in result.stderr


@pytest.mark.parametrize(
    ("command", "options", "named"),
    [
        ("calibrate", ["--percentile", "7"], "--percentile"),
        ("calibrate", ["--block", "17"], "--block must be 0 or a power of two"),
        ("calibrate", ["--min-cosine", "1"], "--min-cosine"),
        ("export", ["--opset", "19"], "--opset"),
        ("export", ["--cache-slots", "20"], "--cache-slots is of modern graphs"),
        ("export", ["--target", "tensorrt-5"], "tensorrt-5"),
        ("verify", ["--backend", "abacus"], "--backend"),
        ("train", ["--style", "cubism"], "--style"),
        ("train", ["--preset", "huge"], "huge"),
    ],
)
def test_wrong_options_end_with_2(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, command: str, options: list[str], named: str
) -> None:
    (tmp_path / "prompts.txt").write_text("a red car\n")
    first = {"export": tiny_checkpoint, "train": tmp_path / "run"}.get(command, tiny_bundle)
    needed = {"calibrate": ["--prompts", tmp_path / "prompts.txt"], "export": ["-o", tmp_path / "out"]}
    refused(invoke(command, first, *needed.get(command, []), *options), named, code=2)
