"""How well a model reads pictures: exact match of its answers about scenes that it never saw, per kind of question.

Four sets of scenes: new ones in the styles of training, ones with (colour, object) pairs that training holds out, and
two artwork styles never trained on. A caption is right if it is one of the scene's true captions: which of two objects
comes first, and whether their relation is said, cannot be read off a picture. Knows nothing of how answers are made.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rf_export.evaluation.metric import Rate
from rf_export.training.questions import OPPOSITE, QUESTIONS_VERSION, ask, kinds_for, side_of
from rf_export.training.scenes import DATA_VERSION, Demand, Scene, SceneConfig, make_scene
from runtime.errors import RFError
from runtime.manifest import MANIFEST_NAME

Picture = NDArray[np.uint8]  # [H, W, 3]
Answerer = Callable[[Sequence[Picture], Sequence[str]], list[str]]  # one answer per (picture, question)
SCENE_SEED = 0x72656164  # no training run has it
TRAINED_STYLES = ("fluent-flat", "fluent-3d")
SETS: dict[str, tuple[tuple[str, ...], bool]] = {  # styles, and whether every scene has a held-out pair
    "new scenes": (TRAINED_STYLES, False),
    "held-out pairs": (TRAINED_STYLES, True),
    "style noto": (("noto",), False),
    "style twemoji": (("twemoji",), False),
}
CHUNK = 256  # questions between two reports of progress


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A picture, a question about it (empty: a caption is wanted) and every right answer."""

    kind: str
    picture: Picture = field(repr=False)
    question: str
    right: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Understanding:
    """Exact match per set of scenes and kind of question; `str()` for people, `as_dict()` for machines."""

    model: str
    answered_by: str
    num_scenes: int
    rates: Mapping[str, Mapping[str, Rate]]  # by set, by kind
    wrong: Mapping[str, Sequence[tuple[str, str, str]]] = field(repr=False)  # by set: question, right answer, answer

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the first wrong answers of every set."""
        rates = {name: {kind: rate.as_dict() for kind, rate in kinds.items()} for name, kinds in self.rates.items()}
        return {"model": self.model, "answered_by": self.answered_by, "num_scenes": self.num_scenes,
                "data_version": f"{DATA_VERSION}, {QUESTIONS_VERSION}", "understanding": rates,
                "wrong": {name: list(examples[:20]) for name, examples in self.wrong.items()}}  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.model}, answered by {self.answered_by}; {self.num_scenes} scenes per set"]
        for name, kinds in self.rates.items():
            lines += ["", name, *(f"  {kind:<24}{rate}" for kind, rate in kinds.items())]
        return "\n".join(lines)


def evaluate_understanding(
    model: Path, num_scenes: int, num_objects: int = 16, on_progress: Callable[[str, int, int], None] | None = None
) -> Understanding:
    """Ask about `num_scenes` scenes of every set.

    Args:
        model: a checkpoint folder.
        num_scenes: per set; each is asked for its caption and one question of every kind that it allows.
        num_objects: as in training: a model knows no other words.
        on_progress: told (what, done, total).

    Raises:
        RFError: not a checkpoint.
    """
    answer, known, answered_by = open_answerer(model)
    rates, wrong = {}, {}
    for name, (styles, held_out) in SETS.items():
        config = SceneConfig(styles=styles, num_objects=num_objects)
        scenes = [make_scene(SCENE_SEED, index, config, held_out=held_out) for index in range(num_scenes)]
        asked = [one for i, scene in enumerate(scenes) for one in everything_to_ask(scene, i, config)]
        asked = [one for one in asked if known(one.question)]
        report = None if on_progress is None else lambda done, total, n=name: on_progress(n, done, total)
        rates[name], wrong[name] = score_answers(answer, asked, report)
    return Understanding(model=str(model), answered_by=answered_by, num_scenes=num_scenes, rates=rates, wrong=wrong)


def open_answerer(model: Path) -> tuple[Answerer, Callable[[str], bool], str]:
    """What answers with this model, which questions have only words that it knows, and what to call it.

    Raises:
        RFError: the model cannot answer.
    """
    if (model / MANIFEST_NAME).is_file():
        raise RFError(f"{model} is a bundle; understanding is measured with the checkpoint that it was exported from")
    from tokenizers import Tokenizer

    from rf_export.checkpoint import load_checkpoint
    from rf_export.evaluation.answering import answer_eager

    loaded = load_checkpoint(model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    unknown = tokenizer.token_to_id("[UNK]")

    def answer(pictures: Sequence[Picture], questions: Sequence[str]) -> list[str]:
        return answer_eager(loaded, tokenizer, pictures, questions)

    return answer, lambda question: unknown not in tokenizer.encode(question).ids, "eager PyTorch, fp32"


def everything_to_ask(scene: Scene, index: int, config: SceneConfig) -> list[Asked]:
    """A scene's caption, and one question of every kind."""
    what = {"single": "caption, one object", "count": "caption, two to four alike"}
    caption = what.get(scene.demand.kind, "caption, two objects")
    asked = [Asked(kind=caption, picture=scene.picture, question="", right=true_captions(scene))]
    rng = np.random.default_rng([SCENE_SEED, index])
    for kind in kinds_for(scene):
        question = ask(rng, scene, kind, config)
        asked.append(
            Asked(kind=kind, picture=scene.picture, question=question.text, right=frozenset({question.answer}))
        )
    return asked


def true_captions(scene: Scene) -> frozenset[str]:
    """Every caption that training could give to this picture."""
    if scene.demand.kind not in ("two", "relation"):
        return frozenset({scene.demand.caption})
    first, second = ((item.colour, item.object) for item in scene.items)
    demands = [Demand(kind="two", items=items) for items in ((first, second), (second, first))]
    side = side_of(scene)
    if side is not None:
        demands.append(Demand(kind="relation", items=(first, second), relation=side))
        demands.append(Demand(kind="relation", items=(second, first), relation=OPPOSITE[side]))
    return frozenset(demand.caption for demand in demands)


def score_answers(
    answer: Answerer, asked: Sequence[Asked], on_progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Rate], list[tuple[str, str, str]]]:
    """Exact match per kind, and what was answered wrongly: (question, a right answer, the answer)."""
    marks: dict[str, list[bool]] = defaultdict(list)
    wrong = []
    for start in range(0, len(asked), CHUNK):
        chunk = asked[start : start + CHUNK]
        answers = answer([one.picture for one in chunk], [one.question for one in chunk])
        for one, said in zip(chunk, answers, strict=True):
            marks[one.kind].append(said in one.right)
            if said not in one.right:
                wrong.append((one.question, min(one.right), said))
        if on_progress is not None:
            on_progress(start + len(chunk), len(asked))
    return {kind: Rate(successes=sum(right), num=len(right)) for kind, right in sorted(marks.items())}, wrong
