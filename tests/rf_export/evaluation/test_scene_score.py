"""What counts as a correct picture, how shares are reported, and which prompts are asked: without pictures."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from rf_export.checkpoint import load_checkpoint, open_tokenizer
from rf_export.evaluation import evaluate
from rf_export.evaluation.checker import Detection
from rf_export.evaluation.evaluate import CheckerScorer, EvaluationOptions, evaluate_model
from rf_export.evaluation.metric import Rate, evaluation_demands, judge
from rf_export.training.samples import draw_eager
from rf_export.training.scenes import KINDS, Demand, SceneConfig, held_out_pairs, make_scene
from runtime.errors import RFError

CONFIG = SceneConfig(size=48, num_objects=16, styles=("fluent-flat", "fluent-3d"))
CAR_LEFT_OF_TREE = Demand(kind="relation", items=(("red", "car"), ("green", "tree")), relation="left of")


def seen(colour: str | None, name: str | None, x: float = 24, y: float = 24) -> Detection:
    return Detection(object=name, colour=colour, x=x, y=y, heat=0.9)


@pytest.mark.parametrize(
    ("successes", "num", "low", "high"),
    [(0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341), (81, 263, 0.25528, 0.36621), (10, 10, 0.72247, 1.0)],
)
def test_wilson_interval_equals_published_values(successes: int, num: int, low: float, high: float) -> None:
    # 81 of 263: Newcombe 1998 (Statistics in Medicine 17, p. 857), table I, method 3; the others by hand.
    assert Rate(successes=successes, num=num).interval == pytest.approx((low, high), abs=5e-5)


def test_a_share_of_nothing_is_unknown() -> None:
    rate = Rate(successes=0, num=0)
    assert math.isnan(rate.value)
    assert rate.as_dict() == {"value": None, "low": 0.0, "high": 1.0, "n": 0}


def test_a_picture_is_correct_when_items_and_relation_agree() -> None:
    verdict = judge([seen("green", "tree", x=36), seen("red", "car", x=12)], CAR_LEFT_OF_TREE)
    assert verdict.correct
    assert verdict.position_right


def test_a_mirrored_relation_is_wrong_although_the_items_are_right() -> None:
    verdict = judge([seen("red", "car", x=36), seen("green", "tree", x=12)], CAR_LEFT_OF_TREE)
    assert (verdict.correct, verdict.colours_right, verdict.position_right) == (False, True, False)


def test_swapped_colours_are_wrong_although_objects_and_position_are_right() -> None:
    verdict = judge([seen("green", "car", x=12), seen("red", "tree", x=36)], CAR_LEFT_OF_TREE)
    assert (verdict.correct, verdict.objects_right, verdict.colours_right, verdict.position_right) == (
        False,
        True,
        False,
        True,
    )


@pytest.mark.parametrize("num_seen", [0, 1, 3])
def test_missing_and_extra_objects_are_wrong_and_their_colours_are_not_asked(num_seen: int) -> None:
    demand = Demand(kind="count", items=(("blue", "fish"),) * 2)
    verdict = judge([seen("blue", "fish", x=9.0 * i) for i in range(num_seen)], demand)
    assert (verdict.correct, verdict.count_right, verdict.colours_right) == (False, False, None)


def test_an_uncertain_thing_counts_but_matches_nothing() -> None:
    verdict = judge([seen("red", None)], Demand(kind="single", items=(("red", "car"),)))
    assert (verdict.correct, verdict.count_right, verdict.objects_right) == (False, True, False)
    assert not judge([seen(None, "car")], Demand(kind="single", items=(("red", "car"),))).correct


def test_prompts_are_unique_balanced_and_repeatable() -> None:
    demands = evaluation_demands(200, 3, CONFIG)
    assert len({demand.caption for demand in demands}) == 200
    assert Counter(demand.kind for demand in demands) == dict.fromkeys(KINDS, 50)
    assert evaluation_demands(200, 3, CONFIG) == demands
    assert evaluation_demands(80, 3, CONFIG) == demands[:80]
    assert evaluation_demands(200, 4, CONFIG) != demands


def test_prompts_show_pairs_of_training_only_unless_held_out_ones_are_wanted() -> None:
    unseen = held_out_pairs(CONFIG)
    assert not any(pair in unseen for demand in evaluation_demands(400, 0, CONFIG) for pair in demand.items)
    held_out = evaluation_demands(120, 0, CONFIG, held_out=True)
    assert all(demand.items[0] in unseen for demand in held_out)
    assert Counter(demand.kind for demand in held_out)["single"] == len(unseen)
    assert all(len({name for _, name in d.items}) == 2 for d in held_out if d.kind in ("two", "relation"))


def test_more_prompts_than_captions_is_refused() -> None:
    with pytest.raises(ValueError, match="only 86 different captions"):
        evaluation_demands(100, 0, SceneConfig(size=48, num_objects=16, kinds=("single",)))


def test_options_of_the_other_kind_of_model_are_refused(tiny_bundle, tiny_checkpoint):
    """A score under a wrong label would be believed."""
    with pytest.raises(RFError, match="is a bundle: its graphs draw with representation tokens"):
        evaluate_model(tiny_bundle, EvaluationOptions(num_prompts=1, without_rep=True))
    with pytest.raises(RFError, match="is no bundle: a checkpoint is drawn in fp32, and int8 was asked for"):
        evaluate_model(tiny_checkpoint, EvaluationOptions(num_prompts=1, precision="int8"))


def test_the_checker_scores_pictures_for_a_search() -> None:
    scenes = [make_scene(3, index, SceneConfig()) for index in range(12)]
    captions = [scene.demand.caption for scene in scenes]
    pictures = [scene.picture for scene in scenes]
    right, wrong = (
        CheckerScorer().score(pictures, captions),
        CheckerScorer().score(pictures, captions[1:] + captions[:1]),
    )
    assert sum(right) >= 11  # it accepts 99% of right pictures
    assert sum(wrong) <= 1
    with pytest.raises(RFError, match=r"cannot judge these pictures: expected a caption.*got 'a zebra'.*--score"):
        CheckerScorer().score(pictures[:1], ["a zebra"])
    with pytest.raises(RFError, match="cannot judge these pictures: pictures must be"):
        CheckerScorer().score([picture[:16, :24] for picture in pictures[:1]], captions[:1])


def test_every_demand_is_drawn_with_a_seed_of_its_own(pipeline, tiny_checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "BATCH", 2)
    demands = evaluation_demands(3, 0, SceneConfig(), False)
    for i, picture in enumerate(evaluate.draw_demands(pipeline, demands, 5)):
        *_, alone = pipeline.generate([demands[i].caption], seed=5 + i, previews=False)
        assert np.abs(picture.astype(int) - alone.picture).max() <= 2
    model = load_checkpoint(tiny_checkpoint)
    tokenizer = open_tokenizer(tiny_checkpoint, model.config)
    for i, picture in enumerate(evaluate._draw_eager(tiny_checkpoint, demands[:2], EvaluationOptions(seed=5))):
        alone, _ = draw_eager(model, tokenizer.encode(demands[i].caption, 99), 5 + i)
        assert (picture == alone).all()


def test_the_scorer_of_calibration_draws_the_first_prompts_of_the_evaluation(monkeypatch) -> None:
    drawn = []

    def draw(pipeline, demands, seed, *_):
        drawn.append((demands, seed))
        return iter([np.zeros((48, 48, 3), np.uint8)] * len(demands))

    monkeypatch.setattr(evaluate, "draw_demands", draw)
    steps = []
    pipeline = SimpleNamespace(precision="fp32")
    right = evaluate.scene_scorer(4, seed=3)(pipeline, lambda what, done, total: steps.append((what, done, total)))
    assert drawn == [(evaluation_demands(4, 0, SceneConfig(), False), 3)]
    assert right == [False] * 4
    assert steps == [("scene score in fp32", n, 4) for n in (1, 2, 3, 4)]
