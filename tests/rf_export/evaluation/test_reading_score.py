"""Reading pictures, measured: what counts as right, and that a model is asked as it was trained."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import main
from rf_export.checkpoint import open_tokenizer, save_checkpoint
from rf_export.config import preset
from rf_export.evaluation.evaluate import EvaluationOptions, _draw_eager
from rf_export.evaluation.understanding import (
    SCENE_SEED,
    SETS,
    TRAINED_STYLES,
    Asked,
    Picture,
    eager_answerer,
    everything_to_ask,
    open_answerer,
    score_answers,
    true_captions,
)
from rf_export.model import RFModel
from rf_export.training.objective import describe_loss
from rf_export.training.questions import caption_of, kinds_for, questions_about
from rf_export.training.scenes import RELATIONS, Demand, SceneConfig, atlas_layout, make_scene, relation_holds
from rf_export.training.tokens import build_tokenizer, make_batch
from runtime.errors import RFError
from runtime.text.tokenizer import PromptTokenizer
from verification.measures.token_agreement import Reading, TokenAgreement, compare_answers, merge

VOCAB = {piece: n for n, piece in enumerate(["a", "b", "c", "e", "r", "z", " ", "ca", "car", "br", "ebr"])}
MERGES = [("c", "a"), ("ca", "r"), ("b", "r"), ("e", "br")]
EMPTY_TOKENIZER = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
EMPTY_TOKENIZER |= {"version": "1.0", "added_tokens": []}
SCENES = SceneConfig(size=16, num_objects=4)
REFERENCE = Path(__file__).parents[3] / "examples/reference"


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

    def answer(picture: Picture, questions: Sequence[str]) -> list[Reading]:
        assert len(questions) == 5
        return [Reading(said, [number], [np.zeros(9, np.float32)]) for number, said in enumerate(answers)]

    rates, wrong, agreement = score_answers(answer, [asked], lambda done, total: told.append((done, total)))
    assert {kind: (rate.successes, rate.num) for kind, rate in rates.items()} == {"caption": (1, 2), "count": (1, 3)}
    said = [("", "a red car", "a red car car"), ("how many cups ?", "no", ""), ("how many hats ?", "one", "One")]
    assert wrong == said
    assert told == [(1, 1)]
    assert agreement["caption"].answers_equal == 2


def test_the_sets_hold_what_training_never_showed() -> None:
    """Two sets have the styles of the committed recipes, under a seed of their own; two have all the other styles."""
    for recipe in json.loads((REFERENCE / "run.json").read_text())["stages"]:
        assert recipe["train"]["seed"] != SCENE_SEED
        assert tuple(recipe["train"]["scenes"]["styles"]) == TRAINED_STYLES
    other = {style for styles, _ in SETS.values() for style in styles} - set(TRAINED_STYLES)
    assert other == set(atlas_layout()["styles"]) - set(TRAINED_STYLES)
    assert [held_out for _, held_out in SETS.values()] == [False, True, False, False]


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"model": {"type": "BPE", "vocab": VOCAB, "merges": MERGES, "dropout": 0.5}}, ()),
        ({"model": {"type": "BPE", "vocab": {k: VOCAB[k] for k in VOCAB if k != "z"}, "merges": MERGES}}, ("a zebra",)),
        ({"model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}}, ("a zebra", "a car")),
    ],
)
def test_texts_for_eager_models_are_encoded_as_the_runtime_encodes_them(
    tmp_path: Path, change: dict[str, Any], refused: tuple[str, ...]
) -> None:
    """One encoding for one text, and no part of it lost."""
    save_checkpoint(RFModel(preset("tiny")), json.dumps(EMPTY_TOKENIZER | change), tmp_path / "checkpoint")
    _, is_known, _ = open_answerer(tmp_path / "checkpoint")
    assert [text for text in ("a zebra", "a car") if not is_known(text)] == list(refused)
    tokenizer = open_tokenizer(tmp_path / "checkpoint", preset("tiny"))
    if not refused:
        assert len({tuple(tokenizer.encode("a car a car a car", 99)) for _ in range(30)}) == 1
    else:
        demand = Demand(kind="single", items=(("car", "zebra"),))
        with pytest.raises(RFError, match=r"in the prompt .a car zebra."):
            next(_draw_eager(tmp_path / "checkpoint", [demand], EvaluationOptions()))


def test_a_model_that_learnt_its_answers_gives_them(tmp_path: Path) -> None:
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
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    known = PromptTokenizer(tmp_path / "tokenizer.json", model.config.vocab_size)
    answer = eager_answerer(model.eval(), known, (SCENES.size, SCENES.size))
    for scene, asked in zip(scenes, questions, strict=True):
        texts = (caption_of(scene), *asked)
        readings = answer(scene.picture, [one.text for one in texts])
        assert [one.text for one in readings] == [one.answer for one in texts]


def test_the_command_measures_the_committed_checkpoint() -> None:
    """Twelve pictures are few, but every caption of one object was right when it was committed."""
    command = ["eval", str(REFERENCE / "checkpoint"), "--understanding", "--num-prompts", "12", "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    rates = json.loads(result.stdout)["understanding"]
    assert set(rates) == set(SETS)
    assert rates["new scenes"]["caption, one object"]["value"] == 1
    assert sum(rate["n"] for kind, rate in rates["style noto"].items() if kind.startswith("caption")) == 12


def test_a_bundle_answers_as_its_checkpoint_does(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """Random weights say what they like, but in both alike; fp16 may turn near ties alone."""
    for options in (["--against", str(tiny_checkpoint)], ["--precision", "fp16", "--against", "fp32"]):
        command = ["eval", str(tiny_bundle), "--understanding", "--num-prompts", "2", "--json", *options]
        result = CliRunner().invoke(main, [*command, "--min-agreement", "95"])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["answered_by"].startswith("runtime, ")
        total = found["agreement"]["all sets"]
        rates = [rate for kinds in found["understanding"].values() for rate in kinds.values()]
        assert total["answers"] == sum(rate["n"] for rate in rates)
        assert total["tokens_equal"] + total["near_ties"] == total["tokens"] >= 100
        assert set(found["agreement"]) == {*SETS, "all sets"}


def test_a_bundle_that_answers_otherwise_fails_with_figures(tiny_bundle: Path, tmp_path: Path) -> None:
    torch.manual_seed(8)
    other = RFModel(preset("tiny"))
    save_checkpoint(other, build_tokenizer(SceneConfig()).to_str(), tmp_path / "other", torch.float32)
    command = ["eval", str(tiny_bundle), "--understanding", "--num-prompts", "1", "--against", str(tmp_path / "other")]
    result = CliRunner().invoke(main, [*command, "--min-agreement", "90"])
    assert result.exit_code == 1
    assert re.search(r"tokens are alike, .*% to .*%, expected at least 90.0% for sure", result.output)


def test_options_that_do_not_go_together_are_refused(tiny_bundle: Path) -> None:
    for command, words in (
        (["eval", str(tiny_bundle), "--against", "fp32"], "use it with --understanding"),
        (["eval", str(tiny_bundle), "--understanding", "--against", "fp64"], "fp64"),
        (["eval", str(tiny_bundle), "--understanding", "--min-agreement", "99"], "name what with --against"),
        (["eval", str(REFERENCE / "checkpoint"), "--understanding", "--held-out"], "--held-out is about drawing"),
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code in (1, 2)
        assert words in result.output


def reading(*tokens: tuple[int, list[float]]) -> Reading:
    return Reading("", [token for token, _ in tokens], [np.array(logits, np.float32) for _, logits in tokens])


def test_tokens_are_compared_up_to_the_first_that_differs() -> None:
    sure, unsure = [0.0, 5.0, 4.9], [0.0, 5.0, 1.0]
    same = reading((1, sure), (1, unsure))
    found = compare_answers(
        [
            (same, same),
            (same, reading((2, sure), (2, sure))),  # at a near tie; the rest has another history
            (same, reading((1, sure), (2, unsure))),  # 4 in logits: 55 times as likely
        ]
    )
    assert (found.answers, found.answers_equal, found.tokens, found.tokens_equal, found.near_ties) == (3, 1, 5, 3, 1)
    assert found.worst_odds == pytest.approx(np.exp(4.0))
    assert merge([found, found]).tokens_alike == 8


def test_tokens_after_a_given_history_are_all_compared() -> None:
    sure = [0.0, 5.0, 1.0]
    given, other = reading((1, sure), (1, sure), (1, sure)), reading((2, sure), (1, sure), (2, sure))
    found = compare_answers([(given, other)], same_history=True)
    assert (found.answers_equal, found.tokens, found.tokens_equal) == (0, 3, 1)


@pytest.mark.parametrize(
    ("alike", "tokens", "words"),
    [
        (200, 200, None),
        (50, 50, "too few to tell, give more pictures"),
        (190, 200, r"91.0% to 97.3%"),
        (0, 0, "too few"),
    ],
)
def test_agreement_counts_only_as_far_as_it_is_sure(alike: int, tokens: int, words: str | None) -> None:
    """Nothing different in fifty tokens leaves room for seven in a hundred."""
    found = TokenAgreement(9, 9, tokens, alike, 0, 1.0).failure(0.95)
    assert (found is None) == (words is None)
    assert found is None or words is None or re.search(words, found)
