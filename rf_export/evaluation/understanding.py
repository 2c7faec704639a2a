"""How well a model reads pictures: exact match of its answers about scenes that it never saw, per kind of question.

Four sets of scenes: new ones in the styles of training, ones with (colour, object) pairs that training holds out, and
two artwork styles never trained on. A caption is right if it is one of the scene's true captions: which of two objects
comes first, and whether their relation is said, cannot be read off a picture. A checkpoint answers in eager PyTorch, by
the loop that parity is held against, and a bundle by the runtime; two models can be compared token by token.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from rf_export.evaluation.metric import Rate
from rf_export.training.questions import OPPOSITE, QUESTIONS_VERSION, ask, kinds_for, side_of
from rf_export.training.scenes import DATA_VERSION, Demand, Scene, SceneConfig, make_scene
from runtime.bundle.manifest import MANIFEST_NAME
from runtime.errors import RFError
from runtime.events import Progress
from runtime.signature import Precision
from runtime.text.tokenizer import MAX_PROMPT_CHARACTERS, PromptTokenizer
from verification.measures.token_agreement import Reading, TokenAgreement, compare_answers, merge, read_answer

if TYPE_CHECKING:
    from rf_export.model import RFModel

Picture = NDArray[np.uint8]  # [H, W, 3]
Answerer = Callable[[Picture, Sequence[str]], list[Reading]]  # an answer per question about one picture
SCENE_SEED = 0x72656164  # no training run has it
TRAINED_STYLES = ("fluent-flat", "fluent-3d")
SETS: dict[str, tuple[tuple[str, ...], bool]] = {  # styles, and whether every scene has a held-out pair
    "new scenes": (TRAINED_STYLES, False),
    "held-out pairs": (TRAINED_STYLES, True),
    "style noto": (("noto",), False),
    "style twemoji": (("twemoji",), False),
}


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
    against: str | None = None  # who else answered
    agreement: Mapping[str, Mapping[str, TokenAgreement]] | None = None  # by set, by kind; with `against`

    @property
    def total(self) -> TokenAgreement | None:
        """Of all sets and kinds together."""
        if self.agreement is None:
            return None
        return merge(each for kinds in self.agreement.values() for each in kinds.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the first wrong answers of every set."""
        rates = {name: {kind: rate.as_dict() for kind, rate in kinds.items()} for name, kinds in self.rates.items()}
        found = {
            "model": self.model,
            "answered_by": self.answered_by,
            "num_scenes": self.num_scenes,
            "data_version": f"{DATA_VERSION}, {QUESTIONS_VERSION}",
            "understanding": rates,
            "wrong": {name: list(examples[:20]) for name, examples in self.wrong.items()},
        }
        if self.agreement is None or self.total is None:
            return found
        agreement = {
            name: {kind: each.to_dict() for kind, each in {**kinds, "all": merge(kinds.values())}.items()}
            for name, kinds in self.agreement.items()
        }
        return {**found, "against": self.against, "agreement": {**agreement, "all sets": self.total.to_dict()}}

    def __str__(self) -> str:
        lines = [f"{self.model}, answered by {self.answered_by}; {self.num_scenes} scenes per set"]
        for name, kinds in self.rates.items():
            lines += ["", name, *(f"  {kind:<28}{rate}" for kind, rate in kinds.items())]
        if self.agreement is not None:
            lines += ["", f"agreement with {self.against}"]
            lines += [f"  {name:<16}{merge(kinds.values())}" for name, kinds in self.agreement.items()]
            lines += [f"  {'all sets':<16}{self.total}"]
        return "\n".join(lines)


def evaluate_understanding(
    model: Path,
    num_scenes: int,
    num_objects: int = 16,
    on_progress: Progress | None = None,
    *,
    precision: Precision = "fp32",
    num_threads: int | None = None,
    against: str | None = None,
) -> Understanding:
    """Ask about `num_scenes` scenes of every set.

    Args:
        model: a checkpoint folder or a bundle.
        num_scenes: per set; each is asked for its caption and one question of every kind that it allows.
        num_objects: as in training: a model knows no other words.
        on_progress: told (what, done, total).
        precision: the graphs of a bundle that answer.
        num_threads: per run of a bundle's graphs.
        against: a precision of the bundle, or another model, whose answers are the reference for agreement.

    Raises:
        RFError: not a model that answers.
    """
    answer, known, answered_by = open_answerer(model, precision, num_threads)
    reference = None
    if against is not None:
        chosen: tuple[Path, Any] = (model, against) if against in get_args(Precision) else (Path(against), "fp32")
        reference, _, against = open_answerer(*chosen, num_threads)
    rates, wrong, agreement = {}, {}, {}
    for name, (styles, held_out) in SETS.items():
        config = SceneConfig(styles=styles, num_objects=num_objects)
        scenes = (make_scene(SCENE_SEED, index, config, held_out=held_out) for index in range(num_scenes))
        asked = [
            [one for one in everything_to_ask(scene, i, config) if known(one.question)]
            for i, scene in enumerate(scenes)
        ]
        report = None if on_progress is None else lambda done, total, n=name: on_progress(n, done, total)
        rates[name], wrong[name], agreement[name] = score_answers(answer, asked, report, reference)
    return Understanding(
        model=str(model),
        answered_by=answered_by,
        num_scenes=num_scenes,
        rates=rates,
        wrong=wrong,
        against=against,
        agreement=None if reference is None else agreement,
    )


def open_answerer(
    model: Path, precision: Precision = "fp32", num_threads: int | None = None
) -> tuple[Answerer, Callable[[str], bool], str]:
    """What answers with this model, which questions have only words that it knows, and what to call it.

    Raises:
        RFError: the model cannot answer.
    """
    if (model / MANIFEST_NAME).is_file():
        answer, tokenizer, called = _compiled_answerer(model, precision, num_threads)
    else:
        import torch

        from rf_export.checkpoint import load_checkpoint, open_tokenizer

        if num_threads is not None:
            torch.set_num_threads(num_threads)
        loaded = load_checkpoint(model)
        tokenizer = open_tokenizer(model, loaded.config)
        answer, called = eager_answerer(loaded, tokenizer), "eager PyTorch, fp32"

    def is_known(question: str) -> bool:
        try:
            tokenizer.encode(question, MAX_PROMPT_CHARACTERS)
        except RFError:
            return False
        return True

    return answer, is_known, called


def _compiled_answerer(
    model: Path, precision: Precision, num_threads: int | None
) -> tuple[Answerer, PromptTokenizer, str]:
    from runtime.pipeline import Pipeline

    pipeline = Pipeline.load(model, precision, num_threads=num_threads)
    pipeline.converse()  # refuses a model that answers no questions

    def answer(picture: Picture, questions: Sequence[str]) -> list[Reading]:
        conversation = pipeline.converse()
        conversation.show(picture)
        return [read_answer(conversation, question) for question in questions]

    graphs = "ONNX graphs" if pipeline.engine is None else "engine"
    return answer, pipeline.model.tokenizer, f"runtime, {precision} {graphs}"


def eager_answerer(model: "RFModel", tokenizer: PromptTokenizer, size: tuple[int, int] | None = None) -> Answerer:
    """What answers with a model in eager PyTorch about pictures fitted into a size, the model's default.

    Raises:
        RFError: it was trained to draw only.
    """
    import torch

    from rf_export.eager import EagerQuestion
    from rf_export.eager import answer as answer_eager
    from runtime.pictures.load import load_pixels

    how = model.config.understanding
    if how is None:
        raise RFError("this model was trained to draw only: its config.json has no section understanding")

    height, width = size or (model.config.default_height, model.config.default_width)

    def answer(picture: Picture, questions: Sequence[str]) -> list[Reading]:
        readings, pixels = [], torch.from_numpy(load_pixels(picture, height, width))
        for question in questions:
            ids = torch.tensor([how.start_id, *tokenizer.encode(question, model.config.max_positions, "question")])
            request = EagerQuestion(images=[pixels], ids=ids, max_tokens=how.max_tokens, stop_ids=tuple(how.stop_ids))
            found = answer_eager(model, request)
            words = [token for token in found.ids if token not in how.stop_ids]
            readings.append(Reading(tokenizer.decode(words), found.ids, [each.numpy() for each in found.logits]))
        return readings

    return answer


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
    answer: Answerer,
    asked: Sequence[Sequence[Asked]],
    on_progress: Callable[[int, int], None] | None = None,
    reference: Answerer | None = None,
) -> tuple[dict[str, Rate], list[tuple[str, str, str]], dict[str, TokenAgreement]]:
    """Judge the answers to what is asked of each picture.

    Returns:
        Exact match per kind; what was answered wrongly: (question, a right answer, the answer); and per kind the
        agreement with the answers of `reference`, if there is one.
    """
    marks: dict[str, list[bool]] = defaultdict(list)
    pairs: dict[str, list[tuple[Reading, Reading]]] = defaultdict(list)
    wrong = []
    for done, about in enumerate(asked, 1):
        picture, questions = about[0].picture, [one.question for one in about]
        readings = answer(picture, questions)
        expected = readings if reference is None else reference(picture, questions)
        for one, said, other in zip(about, readings, expected, strict=True):
            marks[one.kind].append(said.text in one.right)
            pairs[one.kind].append((other, said))
            if said.text not in one.right:
                wrong.append((one.question, min(one.right), said.text))
        if on_progress is not None:
            on_progress(done, len(asked))
    rates = {kind: Rate(successes=sum(right), num=len(right)) for kind, right in sorted(marks.items())}
    return rates, wrong, {kind: compare_answers(each) for kind, each in sorted(pairs.items())}
