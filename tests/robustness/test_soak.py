"""A thousand pictures and answers in one process leave memory, files and threads as they were; many threads share one
pipeline and get what each gets alone."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import soak
from hypothesis import given
from hypothesis import strategies as st

from runtime import GenerationOptions, Pipeline, Scheduler, save_png
from runtime.options import AnswerOptions
from runtime.pictures.png import read_parameters

FEW = GenerationOptions(num_steps=2)


@given(st.integers(0, 10**6), st.lists(st.integers(-3000, 3000), min_size=30, max_size=30))
def test_the_slope_is_found_through_noise(per_round, noise):
    rounds = list(range(0, 3000, 100))
    values = [10**8 + per_round * number + error for number, error in zip(rounds, noise, strict=True)]
    assert soak.slope(values, rounds) == pytest.approx(per_round, abs=30)
    assert soak.slope([*values[:-1], 10**10], rounds) == pytest.approx(per_round, abs=60), "one jump is no leak"


LEAKING = """
import json, sys
from pathlib import Path
import numpy as np
import soak
from runtime import Pipeline
kept, draw = [], Pipeline.draw
def leaking(self, *arguments, **options):
    picture = draw(self, *arguments, **options)
    kept.append(picture.astype(np.float32))
    return picture
Pipeline.draw = leaking
result = soak.soak(Path(sys.argv[1]), "fp32", pictures=300, questions=4, steps=1)
print(json.dumps({"problems": soak.problems(result), "growth": result["pictures"]["bytes_per_round"],
                  "leak": kept[0].nbytes}))
"""


def test_a_leak_of_one_array_per_picture_is_found(tiny_bundle: Path) -> None:
    """In a process of its own: memory that other tests have given back would take the leak in unseen."""
    done = subprocess.run(
        [sys.executable, "-c", LEAKING, tiny_bundle],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    result = json.loads(done.stdout)
    assert result["growth"] > 0.6 * result["leak"], "three of four rounds draw so"
    assert any("pictures: memory grows" in problem for problem in result["problems"]), result


@pytest.mark.slow
def test_a_thousand_pictures_and_answers_leave_nothing(tiny_bundle: Path) -> None:
    result = soak.soak(tiny_bundle, "fp32", pictures=2000, questions=1000, steps=2)
    assert soak.problems(result) == [], result


def test_threads_that_draw_ask_schedule_and_save_at_once_get_what_each_gets_alone(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """One pipeline, one scheduler, one file: as a server uses them."""
    picture = pipeline.draw("a red car", seed=99, options=FEW)

    def draw(seed: int) -> bytes:
        return pipeline.draw("a red car", seed=seed, options=FEW).tobytes()

    def ask(seed: int) -> bytes:
        conversation = pipeline.converse()
        conversation.show(picture)
        options = AnswerOptions(max_tokens=4, temperature=1.0)
        return b"".join(event.logits.tobytes() for event in list(conversation.ask(seed=seed, options=options))[:-1])

    def save(seed: int) -> bytes:
        save_png(tmp_path / "one.png", picture, {"seed": seed})
        assert read_parameters(tmp_path / "one.png")["seed"] < 8
        return b""

    works = [draw, ask, save]
    expected = {(work, seed): work(seed) for work in works for seed in range(4)}
    found = {}

    def run(number: int) -> None:
        for turn in range(6):
            work, seed = works[(number + turn) % 3], (number * turn) % 4
            found[number, turn] = (work, seed, work(seed))

    with Scheduler(pipeline, max_batch=2) as scheduler:
        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        handles = [scheduler.submit("a red car", seed=seed, options=FEW) for seed in range(4)]
        for thread in threads:
            thread.join(timeout=120)
        scheduled = [handle.result(timeout_s=120).picture.tobytes() for handle in handles]
    assert len(found) == 36
    for work, seed, result in found.values():
        assert result == expected[work, seed], (work.__name__, seed)
    assert scheduled == [expected[draw, seed] for seed in range(4)]
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
