"""What a user gets wrong ends in one sentence, a non-zero exit code, and nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import cli

ROOT = Path(__file__).parent.parent


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def refused(result: Result, *words: str, code: int = 1) -> None:
    """One `Error: ...` sentence with these words, and no traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert result.stderr.count("Error:") == 1
    for word in words:
        assert word in result.stderr, result.stderr


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def test_missing_checkpoint(tmp_path: Path) -> None:
    refused(run("export", tmp_path / "nothing", "-o", tmp_path / "bundle"), "nothing", "not a folder")
    assert not (tmp_path / "bundle").exists()


def test_truncated_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    refused(run("export", checkpoint, "-o", tmp_path / "out"), "model.safetensors", "truncated")
    assert not list(tmp_path.glob("out*"))


def test_foreign_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "qwen3", "hidden_size": 8}))
    refused(run("export", checkpoint, "-o", tmp_path / "out"), "representation-forcing", "qwen3")


def test_config_of_another_shape(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["num_layers"] += 1
    (checkpoint / "config.json").write_text(json.dumps(config))
    refused(run("export", checkpoint, "-o", tmp_path / "out"), "missing", "layers.2.")


def test_pickled_weights_are_never_read(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    refused(run("export", checkpoint, "-o", tmp_path / "out"), "safetensors", "pickle")


def test_export_over_something_that_is_no_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    refused(run("export", tiny_checkpoint, "-o", tmp_path / "thesis", "--force"), "not a bundle")
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


def test_export_over_a_bundle_needs_force(tiny_checkpoint: Path, bundle: Path) -> None:
    refused(run("export", tiny_checkpoint, "-o", bundle), "--force")


def test_missing_bundle(tmp_path: Path) -> None:
    refused(run("generate", tmp_path / "nothing", "a red car"), "not a folder")


def test_a_checkpoint_is_not_a_bundle(tiny_checkpoint: Path) -> None:
    refused(run("generate", tiny_checkpoint, "a red car"), "rf-export export")


@pytest.mark.parametrize("command", ["generate", "inspect", "build-engine"])
def test_changed_weights_byte(command: str, bundle: Path, tmp_path: Path) -> None:
    weights = bundle / "graphs" / "weights" / "fp32.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    more = ["a red car", "-o", tmp_path / "picture.png"] if command == "generate" else []
    refused(run(command, bundle, *more), "fp32.bin", "sha256")
    assert not (tmp_path / "picture.png").exists()
    assert not list((bundle / "engines").glob("*"))


def test_truncated_weights(bundle: Path) -> None:
    weights = bundle / "graphs" / "weights" / "fp32.bin"
    os.truncate(weights, weights.stat().st_size - 1)
    refused(run("generate", bundle, "a red car"), "fp32.bin", "bytes")


def test_missing_graph_file(bundle: Path) -> None:
    (bundle / "graphs" / "denoiser.fp32.classic.onnx").unlink()
    refused(run("generate", bundle, "a red car"), "denoiser.fp32.classic.onnx", "missing")


def test_manifest_of_a_newer_format(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    refused(run("inspect", bundle), "99", "newer")


def test_manifest_cut_off(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text[: len(text) // 2])
    refused(run("inspect", bundle), "manifest.json", "JSON")


def test_prompt_too_long(tiny_bundle: Path) -> None:
    refused(run("generate", tiny_bundle, "red " * 500), "500 tokens")


def test_unknown_word(tiny_bundle: Path) -> None:
    refused(run("generate", tiny_bundle, "a red zebra"), "zebra")


def test_size_that_is_not_a_multiple(tiny_bundle: Path) -> None:
    refused(run("generate", tiny_bundle, "a red car", "--size", "17x24"), "multiple of 8", "17")


def test_size_that_is_no_size(tiny_bundle: Path) -> None:
    refused(run("generate", tiny_bundle, "a red car", "--size", "big"), "HxW", code=2)


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [("--steps", "0", "num_steps"), ("--temperature", "-1", "temperature"), ("--top-k", "0", "top_k"),
     ("--top-k", "99", "top_k"), ("--pix-guidance", "nan", "pix_guidance_scale")],
)  # fmt: skip
def test_option_out_of_range(tiny_bundle: Path, option: str, value: str, word: str) -> None:
    refused(run("generate", tiny_bundle, "a red car", option, value), word)


def test_unknown_option(tiny_bundle: Path) -> None:
    refused(run("generate", tiny_bundle, "a red car", "--stepz", "3"), "--stepz", code=2)


def test_unknown_backend(tiny_bundle: Path) -> None:
    refused(run("build-engine", tiny_bundle, "--backend", "abacus"), "abacus", "ort")


def test_precision_that_the_bundle_lacks(tiny_bundle: Path) -> None:
    refused(run("generate", tiny_bundle, "a red car", "--precision", "int8"), "int8")


def test_output_in_a_folder_that_is_not_there(tiny_bundle: Path, tmp_path: Path) -> None:
    refused(run("generate", tiny_bundle, "a red car", "-o", tmp_path / "no" / "a.png"), "not a folder", code=2)


def test_train_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused(run("train", tmp_path), "not empty")


def test_train_refuses_an_unknown_style(tmp_path: Path) -> None:
    refused(run("train", tmp_path / "run", "--style", "cubism"), "cubism", code=2)


def test_missing_library_names_the_extra(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In an environment without torch, `export` says which extra to install."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.path.insert(0, sys.argv[1]); import cli; "
        "cli.main(['export', sys.argv[2], '-o', sys.argv[3]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(tiny_checkpoint), str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'rf-export[export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_eval_refuses_a_model_of_other_pictures(tiny_checkpoint: Path) -> None:
    refused(run("eval", tiny_checkpoint, "--num-prompts", "1"), "cannot be scored", "48")


def test_eval_refuses_more_prompts_than_there_are(tiny_checkpoint: Path) -> None:
    refused(run("eval", tiny_checkpoint, "--num-prompts", "999999"), "different captions", "--num-prompts")


def test_eval_refuses_a_folder_that_is_neither(tmp_path: Path) -> None:
    refused(run("eval", tmp_path, "--num-prompts", "1"), "config.json")


def test_bench_refuses_a_missing_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    refused(run("bench", tiny_bundle, "--checkpoint", tmp_path / "none"), "is not a folder")
