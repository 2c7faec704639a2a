"""How far the checker itself can be trusted: which right pictures it accepts, and which wrong ones.

Measures with scenes of seeds that training never used, and with the pictures' facts, not with any other
model. Knows nothing of how the checker was trained.
"""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.checker.practice import SPOILERS, Look, paste, roughened
from rf_export.evaluation.checker import Checker
from rf_export.evaluation.metric import Rate, SceneScore, evaluation_demands, judge, score_pictures
from rf_export.training.scenes import COLOURS, Demand, Item, SceneConfig, compose, place

REFERENCE_STYLES = ("fluent-flat", "fluent-3d")  # those of the reference model's scenes
TEST_STREAM = 0x74657374  # keeps these random numbers apart from scenes, prompts and practice
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
Pictures = NDArray[np.uint8]  # [n, size, size, 3]


def render(demands: Sequence[Demand], seed: int, config: SceneConfig) -> tuple[list[tuple[Item, ...]], Pictures]:
    """Draw a real scene for every demand: its items with their places, and the picture."""
    rng = np.random.default_rng([seed, TEST_STREAM])
    items = [place(rng, config, demand) for demand in demands]
    return items, np.stack([compose(sprites, config.size) for sprites in items])


def wrong_demands(rng: np.random.Generator, demand: Demand, config: SceneConfig) -> dict[str, Demand]:
    """Demands that a picture of `demand` does not fulfil, by the one thing that is wrong in them."""
    (colour, name), *others = demand.items
    colours = [other for other in COLOURS if other != colour]
    names = [other for other in config.objects if other not in {used for _, used in demand.items}]

    def with_first(pair: tuple[str, str]) -> Demand:
        rest = [pair] * len(others) if demand.kind == "count" else others
        return replace(demand, items=(pair, *rest))

    wrong = {
        "colour": with_first((colours[rng.integers(len(colours))], name)),
        "object": with_first((colour, names[rng.integers(len(names))])),
    }
    if demand.kind in ("single", "count"):
        num = {1: 2, 2: int(rng.choice([1, 3])), 3: int(rng.choice([2, 4])), 4: 3}[len(demand.items)]
        wrong["count"] = Demand(kind="count" if num > 1 else "single", items=((colour, name),) * num)
    elif others[0][0] != colour:
        wrong["colours swapped"] = replace(demand, items=((others[0][0], name), (colour, others[0][1])))
    if demand.relation:
        wrong["relation"] = replace(demand, relation=OPPOSITE[demand.relation])
    return wrong


def spoil_one(rng: np.random.Generator, items: Sequence[Item], spoiler: str, config: SceneConfig) -> Pictures:
    """The scene with its first sprite spoilt, `[size, size, 3]`."""
    canvas = compose(tuple(items[1:]), config.size).astype(np.float32)
    first = items[0]
    look = Look(object=first.object, colour=first.colour, style=first.style)
    paste(canvas, SPOILERS[spoiler](rng, look, first.size, config), first.centre)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def measure_checker(checker: Checker, num: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Every figure of "accuracy" in `checker.json`, from `num` prompts (`num // 4` where little varies).

    Returns:
        accepted: share of right pictures accepted: by kind, aspect, style, with unseen pairs, slightly
            imperfect in ways that training knows, and (jpeg, coarse) in ways that it does not.
        wrongly_accepted: share of wrong captions or spoilt pictures accepted, by what is wrong.
        centre_error_pixels: mean distance between seen and true centres.
    """
    config = SceneConfig(size=checker.size, num_objects=len(checker.objects), styles=REFERENCE_STYLES)
    demands = evaluation_demands(num, seed, config, held_out=False)
    items, pictures = render(demands, seed, config)
    score = score_pictures(pictures, demands, checker)
    few = demands[: num // 4]
    unseen = evaluation_demands(num // 4, seed, config, held_out=True)
    rng = np.random.default_rng([seed, TEST_STREAM, 1])
    rough = np.stack([roughened(rng, picture.astype(np.float32)) for picture in pictures])
    accepted: dict[str, Any] = {
        "overall": score.overall,
        "kinds": score.kinds,
        "aspects": score.aspects,
        "unseen pairs": score_pictures(render(unseen, seed + 1, config)[1], unseen, checker).overall,
        "slightly imperfect": score_pictures(_to_uint8(rough), demands, checker).overall,
        "jpeg": score_pictures(_jpeg(pictures), demands, checker).overall,
        "coarse": score_pictures(_coarse(pictures), demands, checker).overall,
        "styles": {},
    }
    for style in checker.styles:
        _, styled = render(few, seed + 2, replace(config, styles=(style,)))
        accepted["styles"][style] = score_pictures(styled, few, checker).overall
    wrongly = _wrong_captions(rng, score, demands, config)
    spoilt = {}
    for spoiler in SPOILERS:
        garbage = np.stack([spoil_one(rng, sprites, spoiler, config) for sprites in items[: len(few)]])
        spoilt[spoiler] = score_pictures(garbage, few, checker).overall
    figures = {"accepted": accepted, "wrongly_accepted": {"captions": wrongly, "spoilt": spoilt}}
    return {"seed": seed, **_plain(figures), "centre_error_pixels": _centre_error(score, items)}


def _wrong_captions(
    rng: np.random.Generator, score: SceneScore, demands: Sequence[Demand], config: SceneConfig
) -> dict[str, Rate]:
    """False acceptance by what is wrong in the caption; "random" is the caption of another picture."""
    marks: dict[str, list[bool]] = {}
    for i, (verdict, demand) in enumerate(zip(score.verdicts, demands, strict=True)):
        wrong = wrong_demands(rng, demand, config)
        wrong["random"] = demands[(i + 1 + int(rng.integers(len(demands) - 1))) % len(demands)]
        for name, other in wrong.items():
            if name != "random" or sorted(other.items) != sorted(demand.items):  # "b and a" is true of "a and b"
                marks.setdefault(name, []).append(judge(verdict.seen, other).correct)
    every = [mark for name in marks for mark in marks[name]]
    return {name: Rate(successes=sum(row), num=len(row)) for name, row in {"overall": every, **marks}.items()}


def _centre_error(score: SceneScore, items: Sequence[tuple[Item, ...]]) -> float:
    """Mean distance in pixels between true centres and the nearest seen ones, over the accepted pictures."""
    errors = [
        min(float(np.hypot(item.centre[0] - thing.x, item.centre[1] - thing.y)) for thing in verdict.seen)
        for verdict, sprites in zip(score.verdicts, items, strict=True)
        if verdict.correct
        for item in sprites
    ]
    return float(np.mean(errors)) if errors else float("nan")


def _jpeg(pictures: Pictures) -> Pictures:
    """Through JPEG of quality 40."""
    result = np.empty_like(pictures)
    for i, picture in enumerate(pictures):
        buffer = BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=40)
        result[i] = np.asarray(Image.open(buffer).convert("RGB"))
    return result


def _coarse(pictures: Pictures) -> Pictures:
    """Through two thirds of the resolution."""
    size = pictures.shape[1]
    small, bilinear = size * 2 // 3, Image.Resampling.BILINEAR
    return np.stack(
        [
            np.asarray(Image.fromarray(picture).resize((small, small), bilinear).resize((size, size), bilinear))
            for picture in pictures
        ]
    )


def _to_uint8(pictures: NDArray[np.float32]) -> Pictures:
    return np.clip(np.rint(pictures), 0, 255).astype(np.uint8)


def _plain(figures: Any) -> Any:
    """Rates as dictionaries, for JSON."""
    if isinstance(figures, Rate):
        return figures.as_dict()
    return {name: _plain(value) for name, value in figures.items()}
