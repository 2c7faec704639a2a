"""The checker's training: repeatable pictures and targets, the two networks agree, and it learns."""

import numpy as np
import torch

from examples.checker.practice import SPOILERS, draw_looks, practice_batch
from examples.checker.train import STYLES, Detector, TrainingConfig, train
from rf_export.evaluation.checker import CELL, checker_scenes, run_network

SCENES = checker_scenes(STYLES)


def test_practice_depends_on_seed_and_step_only() -> None:
    first, again, other = (practice_batch(0, step, 6, SCENES) for step in (4, 4, 5))
    assert np.array_equal(first.pictures, again.pictures)
    assert np.array_equal(first.heat, again.heat)
    assert not np.array_equal(first.pictures, other.pictures)


def test_targets_point_from_every_hot_cell_to_the_same_centre() -> None:
    batch = practice_batch(1, 0, 40, SCENES)
    assert batch.heat.max() > 0.78
    for row, i, j in np.argwhere(batch.heat > 0.7):
        x, y = (np.array([j, i]) + 0.5 + batch.offset[row, i, j]) * CELL
        assert 8 <= x <= 40
        assert 8 <= y <= 40
        assert np.hypot(*batch.offset[row, i, j]) < 0.85


def test_spoilt_sprites_show_something() -> None:
    rng = np.random.default_rng(0)
    for spoil in SPOILERS.values():
        art = spoil(rng, draw_looks(rng, 1, SCENES)[0], 24, SCENES)
        assert art.shape[0] == art.shape[1]
        assert art.shape[2] == 4
        assert 1 < art[..., 3].sum() <= art.shape[0] ** 2


def test_the_folded_network_in_numpy_equals_the_one_in_torch() -> None:
    torch.manual_seed(0)
    detector = Detector(25)
    pictures = practice_batch(2, 0, 8, SCENES).pictures
    ink = 1 - torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        for _ in range(3):
            detector(ink)  # moves the running statistics away from 0 and 1
        expected = detector.eval()(ink).permute(0, 2, 3, 1).numpy()
    weights = {name: value.astype(np.float32) for name, value in detector.folded_weights().items()}
    # float16 weights: 5e-4 relative per weight, seven layers
    np.testing.assert_allclose(run_network(weights, pictures), expected, atol=2e-2)


def test_training_is_repeatable_and_learns() -> None:
    def losses() -> list[float]:
        torch.manual_seed(0)
        config = TrainingConfig(num_steps=12, batch_size=8, warmup_steps=2)
        return list(train(config, SCENES, Detector(3 + 6 + 16)))

    first = losses()
    assert first == losses()
    assert np.mean(first[-3:]) < np.mean(first[:3])
