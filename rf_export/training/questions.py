"""Questions about scenes with exact answers: counting, colour, objects and positions, from a scene's facts alone.

Deterministic from the random generator that is handed in. A question names no (colour, object) pair that training holds
out, unless the scene shows it: or "no" would become the answer to every question about such a pair. Knows nothing of
pictures, tokens or models.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from rf_export.training.scenes import (
    COUNT_WORDS,
    RELATIONS,
    Item,
    Scene,
    SceneConfig,
    plural,
    relation_holds,
    trained_pairs,
)

QUESTIONS_VERSION = "questions-1"  # changes whenever the same (scene, seed) would be asked something else
QUESTION_STREAM = 0x71756573  # keeps the questions' random numbers apart from the scenes'
# Every word of questions and answers that captions lack; appended to the vocabulary, so that ids of captions stay.
QUESTION_WORDS = ("how", "many", "what", "colour", "is", "are", "the", "?", "where", "yes", *COUNT_WORDS[:2])
QuestionKind = Literal["count", "colour", "check", "object", "relation", "where"]
QUESTION_KINDS: tuple[QuestionKind, ...] = ("count", "colour", "check", "object", "relation", "where")


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
Option = TypeVar("Option")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and its only right answer, in words apart by spaces. A caption is the answer to no question."""

    kind: QuestionKind | Literal["caption"]
    text: str
    answer: str


def caption_of(scene: Scene) -> Question:
    """The scene's caption, as the answer to an empty question."""
    return Question(kind="caption", text="", answer=scene.demand.caption)


def questions_about(scene: Scene, seed: int, index: int, num: int, config: SceneConfig) -> tuple[Question, ...]:
    """`num` questions about scene `index` of stream `seed`, of different kinds as far as the scene allows."""
    rng = np.random.default_rng([seed, index, QUESTION_STREAM])
    kinds = kinds_for(scene)
    order = [kinds[i] for i in rng.permutation(len(kinds))]
    return tuple(ask(rng, scene, order[n % len(order)], config) for n in range(num))


def kinds_for(scene: Scene) -> tuple[QuestionKind, ...]:
    """The kinds of question that have exactly one right answer here."""
    names, colours = {item.object for item in scene.items}, {item.colour for item in scene.items}
    kinds: list[QuestionKind] = ["count", "colour", "check"]
    if len(names) == len(scene.items) and (len(scene.items) == 1 or len(colours) > 1 or side_of(scene) is not None):
        kinds.append("object")
    if len(names) == 2:
        kinds.append("relation")
        if side_of(scene) is not None:
            kinds.append("where")
    return tuple(kinds)


def ask(rng: np.random.Generator, scene: Scene, kind: QuestionKind, config: SceneConfig) -> Question:
    """Draw one question of a kind that `kinds_for` allows."""
    makers: dict[QuestionKind, Callable[[np.random.Generator, Scene, SceneConfig], tuple[str, str]]] = {
        "count": _count,
        "colour": _colour,
        "check": _check,
        "object": _object,
        "relation": _relation,
        "where": _where,
    }
    text, answer = makers[kind](rng, scene, config)
    return Question(kind=kind, text=text, answer=answer)


def _count(rng: np.random.Generator, scene: Scene, config: SceneConfig) -> tuple[str, str]:
    """How many of an object, or of a coloured object; three in ten ask for what is not there."""
    pairs = Counter((item.colour, item.object) for item in scene.items)
    colour, name = _choice(rng, sorted(pairs))
    present, coloured = rng.random() < 0.7, rng.random() < 0.5
    if not present and coloured:
        near = [pair for pair in trained_pairs(config) if pair not in pairs and pair[1] == name]
        any_pair = [pair for pair in trained_pairs(config) if pair not in pairs]
        colour, name = _choice(rng, near if near and rng.random() < 0.5 else any_pair)
    elif not present:
        absent = [other for other in config.objects if all(other != shown for _, shown in pairs)]
        name = _choice(rng, absent or [name])  # a scene may show both of two objects
    if coloured:
        return f"how many {colour} {plural(name)} ?", COUNT_WORDS[pairs[colour, name]]
    return f"how many {plural(name)} ?", COUNT_WORDS[sum(n for (_, shown), n in pairs.items() if shown == name)]


def _colour(rng: np.random.Generator, scene: Scene, config: SceneConfig) -> tuple[str, str]:
    item = _choice(rng, scene.items)
    return f"what colour {_is_the(scene, item)} ?", item.colour


def _check(rng: np.random.Generator, scene: Scene, config: SceneConfig) -> tuple[str, str]:
    """Is it of this colour; half of the time it is, and a wrong colour may be the other object's."""
    item = _choice(rng, scene.items)
    if rng.random() < 0.5:
        return f"{_is_the(scene, item)} {item.colour} ?", "yes"
    wrong = [colour for colour, name in trained_pairs(config) if name == item.object and colour != item.colour]
    others = [colour for colour in wrong if colour in {other.colour for other in scene.items}]
    colour = _choice(rng, others if others and rng.random() < 0.5 else wrong)
    return f"{_is_the(scene, item)} {colour} ?", "no"


def _object(rng: np.random.Generator, scene: Scene, config: SceneConfig) -> tuple[str, str]:
    """What has this colour, or what is on this side of the other object."""
    item = _choice(rng, scene.items)
    side = side_of(scene)
    colour_is_unique = sum(other.colour == item.colour for other in scene.items) == 1
    if side is None or (colour_is_unique and rng.random() < 0.5):
        return f"what is {item.colour} ?", f"a {item.object}"
    first, second = scene.items
    subject, other = (first, second) if item is first else (second, first)
    relation = side if item is first else OPPOSITE[side]
    return f"what is {relation} the {other.object} ?", f"a {subject.object}"


def _relation(rng: np.random.Generator, scene: Scene, config: SceneConfig) -> tuple[str, str]:
    """Does a relation hold; half of the time it does, where one holds at all."""
    first, second = scene.items if rng.random() < 0.5 else scene.items[::-1]
    holding = [relation for relation in RELATIONS if relation_holds(relation, first.centre, second.centre)]
    if holding and rng.random() < 0.5:
        return f"is the {first.object} {holding[0]} the {second.object} ?", "yes"
    relation = _choice(rng, [relation for relation in RELATIONS if relation not in holding])
    return f"is the {first.object} {relation} the {second.object} ?", "no"


def _where(rng: np.random.Generator, scene: Scene, config: SceneConfig) -> tuple[str, str]:
    side = side_of(scene)
    assert side is not None
    first, second = scene.items
    if rng.random() < 0.5:
        return f"where is the {first.object} ?", f"{side} the {second.object}"
    return f"where is the {second.object} ?", f"{OPPOSITE[side]} the {first.object}"


def side_of(scene: Scene) -> str | None:
    """The relation of the first of two items to the second; None for other numbers and exact diagonals."""
    if len(scene.items) != 2:
        return None
    first, second = scene.items
    return next((name for name in RELATIONS if relation_holds(name, first.centre, second.centre)), None)


def _is_the(scene: Scene, item: Item) -> str:
    many = sum(other.object == item.object for other in scene.items) > 1
    return f"are the {plural(item.object)}" if many else f"is the {item.object}"


def _choice(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    return options[int(rng.integers(len(options)))]
