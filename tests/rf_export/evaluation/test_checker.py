"""The committed checker: sees what is there, refuses what is not, and needs neither torch nor onnxruntime."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from examples.checker.accuracy import render, spoil_one, wrong_demands
from examples.checker.practice import SPOILERS
from rf_export.evaluation.checker import FACTS_FILE, WEIGHTS_FILE, checker_from_bytes, load_checker
from rf_export.evaluation.metric import evaluation_demands, score_pictures
from rf_export.training.scenes import Demand, Item, SceneConfig, compose, make_scene

CONFIG = SceneConfig(size=48, num_objects=16, styles=("fluent-flat", "fluent-3d"))
DEMANDS = evaluation_demands(240, 11, CONFIG)
ITEMS, PICTURES = render(DEMANDS, 12, CONFIG)
CAR = Item(object="car", colour="red", style="fluent-3d", x=2, y=14, size=20)
TREE = Item(object="tree", colour="green", style="fluent-3d", x=26, y=12, size=20)
CAR_LEFT_OF_TREE = Demand(kind="relation", items=(("red", "car"), ("green", "tree")), relation="left of")


def accepts(items: tuple[Item, ...], demand: Demand) -> bool:
    return score_pictures(compose(items, 48)[None], [demand]).verdicts[0].correct


@pytest.mark.parametrize("held_out", [False, True])
def test_real_scenes_of_unseen_seeds_are_accepted(held_out: bool) -> None:
    scenes = [make_scene(987_654, i, CONFIG, held_out=held_out) for i in range(300)]
    score = score_pictures(np.stack([s.picture for s in scenes]), [s.demand for s in scenes])
    assert score.overall.value >= 0.97
    assert min(rate.value for rate in score.kinds.values()) >= 0.95
    assert sum(rate.num for rate in score.kinds.values()) == score.overall.num == 300


def test_wrong_captions_are_refused() -> None:
    rng = np.random.default_rng(0)
    wrong = [wrong_demands(rng, demand, CONFIG) for demand in DEMANDS]
    kinds = {name for demands in wrong for name in demands}
    assert kinds == {"colour", "object", "count", "colours swapped", "relation"}
    for name in sorted(kinds):
        chosen = [i for i, demands in enumerate(wrong) if name in demands]
        score = score_pictures(PICTURES[chosen], [wrong[i][name] for i in chosen])
        assert score.overall.value <= 0.02, name


def test_the_right_picture_is_accepted_and_its_changed_twins_are_not() -> None:
    assert accepts((CAR, TREE), CAR_LEFT_OF_TREE)
    assert not accepts((replace(CAR, colour="green"), replace(TREE, colour="red")), CAR_LEFT_OF_TREE)
    assert not accepts((replace(CAR, x=26), replace(TREE, x=2)), CAR_LEFT_OF_TREE)
    assert not accepts((CAR,), CAR_LEFT_OF_TREE)
    assert not accepts((TREE,), CAR_LEFT_OF_TREE)
    assert not accepts((CAR, replace(TREE, object="mushroom")), CAR_LEFT_OF_TREE)


def test_an_extra_object_is_refused() -> None:
    small = replace(CAR, size=18, x=2, y=2), replace(TREE, size=18, x=28, y=2)
    extra = Item(object="fish", colour="blue", style="fluent-flat", x=15, y=28, size=18)
    assert accepts(small, CAR_LEFT_OF_TREE)
    assert not accepts((*small, extra), CAR_LEFT_OF_TREE)


def test_white_and_noise_show_nothing() -> None:
    rng = np.random.default_rng(5)
    white = np.full((1, 48, 48, 3), 255, np.uint8)
    noise = rng.integers(0, 256, (20, 48, 48, 3), np.uint8)
    coarse = rng.integers(0, 256, (20, 12, 12, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    empty = np.concatenate([white, noise, coarse])
    score = score_pictures(empty, DEMANDS[: len(empty)])
    assert score.overall.successes == 0
    assert sum(bool(verdict.seen) for verdict in score.verdicts) <= 1


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_a_spoilt_object_does_not_count(spoiler: str) -> None:
    rng = np.random.default_rng(6)
    num = 100
    pictures = np.stack([spoil_one(rng, items, spoiler, CONFIG) for items in ITEMS[:num]])
    assert score_pictures(pictures, DEMANDS[:num]).overall.value <= 0.1


def test_pictures_that_cannot_be_judged_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[n, 48, 48, 3\]"):
        score_pictures(np.zeros((1, 64, 64, 3), np.uint8), DEMANDS[:1])
    with pytest.raises(ValueError, match="one demand per picture"):
        score_pictures(PICTURES[:2], DEMANDS[:1])
    with pytest.raises(ValueError, match="does not know"):
        score_pictures(PICTURES[:1], [Demand(kind="single", items=(("red", "camera"),))])


def test_every_score_carries_the_figures_of_the_checker() -> None:
    score = score_pictures(PICTURES[:8], DEMANDS[:8]).as_dict()
    assert score["checker"]["accepted"]["overall"]["value"] >= 0.97
    assert score["checker"]["wrongly_accepted"]["captions"]["overall"]["value"] <= 0.01
    assert set(score) == {"overall", "kinds", "aspects", "checker"}
    json.dumps(score, allow_nan=False)


def test_the_committed_files_are_small_and_belong_together() -> None:
    facts = json.loads(FACTS_FILE.read_text())
    weights = WEIGHTS_FILE.read_bytes()
    assert len(weights) < 1_000_000
    assert tuple(facts["config"]["objects"]) == CONFIG.objects
    with pytest.raises(ValueError, match="figures are of"):
        checker_from_bytes(weights[:-1] + bytes([weights[-1] ^ 1]), facts)
    with pytest.raises(ValueError, match="train it again"):
        checker_from_bytes(weights, facts | {"data_version": "scenes-0"})
    assert load_checker() is load_checker()


def test_scoring_needs_neither_torch_nor_onnxruntime() -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(["torch", "onnx", "onnxruntime"]))
import numpy as np
from rf_export.evaluation.metric import evaluation_demands, score_pictures
from rf_export.training.scenes import SceneConfig
print(score_pictures(np.full((4, 48, 48, 3), 255, np.uint8), evaluation_demands(4, 0, SceneConfig())))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^overall +0\.0%", done.stdout, re.MULTILINE)
