"""The commands do what their help says, in an environment as users have it."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image
from running import run

import cli
from runtime.commands.generate import is_shown
from runtime.commands.inspection import _engine_text, format_vocabulary
from runtime.pictures.png import read_parameters

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "numpy", "PIL", "rich", "tokenizers")


def subprocess_python(code: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import cli\n"
        "try: cli.main(['--help'])\n"
        f"except SystemExit: print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert "HEAVY []" in subprocess_python(code)


def test_help_is_quick() -> None:
    """Bounded loosely here, since test machines are busy; an idle one takes 0.1 s."""
    started = time.process_time()
    run("--help")
    assert time.process_time() - started < 0.3


def test_every_command_has_help_with_an_example() -> None:
    for name, command in cli.main.commands.items():
        assert f"rf-export {name}" in (command.help or ""), name


def test_generate_draws_a_picture_that_remembers_its_parameters(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "car.png"
    assert run("generate", tiny_bundle, "a red car", "-o", out, "--seed", "3", "--steps", "4").split() == [str(out)]
    parameters = read_parameters(out)
    assert parameters["prompt"] == "a red car"
    assert parameters["seed"] == 3
    assert parameters["num_steps"] == 4
    with Image.open(out) as picture:
        assert picture.size == (24, 16)


def test_the_same_seed_gives_the_same_picture_alone_and_in_a_batch(tiny_bundle: Path, tmp_path: Path) -> None:
    both = ("a red car", "two blue fish")
    run("generate", tiny_bundle, *both, "-o", tmp_path / "s.png", "--each", tmp_path, "--seed", "5")
    run("generate", tiny_bundle, "two blue fish", "-o", tmp_path / "alone.png", "--seed", "6")
    together = np.asarray(Image.open(tmp_path / "001.png")).astype(int)
    alone = np.asarray(Image.open(tmp_path / "alone.png")).astype(int)
    assert np.abs(together - alone).max() <= 1


def test_generate_json_and_previews(tiny_bundle: Path, tmp_path: Path) -> None:
    out = run(
        "generate",
        tiny_bundle,
        "a red car",
        "a cup",
        "-o",
        tmp_path / "sheet.png",
        "--preview",
        tmp_path / "steps.png",
        "--json",
        "--steps",
        "3",
    )
    printed = json.loads(out)
    assert [row["seed"] for row in printed["pictures"]] == [0, 1]
    assert all(len(row["rep_ids"]) == 6 for row in printed["pictures"])
    assert all(Path(name).is_file() for name in printed["files"])
    assert len(printed["files"]) == 2


def test_only_the_steps_of_a_preview_are_kept() -> None:
    for num_steps, shown in ((3, [0, 1, 2]), (8, list(range(8))), (25, [0, 4, 7, 10, 13, 16, 19, 24])):
        assert [step for step in range(num_steps) if is_shown(step, num_steps)] == shown


def test_generate_works_without_torch(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "blocked = 'torch', 'onnx', 'onnxscript', 'onnx_ir', 'safetensors', 'matplotlib'\n"
        "for name in blocked: sys.modules[name] = None\n"
        "sys.path.insert(0, sys.argv[1]); import cli\n"
        "cli.main(['generate', sys.argv[2], 'a red car', '-o', sys.argv[3], '--steps', '2'])"
    )
    subprocess_python(code, tiny_bundle, tmp_path / "p.png")
    assert (tmp_path / "p.png").is_file()


def test_build_engine_then_generate_gives_the_same_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    run("generate", bundle, "a red car", "-o", tmp_path / "onnx.png", "--engine", "none")
    run("build-engine", bundle, "--backend", "ort")
    run("generate", bundle, "a red car", "-o", tmp_path / "engine.png")
    onnx, engine = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("onnx", "engine"))
    assert np.abs(onnx - engine).max() <= 1
    listed = json.loads(run("inspect", bundle, "--json"))["engines"]
    assert [engine["precision"] for engine in listed] == ["fp32"]


def test_inspect_shows_graphs_sizes_and_what_verified_it(tiny_bundle: Path) -> None:
    text = run("inspect", tiny_bundle, "--verify")
    for word in ("text_decoder", "rep_decoder", "denoiser", "weights/fp16.bin", "PSNR of pictures", "sha256 of all"):
        assert word in text
    rest = [
        line for line in text.splitlines()[1:] if not re.search(r"^  (in|out) |MiB|_decoder|_encoder|_export", line)
    ]
    assert not re.search(r"[{}\[\]_]", "\n".join(rest))  # no values and names of Python
    described = json.loads(run("inspect", tiny_bundle, "--json"))
    assert described["verified"]["fp32"]["verdict"] == "passed"
    assert {graph["precision"] for graph in described["graphs"]} == {"fp32", "fp16"}


def test_eval_scores_the_reference_checkpoint_and_writes_a_sheet(tmp_path: Path) -> None:
    checkpoint = ROOT / "examples" / "reference" / "checkpoint"
    text = run("eval", checkpoint, "--num-prompts", "4", "--sheet", tmp_path / "sheet.png", "--json")
    result = json.loads(text)
    assert result["score"]["overall"]["n"] == 4
    assert result["score"]["overall"]["value"] >= 0.5  # 81% of 200: at least 2 of these 4, from fixed seeds
    assert result["score"]["checker"]["accepted"]["overall"]["value"] > 0.99
    assert read_parameters(tmp_path / "sheet.png")["prompts"]


def test_inspect_tells_the_vocabulary(tiny_bundle: Path) -> None:
    told = json.loads(run("inspect", tiny_bundle, "--vocabulary", "--json"))
    assert {"red", "car", "fish"} <= set(told["words"]) and told["pieces"] == []
    assert told["control"] == ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
    text = run("inspect", tiny_bundle, "--vocabulary")
    assert set(told["words"]) <= set(text.split()) and text.startswith(f"{len(told['words'])} words, 0 pieces")


def test_of_a_large_vocabulary_the_first_words_are_told() -> None:
    words = [f"word{i}" for i in range(501)]
    text = format_vocabulary({"words": words, "pieces": ["s", "\n"], "control": ["<s>"]})
    assert "word499" in text and "word500" not in text and "... and 1 more; all of them with --json" in text
    assert "control: <s>" in text and "made of pieces" in text


def test_a_blank_prompt_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    def note(*prompts: str) -> str:
        words = ["generate", tiny_bundle, *prompts, "--steps", 1, "-o", tmp_path / "a.png"]
        return CliRunner().invoke(cli.main, list(map(str, words)), catch_exceptions=False).stderr

    assert "note: the prompt is blank, so the model draws whatever it likes" in note(" ")
    assert "note: prompt 1, 3 of 3 is blank" in note("", "a car", "\t")
    assert "blank" not in note("a car")


def test_a_broken_engine_is_told_by_its_path() -> None:
    assert _engine_text({"path": "engines/x", "error": "cut off"}) == "engines/x: cut off"
