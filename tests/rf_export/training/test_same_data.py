"""Scenes and questions of one version never change: checkpoints of different days learnt from the same ones."""

import hashlib

import pytest

from rf_export.training.questions import QUESTIONS_VERSION, kinds_for, questions_about
from rf_export.training.scenes import DATA_VERSION, SceneConfig, make_scene


@pytest.mark.parametrize(
    ("config", "held_out", "digest"),
    [
        (SceneConfig(), False, "521cd50944b63b21"),
        (SceneConfig(), True, "5c7ef52175a81444"),
        (SceneConfig(size=96, styles=("noto", "fluent-3d")), False, "ace46716c003451a"),
        (SceneConfig(size=32, num_objects=3), False, "71628854835ff000"),
    ],
)
def test_scenes_and_questions_are_those_of_their_version(config, held_out, digest):
    assert (DATA_VERSION, QUESTIONS_VERSION) == ("scenes-1", "questions-1"), "a new version has new digests"
    found = hashlib.sha256()
    for index in range(60):
        scene = make_scene(7, index, config, held_out=held_out)
        found.update(f"{scene.demand}|{scene.items}|{kinds_for(scene)}".encode())  # pixels depend on Pillow
        for question in questions_about(scene, 7, index, 4, config):
            found.update(f"{question.text}|{question.answer}".encode())
    assert found.hexdigest()[:16] == digest
