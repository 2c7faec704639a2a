"""`tokens` shows a picture's tokens, and `generate` draws from given and edited ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import invoke, refused, run

from runtime.pictures.png import read_parameters


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.fixture
def car(tiny_bundle: Path, tmp_path: Path) -> Path:
    run("generate", tiny_bundle, "a red car", "--seed", "3", "-o", tmp_path / "car.png")
    return tmp_path / "car.png"


def test_a_picture_is_drawn_again_from_its_own_tokens(tiny_bundle: Path, car: Path, tmp_path: Path) -> None:
    run("generate", tiny_bundle, "a red car", "--rep-tokens", car, "-o", tmp_path / "again.png")  # its seed too
    assert np.abs(pixels(tmp_path / "again.png") - pixels(car)).max() <= 1
    assert read_parameters(tmp_path / "again.png")["tokens"] == read_parameters(car)["tokens"]


def test_an_edited_picture_remembers_its_tokens(tiny_bundle: Path, car: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "edited.png", tmp_path / "again.png"
    run("generate", tiny_bundle, "a red car", "--seed", "3", "--edit", "0,:=9", "--edit", "1,0=redraw:5", "-o", out)
    parameters = read_parameters(out)
    assert parameters["edits"] == ["0,:=9", "1,0=redraw:5"]
    assert parameters["tokens"]["rep_ids"][0] == [9, 9, 9]
    assert parameters["tokens"]["rep_ids"][1][1:] == read_parameters(car)["tokens"]["rep_ids"][1][1:]
    assert np.abs(pixels(out) - pixels(car)).max() > 1
    run("generate", tiny_bundle, "a red car", "--rep-tokens", out, "-o", again)
    assert np.abs(pixels(out) - pixels(again)).max() <= 1


def test_printed_tokens_are_taken_by_generate(tiny_bundle: Path, car: Path, tmp_path: Path) -> None:
    out = run("tokens", tiny_bundle, "a red car", "--seed", "3", "-o", tmp_path / "tokens.png", "--json")
    (tmp_path / "grid.json").write_text(out)
    assert json.loads(out) == read_parameters(car)["tokens"] == read_parameters(tmp_path / "tokens.png")["tokens"]
    run("generate", tiny_bundle, "a red car", "--rep-tokens", tmp_path / "grid.json", "-o", tmp_path / "again.png")
    assert np.abs(pixels(tmp_path / "again.png") - pixels(car)).max() <= 1


def test_tokens_shows_several_pictures_and_what_training_had_for_their_codes(
    tiny_bundle: Path, tiny_checkpoint: Path, car: Path, tmp_path: Path
) -> None:
    foreign, out = tmp_path / "photo.jpg", tmp_path / "tokens.png"
    Image.new("RGB", (40, 30), "red").save(foreign)
    plain = ("tokens", tiny_bundle, car, "-o", out)
    run(*plain)
    small = pixels(out).shape
    grids = json.loads(run(*plain, foreign, "--checkpoint", tiny_checkpoint, "--scenes", "60", "--json"))
    assert pixels(out).shape > small
    assert grids[0] == read_parameters(car)["tokens"]  # stored, not encoded
    assert grids[1]["prompt"] == ""
    assert np.array(grids[1]["rep_ids"]).shape == (2, 3)
    assert [row["tokens"] for row in read_parameters(out)["pictures"]] == grids


def test_tokens_of_no_text_are_drawn_as_generate_draws_them(tiny_bundle: Path, tmp_path: Path) -> None:
    run("generate", tiny_bundle, "", "-o", tmp_path / "nothing.png")
    run("tokens", tiny_bundle, "", "-o", tmp_path / "tokens.png")
    assert read_parameters(tmp_path / "tokens.png")["tokens"] == read_parameters(tmp_path / "nothing.png")["tokens"]


def test_tokens_refuses_in_a_sentence(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG and nothing")
    out = ("-o", tmp_path / "out.png")
    refused(invoke("tokens", tiny_bundle, tmp_path / "photo.png", *out), "photo.png", "add --checkpoint")
    refused(invoke("tokens", tiny_bundle, tmp_path / "missing.png", *out), "missing.png does not exist")
    refused(invoke("tokens", tiny_bundle, tmp_path / "broken.png", *out), "broken.png", "PNG")
    refused(invoke("tokens", tiny_bundle, "a red car", *out, "--checkpoint", tmp_path), "config.json")
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["sampling"]["num_steps"] += 1
    (other / "config.json").write_text(json.dumps(config))
    refused(invoke("tokens", tiny_bundle, "a red car", *out, "--checkpoint", other), "not the checkpoint")
    assert not (tmp_path / "out.png").exists()


def test_generate_refuses_wrong_tokens_and_edits_in_a_sentence(tiny_bundle: Path, car: Path, tmp_path: Path) -> None:
    grid = read_parameters(car)["tokens"]
    cases = {
        "another model": {**grid, "checkpoint": "0" * 64},
        "must be 0 to 39, found 40": {**grid, "rep_ids": [[40] * 3] * 2},
        "have 2 x 3 tokens, found 1 x 6": {**grid, "rows": 1, "columns": 6, "rep_ids": [[1] * 6]},
        "is no file of the format 'rf-export-tokens', found 7": 7,
    }
    command = ("generate", tiny_bundle, "a red car", "-o", tmp_path / "out.png")
    for message, content in cases.items():
        (tmp_path / "grid.json").write_text(json.dumps(content))
        refused(invoke(*command, "--rep-tokens", tmp_path / "grid.json"), message)
    refused(invoke(*command, "--rep-tokens", car, "--size", "24x16"), "those of 16 x 24 pixels")
    refused(invoke(*command, "--edit", "top left=7"), "'top left=7' is not understood", "redraw:5", code=2)
    refused(invoke(*command, "--edit", "0:3,0=7"), "not inside a grid of 2 rows and 3 columns", code=2)
    assert not (tmp_path / "out.png").exists()
