"""What a user gets wrong ends in one sentence, a non-zero exit code, and nothing half-written."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import invoke, refused

import runtime.bundle.verdict
from runtime import Pipeline
from runtime.commands.understand import split_question
from runtime.errors import RFError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def test_missing_checkpoint(tmp_path: Path) -> None:
    refused(invoke("export", tmp_path / "nothing", "-o", tmp_path / "bundle"), "nothing", "not a folder")
    assert not (tmp_path / "bundle").exists()


def test_truncated_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    refused(invoke("export", checkpoint, "-o", tmp_path / "out"), "model.safetensors", "truncated")
    assert not list(tmp_path.glob("out*"))


def test_foreign_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "qwen3", "hidden_size": 8}))
    refused(invoke("export", checkpoint, "-o", tmp_path / "out"), "representation-forcing", "qwen3")


def test_config_of_another_shape(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["num_layers"] += 1
    (checkpoint / "config.json").write_text(json.dumps(config))
    refused(invoke("export", checkpoint, "-o", tmp_path / "out"), "missing", "layers.2.")


def test_pickled_weights_are_never_read(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    refused(invoke("export", checkpoint, "-o", tmp_path / "out"), "safetensors", "pickle")


def test_export_over_something_that_is_no_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    refused(invoke("export", tiny_checkpoint, "-o", tmp_path / "thesis", "--force"), "not a bundle")
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


def test_export_over_a_bundle_needs_force(tiny_checkpoint: Path, bundle: Path) -> None:
    refused(invoke("export", tiny_checkpoint, "-o", bundle), "--force")


def test_missing_bundle(tmp_path: Path) -> None:
    refused(invoke("generate", tmp_path / "nothing", "a red car"), "not a folder")


def test_a_checkpoint_is_not_a_bundle(tiny_checkpoint: Path) -> None:
    refused(invoke("generate", tiny_checkpoint, "a red car"), "rf-export export")


@pytest.mark.parametrize("command", ["generate", "inspect", "build-engine"])
def test_changed_weights_byte(command: str, bundle: Path, tmp_path: Path) -> None:
    weights = bundle / "graphs" / "weights" / "fp32.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    more = ["a red car", "-o", tmp_path / "picture.png"] if command == "generate" else []
    refused(invoke(command, bundle, *more), "fp32.bin", "sha256")
    assert not (tmp_path / "picture.png").exists()
    assert not list((bundle / "engines").glob("*"))


def test_truncated_weights(bundle: Path) -> None:
    weights = bundle / "graphs" / "weights" / "fp32.bin"
    os.truncate(weights, weights.stat().st_size - 1)
    refused(invoke("generate", bundle, "a red car"), "fp32.bin", "bytes")


def test_missing_graph_file(bundle: Path) -> None:
    (bundle / "graphs" / "denoiser.fp32.classic.onnx").unlink()
    refused(invoke("generate", bundle, "a red car"), "denoiser.fp32.classic.onnx", "missing")


def test_manifest_of_a_newer_format(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    refused(invoke("inspect", bundle), "99", "newer")


def test_manifest_cut_off(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text[: len(text) // 2])
    refused(invoke("inspect", bundle), "manifest.json", "JSON")


def test_prompt_too_long(tiny_bundle: Path) -> None:
    refused(invoke("generate", tiny_bundle, "red " * 500), "500 tokens")


def test_unknown_word(tiny_bundle: Path) -> None:
    refused(invoke("generate", tiny_bundle, "a red zebra"), "zebra")


def test_size_that_is_not_a_multiple(tiny_bundle: Path) -> None:
    refused(invoke("generate", tiny_bundle, "a red car", "--size", "17x24"), "multiple of 8", "17", code=2)


def test_size_that_is_no_size(tiny_bundle: Path) -> None:
    refused(invoke("generate", tiny_bundle, "a red car", "--size", "big"), "HxW", code=2)


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("--steps", "0", "num_steps"),
        ("--steps", "1001", "num_steps"),
        ("--temperature", "-1", " temperature"),
        ("--temperature", "nan", " temperature"),
        ("--top-k", "0", "top_k"),
        ("--top-k", "99", "top_k"),
        ("--rep-guidance", "1e4", "rep_guidance_scale"),
        ("--pix-guidance", "nan", "pix_guidance_scale"),
        ("--seed", "-1", " seed"),
        ("--seed", str(2**64), " seed"),
        ("--batch-size", "0", "batch_size"),
        ("--threads", "0", "num_threads"),
    ],
)
def test_an_option_out_of_range_is_told_by_its_name(tiny_bundle: Path, option: str, value: str, name: str) -> None:
    result = invoke("generate", tiny_bundle, "a red car", option, value)
    refused(result, option, value if value != "1e4" else "10000", code=2)
    assert name not in result.stderr  # of the parameter in Python


def test_unknown_option(tiny_bundle: Path) -> None:
    refused(invoke("generate", tiny_bundle, "a red car", "--stepz", "3"), "--stepz", code=2)


def test_unknown_backend(tiny_bundle: Path) -> None:
    refused(invoke("build-engine", tiny_bundle, "--backend", "abacus"), "abacus", "ort", code=2)


def test_precision_that_the_bundle_lacks(tiny_bundle: Path) -> None:
    refused(invoke("generate", tiny_bundle, "a red car", "--precision", "int8"), "int8")


def test_output_in_a_folder_that_is_not_there(tiny_bundle: Path, tmp_path: Path) -> None:
    refused(invoke("generate", tiny_bundle, "a red car", "-o", tmp_path / "no" / "a.png"), "not a folder", code=2)


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("it was loaded"))


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("option", ["-o", "--preview"])
def test_a_pipe_or_a_device_is_not_replaced_by_a_picture(tiny_bundle: Path, tmp_path: Path, option: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    result = invoke("generate", tiny_bundle, "a red car", option, tmp_path / "pipe")
    refused(result, "pipe is not a regular file", code=2)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    "options",
    [["-o", "{0}/same.png", "--preview", "{0}/deep/../same.png"], ["-o", "{0}/001.png", "--each", "{0}"]],
    ids=["preview", "each"],
)
def test_two_outputs_of_one_path_are_refused(tiny_bundle: Path, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "deep").mkdir()
    result = invoke("generate", tiny_bundle, "a red car", "a cup", *(option.format(tmp_path) for option in options))
    refused(result, "is named for two outputs", code=2)


@pytest.mark.parametrize("size", ["garbage", "48x48"])
def test_inspect_refuses_a_size_without_memory(tiny_bundle: Path, size: str) -> None:
    refused(invoke("inspect", tiny_bundle, "--size", size), "--size", code=2)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "{bundle}", "a red car", "-o", "{long}.png"],
        ["generate", "{bundle}", "a red car", "--each", "{long}"],
        ["generate", "{bundle}", "a red car", "--each", "{long}/sub"],
        ["inspect", "{long}"],
        ["train", "{file}"],
        ["train", "{file}/x"],
    ],
    ids=" ".join,
)
def test_a_path_that_cannot_be_is_told_before_the_work(tiny_bundle: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").touch()
    places = {"bundle": tiny_bundle, "long": tmp_path / ("x" * 300), "file": tmp_path / "file"}
    result = invoke(*(argument.format(**places) for argument in command))
    refused(result, code=result.exit_code)
    assert result.exit_code in (1, 2)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("place", ["file/sub", "file/sub/deeper", "link", "link/sub"])
def test_a_folder_of_pictures_below_a_file_is_refused_before_anything_is_drawn(
    tiny_bundle: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    refused(invoke("generate", tiny_bundle, "a red car", "--each", tmp_path / place), "is a file", code=2)


@pytest.mark.parametrize(
    ("locked", "folder", "is_refused"),
    [(".", "there", False), ("there", "new", False), ("there", "there", True), ("there", "there/new/deep", True)],
)
def test_only_the_folder_that_pictures_go_into_has_to_be_writable(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str, folder: str, is_refused: bool
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK or Path(path) != tmp_path / locked)
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: (_ for _ in ()).throw(RFError("it was loaded")))
    result = invoke("generate", tiny_bundle, "a red car", "-o", tmp_path / "out" / "p.png", "--each", tmp_path / folder)
    words = ["nothing can be written into", "--each"] if is_refused else ["it was loaded"]
    refused(result, *words, code=2 if is_refused else 1)


def test_a_picture_whose_name_is_too_long_is_told(tiny_bundle: Path) -> None:
    refused(invoke("understand", tiny_bundle, "x" * 300 + ".png"), "x.png", "File name too long")


def test_a_question_may_be_longer_than_a_name_of_a_file() -> None:
    question = "how many fish, " * 30 + "are there?"
    assert split_question(("car.png", question), None) == (["car.png"], question)


def test_a_bundle_that_a_killed_command_left_under_another_name_is_named(bundle: Path) -> None:
    left = bundle.rename(bundle.with_name("bundle.replaced-4000000"))
    result = invoke("generate", bundle, "a red car")
    refused(result, "is not a folder", "was killed", f"left it whole as {left}. Rename that to {bundle}.")
    refused(invoke("verify", bundle, "--precision", "int8", "--no-record"), "was killed")
    refused(invoke("verify", bundle, "--precision", "int8"), "nothing of that kind")
    assert bundle.is_dir() and not left.exists()


def test_verify_tells_before_the_work_that_nothing_can_be_recorded(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK or Path(path) != bundle)
    with monkeypatch.context() as patch:
        module = importlib.import_module("verification.verify")  # the package has a function of that name
        patch.setattr(module, "verify_pipeline", lambda *_: pytest.fail("it was verified"))
        refused(invoke("verify", bundle, "--quick"), "Nothing can be written into", "--no-record")
    assert invoke("verify", bundle, "--quick", "--no-record").exit_code == 0


def test_verdicts_that_cannot_be_recorded_are_printed_and_reported(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RFError("manifest.json was not written: no space")

    monkeypatch.setattr(runtime.bundle.verdict, "write_text", fail)
    result = invoke("verify", bundle, "--quick", "--report", tmp_path / "report.html", "--json")
    refused(result, "were not recorded", "no space")
    assert [each["verdict"] for each in json.loads(result.stdout)] == ["passed"]
    assert "graphs fp16 classic" in (tmp_path / "report.html").read_text()


def test_train_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused(invoke("train", tmp_path), "not empty")


def test_train_refuses_an_unknown_style(tmp_path: Path) -> None:
    refused(invoke("train", tmp_path / "run", "--style", "cubism"), "cubism", code=2)


def test_missing_library_names_the_extra(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In an environment without torch, `export` says which extra to install."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, sys.argv[1]); import cli; "
        "cli.main(['export', sys.argv[2], '-o', sys.argv[3]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(tiny_checkpoint), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'rf-export[export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_eval_refuses_a_model_of_other_pictures(tiny_checkpoint: Path) -> None:
    refused(invoke("eval", tiny_checkpoint, "--num-prompts", "1"), "cannot be scored", "48")


def test_eval_refuses_more_prompts_than_there_are(tiny_checkpoint: Path) -> None:
    refused(invoke("eval", tiny_checkpoint, "--num-prompts", "999999"), "different captions", "--num-prompts")


def test_eval_refuses_a_folder_that_is_neither(tmp_path: Path) -> None:
    refused(invoke("eval", tmp_path, "--num-prompts", "1"), "config.json")


def test_bench_refuses_a_missing_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    refused(invoke("bench", tiny_bundle, "--checkpoint", tmp_path / "none"), "is not a folder")
