"""Reading pictures, measured: what counts as right, and that a model is asked as it was trained."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import main
from rf_export.config import preset
from rf_export.evaluation.answering import answer_eager
from rf_export.evaluation.understanding import (
    SCENE_SEED,
    SETS,
    TRAINED_STYLES,
    Asked,
    Picture,
    everything_to_ask,
    score_answers,
    true_captions,
)
from rf_export.model import RFModel, Segment
from rf_export.training.objective import describe_loss
from rf_export.training.questions import caption_of, kinds_for, questions_about
from rf_export.training.scenes import RELATIONS, SceneConfig, atlas_layout, make_scene, relation_holds
from rf_export.training.tokens import build_tokenizer, make_batch

SCENES = SceneConfig(size=16, num_objects=4)
REFERENCE = Path(__file__).parent.parent / "examples/reference"


@settings(max_examples=150)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_true_captions_are_those_that_training_could_give_and_no_others(index: int, held_out: bool) -> None:
    scene = make_scene(0, index, SceneConfig(), held_out=held_out)
    captions = true_captions(scene)
    assert scene.demand.caption in captions
    centres = {f"a {item.colour} {item.object}": item.centre for item in scene.items}
    for caption in captions:
        words = [relation for relation in (*RELATIONS, "and") if f" {relation} " in caption]
        assert len(words) == (scene.demand.kind in ("two", "relation"))
        for word in words:
            first, second = caption.split(f" {word} ")
            assert {first, second} == set(centres)
            assert word == "and" or relation_holds(word, centres[first], centres[second])
    if scene.demand.kind == "relation":
        assert len(captions) == 4


@pytest.mark.parametrize("index", range(6))
def test_a_scene_is_asked_for_its_caption_and_once_per_kind(index: int) -> None:
    scene = make_scene(SCENE_SEED, index, SceneConfig())
    asked = everything_to_ask(scene, index, SceneConfig())
    assert asked[0].question == ""
    assert asked[0].kind.startswith("caption, ")
    assert [one.kind for one in asked[1:]] == list(kinds_for(scene))
    assert [one.question for one in asked] == [one.question for one in everything_to_ask(scene, index, SceneConfig())]


def asked_of(kind: str, question: str, *right: str) -> Asked:
    return Asked(kind=kind, picture=np.zeros((2, 2, 3), np.uint8), question=question, right=frozenset(right))


def test_an_answer_counts_when_it_is_exactly_one_of_the_right_ones() -> None:
    asked = [
        asked_of("caption", "", "a red car and a blue cup", "a blue cup and a red car"),
        asked_of("caption", "", "a red car"),
        asked_of("count", "how many cars ?", "two"),
        asked_of("count", "how many cups ?", "no"),
        asked_of("count", "how many hats ?", "one"),
    ]
    answers = ["a blue cup and a red car", "a red car car", "two", "", "One"]
    told: list[tuple[int, int]] = []

    def answer(pictures: Sequence[Picture], questions: Sequence[str]) -> list[str]:
        assert len(pictures) == len(questions) == 5
        return answers

    rates, wrong = score_answers(answer, asked, lambda done, total: told.append((done, total)))
    assert {kind: (rate.successes, rate.num) for kind, rate in rates.items()} == {"caption": (1, 2), "count": (1, 3)}
    said = [("", "a red car", "a red car car"), ("how many cups ?", "no", ""), ("how many hats ?", "one", "One")]
    assert wrong == said
    assert told == [(5, 5)]


def test_the_sets_hold_what_training_never_showed() -> None:
    """Two sets have the styles of the committed recipes, under a seed of their own; two have all the other styles."""
    for recipe in json.loads((REFERENCE / "run.json").read_text())["stages"]:
        assert recipe["train"]["seed"] != SCENE_SEED
        assert tuple(recipe["train"]["scenes"]["styles"]) == TRAINED_STYLES
    other = {style for styles, _ in SETS.values() for style in styles} - set(TRAINED_STYLES)
    assert other == set(atlas_layout()["styles"]) - set(TRAINED_STYLES)
    assert [held_out for _, held_out in SETS.values()] == [False, True, False, False]


def test_a_model_that_learnt_its_answers_gives_them() -> None:
    """Ties asking to training: a model that knows a few pictures by heart answers every question about them."""
    torch.manual_seed(0)
    model = RFModel(preset("tiny"))
    tokenizer = build_tokenizer(SCENES)
    scenes = [make_scene(0, index, SCENES) for index in range(6)]
    questions = [questions_about(scene, 0, index, 2, SCENES) for index, scene in enumerate(scenes)]
    batch = make_batch(scenes, tokenizer, questions)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(400):
        loss = describe_loss(model, batch)
        if loss < 0.01:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    texts = [(caption_of(scene), *asked) for scene, asked in zip(scenes, questions, strict=True)]
    pictures = [scene.picture for scene in scenes for _ in range(3)]
    asked = [one for three in texts for one in three]
    assert answer_eager(model.eval(), tokenizer, pictures, [one.text for one in asked]) == [one.answer for one in asked]


def test_an_answer_does_not_depend_on_what_else_is_asked() -> None:
    """Random weights, questions of all lengths at once: as each alone, word by word, by a loop of its own."""
    torch.manual_seed(3)
    model = RFModel(dataclasses.replace(preset("tiny"), vocab_size=67)).eval()
    tokenizer = build_tokenizer(SCENES)
    pictures = [make_scene(1, index, SCENES).picture for index in range(4)]
    questions = ["", "how many red cars ?", "what is red ?", ""]
    together = answer_eager(model, tokenizer, pictures, questions)
    for picture, question, said in zip(pictures, questions, together, strict=True):
        ids = [2, *tokenizer.encode(question).ids]
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        words: list[int] = []
        with torch.no_grad():
            image = model.connector(model.encoder(pixels), 4, 4)
            while len(words) < 11 and 3 not in words:
                hidden = torch.cat([image, model.text_embedding[[*ids, *words]][None]], 1)
                mask = torch.ones(1, 1, hidden.shape[1], hidden.shape[1], dtype=torch.bool).tril()
                positions = torch.arange(hidden.shape[1])[None]
                (out,), _ = model.run([Segment("understanding", hidden, positions)], mask)
                words.append(int(model.text_head(out[0, -1]).argmax()))
        words = words[: words.index(3)] if 3 in words else words
        assert said == " ".join(str(tokenizer.id_to_token(word)) for word in words)


def test_the_command_measures_the_committed_checkpoint() -> None:
    """Twelve pictures are few, but every caption of one object was right when it was committed."""
    command = ["eval", str(REFERENCE / "checkpoint"), "--understanding", "--num-prompts", "12", "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    rates = json.loads(result.stdout)["understanding"]
    assert set(rates) == set(SETS)
    assert rates["new scenes"]["caption, one object"]["value"] == 1
    assert sum(rate["n"] for kind, rate in rates["style noto"].items() if kind.startswith("caption")) == 12


def test_questions_to_a_bundle_and_options_of_drawing_are_refused(tiny_bundle: Path) -> None:
    for command, words in (
        (["eval", str(tiny_bundle), "--understanding"], "is a bundle"),
        (["eval", str(REFERENCE / "checkpoint"), "--understanding", "--held-out"], "--held-out is about drawing"),
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code in (1, 2)
        assert words in result.output
