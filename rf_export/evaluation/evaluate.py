"""Draw the evaluation prompts with a checkpoint (eager) or a bundle (compiled) and score the pictures.

Knows nothing of how pictures are judged: see `metric`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rf_export.evaluation.metric import SceneScore, evaluation_demands, score_pictures
from rf_export.training.scenes import DATA_VERSION, Demand, SceneConfig, read_caption
from runtime.bundle.manifest import MANIFEST_NAME
from runtime.errors import RFError
from runtime.events import PictureEvent, Progress
from runtime.options import GenerationOptions
from runtime.pictures.png import save_png
from runtime.pictures.sheet import contact_sheet
from runtime.signature import Precision

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline

SHEET_PICTURES = 24
BATCH = 8  # prompts drawn together by a bundle
Picture = NDArray[np.uint8]  # [H, W, 3]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Which prompts, and how they are drawn. Prompt i is drawn with seed + i, whoever draws."""

    num_prompts: int = 200
    held_out: bool = False
    seed: int = 0
    precision: Precision = "fp32"
    sheet: Path | None = None
    without_rep: bool = False
    num_threads: int | None = None
    num_objects: int = 16  # as in training: a model knows no other words


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A scene score and what was scored."""

    model: str
    drawn_by: str
    options: EvaluationOptions
    score: SceneScore

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        options = {**vars(self.options), "sheet": None if self.options.sheet is None else str(self.options.sheet)}
        return {
            "model": self.model,
            "drawn_by": self.drawn_by,
            "data_version": DATA_VERSION,
            "options": options,
            "score": self.score.as_dict(),
        }

    def table(self) -> str:
        """For people."""
        prompts = "held-out (colour, object) pairs" if self.options.held_out else "new captions"
        title = f"{self.model}, drawn by {self.drawn_by}; {prompts}"
        return f"{title}\n\n{self.score}\n\n{_checker_line(self.score.checker)}"


def _checker_line(figures: Mapping[str, Any]) -> str:
    """How far the checker can be trusted; --json has all of its figures."""
    try:
        right, wrong = figures["accepted"]["overall"], figures["wrongly_accepted"]["captions"]["overall"]
    except KeyError:
        return "the checker has no figures of its own"
    return (
        f"the checker accepts {right['value']:.1%} of {right['n']} right pictures, and {wrong['value']:.1%} of "
        f"{wrong['n']} wrong ones; --json tells all of its figures"
    )


def evaluate_model(model: Path, options: EvaluationOptions, on_progress: Progress | None = None) -> Evaluation:
    """Draw and score.

    Args:
        model: a checkpoint folder, drawn one by one in eager PyTorch, or a bundle, drawn by the runtime.
        options: prompts, seed, precision of a bundle, sheet.
        on_progress: told (what, done, total) after every picture.

    Raises:
        RFError: neither a checkpoint nor a bundle, one whose model does not know the words of the prompts, or options
            that are of the other kind.
    """
    try:
        scenes = SceneConfig(num_objects=options.num_objects)
        demands = evaluation_demands(options.num_prompts, 0, scenes, options.held_out)
    except ValueError as error:
        raise RFError(f"{error}; lower --num-prompts") from error
    is_bundle = (model / MANIFEST_NAME).is_file()
    if is_bundle and options.without_rep:
        raise RFError(f"{model} is a bundle: its graphs draw with representation tokens. Name a checkpoint instead.")
    if not is_bundle and options.precision != "fp32":
        raise RFError(f"{model} is no bundle: a checkpoint is drawn in fp32, and {options.precision} was asked for.")
    draw = _draw_bundle(model, demands, options) if is_bundle else _draw_eager(model, demands, options)
    pictures: list[Picture] = []
    for picture in draw:
        pictures.append(picture)
        if on_progress is not None:
            on_progress("drawing", len(pictures), len(demands))
    try:
        score = score_pictures(np.stack(pictures), demands)
    except ValueError as error:
        raise RFError(f"the pictures of {model} cannot be scored: {error}") from error
    if options.sheet is not None:
        _write_sheet(options.sheet, pictures, demands, score)
    drawn_by = f"runtime, {options.precision}" if is_bundle else "eager PyTorch, fp32"
    return Evaluation(model=str(model), drawn_by=drawn_by, options=options, score=score)


def _draw_bundle(path: Path, demands: list[Demand], options: EvaluationOptions) -> Iterator[Picture]:
    from runtime.pipeline import Pipeline

    pipeline = Pipeline.load(path, options.precision, num_threads=options.num_threads)
    yield from draw_demands(pipeline, demands, options.seed)


def draw_demands(
    pipeline: "Pipeline", demands: Sequence[Demand], seed: int, options: GenerationOptions | None = None
) -> Iterator[Picture]:
    """Draw what is demanded; demand i with seed + i."""
    for start in range(0, len(demands), BATCH):
        prompts = [demand.caption for demand in demands[start : start + BATCH]]
        for event in pipeline.generate(prompts, seed=seed + start, options=options, previews=False):
            if isinstance(event, PictureEvent):
                yield event.picture


def scene_scorer(
    num_prompts: int, seed: int = 0, options: GenerationOptions | None = None
) -> Callable[["Pipeline", Progress], list[bool]]:
    """A task score for the quality gate of calibration: was each picture of a fixed list of prompts right?"""
    demands = evaluation_demands(num_prompts, 0, SceneConfig(), False)

    def score(pipeline: "Pipeline", report: Progress) -> list[bool]:
        pictures = []
        for picture in draw_demands(pipeline, demands, seed, options):
            pictures.append(picture)
            report(f"scene score in {pipeline.precision}", len(pictures), len(demands))
        return [verdict.correct for verdict in score_pictures(np.stack(pictures), demands).verdicts]

    return score


class CheckerScorer:
    """Scores pictures of captions of our scenes: 1 where exactly what one demands is there, else 0."""

    name = "the checker"

    def score(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> list[float]:
        """Judge pictures; raises RFError where a prompt is no such caption, or a picture has another size."""
        try:
            demands = [read_caption(prompt, SceneConfig()) for prompt in prompts]
            return [float(verdict.correct) for verdict in score_pictures(np.stack(pictures), demands).verdicts]
        except ValueError as error:
            raise RFError(f"The checker cannot judge these pictures: {error}. Score them with --score.") from error


def _draw_eager(path: Path, demands: list[Demand], options: EvaluationOptions) -> Iterator[Picture]:
    import torch

    from rf_export.checkpoint import load_checkpoint, open_tokenizer
    from rf_export.training.samples import draw_eager

    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    model = load_checkpoint(path)
    tokenizer = open_tokenizer(path, model.config)
    for i, demand in enumerate(demands):
        ids = tokenizer.encode(demand.caption, model.config.max_positions)
        yield draw_eager(model, ids, options.seed + i, with_rep=not options.without_rep)[0]


def _write_sheet(path: Path, pictures: list[Picture], demands: list[Demand], score: SceneScore) -> None:
    marks = ["" if verdict.correct else "[x] " for verdict in score.verdicts]
    captions = [mark + demand.caption for mark, demand in zip(marks, demands, strict=True)]
    sheet = contact_sheet(pictures[:SHEET_PICTURES], captions[:SHEET_PICTURES])
    save_png(path, sheet, {"prompts": [demand.caption for demand in demands[:SHEET_PICTURES]]})
