"""Questions about scenes: every answer is true of the items, by a reading of the words of its own."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rf_export.training.questions import QUESTION_KINDS, Question, caption_of, kinds_for, questions_about
from rf_export.training.scenes import COLOURS, Item, Scene, SceneConfig, held_out_pairs, make_scene
from rf_export.training.tokens import TEXT_SLOTS, UNKNOWN_ID, build_tokenizer

CONFIG = SceneConfig(styles=("fluent-flat", "fluent-3d"))
CONFIGS = [CONFIG, SceneConfig(size=16, num_objects=2), SceneConfig(size=64, num_objects=32, styles=("noto",))]
configs = st.sampled_from(CONFIGS)
seeds = st.integers(0, 2**31 - 1)
NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4}
SIDES = r"(left of|right of|above|below)"


def singular(word: str) -> str:
    return word if word == "fish" else word.removesuffix("s")


def named(scene: Scene, name: str) -> list[Item]:
    return [item for item in scene.items if item.object == name]


def stands(first: Item, relation: str, second: Item) -> bool:
    """By the gaps between upper left corners: all items of a scene are of one size."""
    assert first.size == second.size
    right, down = first.x - second.x, first.y - second.y
    if relation in ("left of", "right of"):
        return abs(right) > abs(down) and (right < 0) == (relation == "left of")
    return abs(down) > abs(right) and (down < 0) == (relation == "above")


def true_answers(scene: Scene, text: str) -> set[str]:
    """Every answer that is true of the items: read from the question's words, not from how it was made."""
    if found := re.fullmatch(r"how many (?:(\w+) )?(\w+) \?", text):
        colour, name = found[1], singular(found[2]) if found[2] not in CONFIGS[2].objects else found[2]
        number = sum(item.object == name and colour in (None, item.colour) for item in scene.items)
        return {word for word, value in NUMBERS.items() if value == number}
    if found := re.fullmatch(r"what colour (is|are) the (\w+) \?", text):
        shown = named(scene, found[2] if found[1] == "is" else singular(found[2]))
        assert (len(shown) > 1) == (found[1] == "are")
        return {item.colour for item in shown}
    if found := re.fullmatch(r"(is|are) the (\w+) (\w+) \?", text):
        shown = named(scene, found[2] if found[1] == "is" else singular(found[2]))
        assert (len(shown) > 1) == (found[1] == "are")
        return {"yes" if item.colour == found[3] else "no" for item in shown}
    if found := re.fullmatch(rf"is the (\w+) {SIDES} the (\w+) \?", text):
        return {"yes" if stands(*named(scene, found[1]), found[2], *named(scene, found[3])) else "no"}
    if found := re.fullmatch(rf"what is {SIDES} the (\w+) \?", text):
        (other,) = named(scene, found[2])
        return {f"a {item.object}" for item in scene.items if item is not other and stands(item, found[1], other)}
    if found := re.fullmatch(r"what is (\w+) \?", text):
        return {f"a {item.object}" for item in scene.items if item.colour == found[1]}
    found = re.fullmatch(r"where is the (\w+) \?", text)
    assert found, text
    (item,) = named(scene, found[1])
    others = [other for other in scene.items if other is not item]
    sides = ("left of", "right of", "above", "below")
    return {f"{side} the {other.object}" for other in others for side in sides if stands(item, side, other)}


@settings(max_examples=300)
@given(configs, seeds, seeds, st.booleans(), st.integers(1, 9))
def test_every_answer_is_the_only_true_one(
    config: SceneConfig, seed: int, index: int, held_out: bool, num: int
) -> None:
    scene = make_scene(seed, index, config, held_out=held_out)
    questions = questions_about(scene, seed, index, num, config)
    assert len(questions) == num
    for question in questions:
        assert true_answers(scene, question.text) == {question.answer}, (question, scene.items)


@settings(max_examples=100)
@given(configs, seeds, seeds, st.booleans())
def test_questions_are_decided_by_seed_and_index_and_of_different_kinds(
    config: SceneConfig, seed: int, index: int, held_out: bool
) -> None:
    scene = make_scene(seed, index, config, held_out=held_out)
    kinds = kinds_for(scene)
    questions = questions_about(scene, seed, index, len(kinds), config)
    assert questions == questions_about(scene, seed, index, len(kinds), config)
    assert sorted(question.kind for question in questions) == sorted(kinds)
    assert {question.kind for question in questions_about(scene, seed, index, 3 * len(kinds), config)} == set(kinds)


@settings(max_examples=100)
@given(configs, seeds, seeds, st.booleans())
def test_questions_use_known_words_and_fit_their_slots(
    config: SceneConfig, seed: int, index: int, held_out: bool
) -> None:
    tokenizer = build_tokenizer(config)
    scene = make_scene(seed, index, config, held_out=held_out)
    for question in (caption_of(scene), *questions_about(scene, seed, index, 6, config)):
        asked, said = tokenizer.encode(question.text).ids, tokenizer.encode(question.answer).ids
        assert UNKNOWN_ID not in (*asked, *said)
        assert len(asked) == len(question.text.split())
        assert len(said) == len(question.answer.split()) > 0
        assert 2 + len(asked) + len(said) <= TEXT_SLOTS
        assert tokenizer.encode(question.text.replace(" ?", "?")).ids == asked


@settings(max_examples=200)
@given(configs, seeds, seeds)
def test_questions_of_training_never_name_a_held_out_pair(config: SceneConfig, seed: int, index: int) -> None:
    """Or "no" would be the answer to each of them: a model could learn that such things do not exist."""
    scene = make_scene(seed, index, config)
    unseen = held_out_pairs(config)
    for question in questions_about(scene, seed, index, 6, config):
        if question.kind in ("count", "check"):
            words = question.text.split()
            colours = [word for word in words if word in COLOURS]
            objects = [name for name in config.objects if name in words or name + "s" in words]
            assert not {(colour, name) for colour in colours for name in objects} & unseen


def many_questions() -> list[tuple[Scene, Question]]:
    scenes = [(index, make_scene(3, index, CONFIG)) for index in range(1500)]
    return [(scene, question) for index, scene in scenes for question in questions_about(scene, 3, index, 3, CONFIG)]


def test_no_kind_can_be_answered_without_looking() -> None:
    """The commonest answer of a kind is right half of the time at most, and every kind is asked."""
    asked = many_questions()
    assert {question.kind for _, question in asked} == set(QUESTION_KINDS)
    for kind in QUESTION_KINDS:
        answers = Counter(question.answer for _, question in asked if question.kind == kind)
        share = answers.most_common(1)[0][1] / answers.total()
        assert share <= (0.56 if kind in ("check", "relation") else 0.5), (kind, answers.most_common(3))
    counts = {question.answer for _, question in asked if question.kind == "count"}
    assert counts == set(NUMBERS)


def test_a_wrong_colour_is_often_the_other_objects() -> None:
    """So that whose colour it is has to be seen, not only whether the colour is there."""
    wrong = [
        set(question.text.split()) & {item.colour for item in scene.items}
        for scene, question in many_questions()
        if question.kind == "check" and question.answer == "no" and len({item.colour for item in scene.items}) == 2
    ]
    assert len(wrong) > 50
    assert 0.3 < sum(map(bool, wrong)) / len(wrong) < 0.9


@pytest.mark.parametrize("index", range(8))
def test_a_caption_is_the_answer_to_no_question(index: int) -> None:
    scene = make_scene(0, index, CONFIG)
    assert caption_of(scene) == Question(kind="caption", text="", answer=scene.demand.caption)


def test_one_object_alone_is_asked_for_and_places_are_asked_from_both_sides() -> None:
    config = SceneConfig()
    scenes = [make_scene(3, index, config) for index in range(80)]
    assert all("object" in kinds_for(scene) for scene in scenes if len(scene.items) == 1)
    places = [
        (question.text.split()[3], scene.items[0].object)
        for index, scene in enumerate(scenes)
        for question in questions_about(scene, 3, index, 6, config)
        if question.text.startswith("where is")
    ]
    assert {asked == first for asked, first in places} == {True, False}
