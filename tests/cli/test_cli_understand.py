"""`understand` and `generate --then-understand` as users call them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import invoke, refused, run

from runtime import AnswerOptions, Pipeline
from runtime.understanding.caption_match import agreement, format_agreements

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    return paths


def test_one_answer_about_all_images(tiny_bundle: Path, pipeline: Pipeline, images: list[Path]) -> None:
    expected = pipeline.understand(*images, question="a red car")
    assert run("understand", tiny_bundle, *images, "a red car") == f"{expected}\n"
    assert run("understand", tiny_bundle, *images, "-q", "a red car") == f"{expected}\n"
    assert run("understand", tiny_bundle, *images) == f"{pipeline.understand(*images)}\n"


def test_an_answer_for_each_image(tiny_bundle: Path, pipeline: Pipeline, images: list[Path]) -> None:
    lines = run("understand", tiny_bundle, *images, "--each").splitlines()
    assert lines == [f"{image}: {pipeline.understand(image)}" for image in images]


def test_json_has_the_answer_its_options_and_times(tiny_bundle: Path, pipeline: Pipeline, images: list[Path]) -> None:
    options = ("--temperature", "1", "--top-k", "9", "--top-p", "0.9", "--repetition-penalty", "1.2", "--seed", "5")
    told = json.loads(run("understand", tiny_bundle, *images, "--each", "--json", "--max-tokens", "4", *options))
    chosen = AnswerOptions(max_tokens=4, temperature=1, top_k=9, top_p=0.9, repetition_penalty=1.2)
    for number, (image, row) in enumerate(zip(images, told["answers"], strict=True)):
        assert row["images"] == [str(image)]
        assert row["seed"] == 5 + number
        assert row["answer"] == pipeline.understand(image, seed=5 + number, options=chosen)
        assert 0 < row["seconds_to_first_token"] <= row["seconds"] < 600
    assert {name: told[name] for name in vars(chosen)} == vars(chosen)


def test_images_may_be_read_at_another_size(tiny_bundle: Path, images: list[Path]) -> None:
    run("understand", tiny_bundle, images[0], "--size", "32x32")
    for size in ("9x9", "0x0"):
        refused(
            invoke("understand", tiny_bundle, images[0], "--size", size),
            "--size",
            "height must be a multiple of 8",
            code=2,
        )


def test_an_engine_answers_what_the_graphs_answer(tiny_bundle: Path, images: list[Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    run("build-engine", bundle)
    both = [run("understand", bundle, images[0], "--engine", engine) for engine in ("auto", "none")]
    assert both[0] == both[1]


def test_what_cannot_be_answered_is_one_sentence(tiny_bundle: Path, images: list[Path], tmp_path: Path) -> None:
    refused(invoke("understand", tiny_bundle, tmp_path / "none.png"), "none.png does not exist")
    (tmp_path / "text.png").write_text("words")
    refused(invoke("understand", tiny_bundle, tmp_path / "text.png"), "no picture of a known kind")
    refused(invoke("understand", tiny_bundle, "how many?"), "at least one IMAGE", code=2)
    refused(invoke("understand", tiny_bundle, images[0], "a zebra"), "does not know 'zebra'")
    refused(invoke("understand", tiny_bundle, images[0], "--top-p", "2"), "--top-p", "0<x<=1", code=2)
    refused(invoke("understand", tiny_bundle, images[0], "--max-tokens", "500"), "the model has 128 positions")


def test_a_bundle_that_only_draws_refuses_to_answer(tiny_bundle: Path, images: list[Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    content = json.loads((bundle / "manifest.json").read_text())
    del content["understanding"], content["checksum"]
    (bundle / "manifest.json").write_text(json.dumps(content))
    refused(invoke("understand", bundle, images[0]), "answers no questions", "understanding", "export it again")
    out = tmp_path / "out.png"
    refused(invoke("generate", bundle, "a red car", "--then-understand", "-o", out), "answers no questions")
    assert not out.exists()
    run("generate", bundle, "a red car", "-o", out, "--steps", "1")


def test_what_was_drawn_is_understood(tiny_bundle: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    prompts, common = ("a red car", "a cup"), ("--then-understand", "--steps", "2", "--each", tmp_path)
    out = tmp_path / "sheet.png"
    told = json.loads(run("generate", tiny_bundle, *prompts, "-o", out, "--json", *common))
    for number, (prompt, row) in enumerate(zip(prompts, told["pictures"], strict=True)):
        caption = pipeline.understand(tmp_path / f"{number:03}.png")
        assert row["understood"] == agreement(prompt, caption).to_dict()
    *_, first, second, total = run("generate", tiny_bundle, *prompts, "-o", out, *common).splitlines()
    assert first.startswith("'a red car' is seen as ")
    assert second.startswith("'a cup' is seen as ")
    assert total.startswith("agreement: 0 of 2 the same")


def test_understanding_needs_no_torch(tiny_bundle: Path, images: list[Path]) -> None:
    code = (
        "import sys\n"
        "blocked = 'torch', 'onnx', 'onnxscript', 'onnx_ir', 'safetensors', 'matplotlib'\n"
        "for name in blocked: sys.modules[name] = None\n"
        "sys.path.insert(0, sys.argv[1]); import cli\n"
        "cli.main(['understand', sys.argv[2], sys.argv[3]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(tiny_bundle), str(images[0])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("prompt", "caption", "is_exact", "score"),
    [
        ("a red car", "a red car", True, 1),
        ("A red car.", "a red car", True, 1),
        ("a red car", "car a red", False, 1),
        ("a red car", "a blue car", False, 2 / 3),
        ("a red car", "", False, 0),
        ("", "", True, 1),
        ("two fish", "two fish and two cups", False, 4 / 7),
    ],
)
def test_agreement_is_of_words(prompt: str, caption: str, is_exact: bool, score: float) -> None:
    found = agreement(prompt, caption)
    assert (found.is_exact, found.score) == (is_exact, pytest.approx(score))


def test_one_picture_has_no_sum() -> None:
    assert format_agreements([agreement("a cup", "a cup")]) == ["'a cup' is seen as 'a cup': the same"]
