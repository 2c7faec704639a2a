"""With more than one thread every contender has a process of its own, and baselines keep to the plan."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from rf_export.benchmark.baseline import Baseline
from rf_export.benchmark.contenders import STAGES, draw_reference
from rf_export.benchmark.entrants import Local, Remote, entrants
from rf_export.benchmark.selection import baseline_spellings
from rf_export.benchmark.task import BenchOptions, open_task
from rf_export.benchmark.workload import DrawingWork
from rf_export.checkpoint import load_checkpoint
from runtime.bundle.folder import open_bundle
from runtime.errors import RFError
from runtime.options import GenerationOptions, Plan
from verification.measures.metrics import psnr_db
from verification.measures.timing import timed

PLAN = Plan(times=(0.0, 0.2, 0.5, 0.8, 1.0), guided=(0.1, 0.6))
SPELLINGS = [each for each in baseline_spellings(compiled=False, layouts=("in_out",)) if each.dtype == torch.float32]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda each: each.name)
@pytest.mark.parametrize("scale", [None, 1.0])
def test_baselines_draw_by_a_plan_what_the_reference_draws(spelling, scale, tiny_bundle, tiny_checkpoint) -> None:
    options = GenerationOptions(plan=PLAN, rep_guidance_scale=scale)
    work = DrawingWork.of(open_bundle(tiny_bundle).manifest, 7, options)
    model = load_checkpoint(tiny_checkpoint)
    baseline = Baseline(model, work, spelling)
    assert [baseline.num_rows(step) for step in range(4)] == [1, 2, 2, 1]
    baseline.prefill()
    ids, pixels = baseline.draw_tokens(), baseline.denoise(4)
    expected = draw_reference(model, work, 4)
    assert (ids == expected.rep_ids.numpy()).all()
    assert psnr_db(pixels, expected.pixels.numpy()) > 100
    always = draw_reference(
        model, DrawingWork.of(open_bundle(tiny_bundle).manifest, 7, replace(options, guided=(0, 1))), 4
    )
    assert psnr_db(pixels, always.pixels.numpy()) < 60, "the interval decides what is drawn"


@pytest.fixture(scope="module")
def task(tiny_bundle, tiny_checkpoint):
    return open_task(tiny_bundle, tiny_checkpoint, BenchOptions(precisions=("fp32",), compile=False, plan=PLAN))


def test_with_two_threads_every_contender_has_its_own_process(task) -> None:
    with entrants(task, 2, lambda what: None, plain=True) as (found, trials):
        assert [each.name for each in found] == ["onnx fp32", "eager fp32"]
        assert all(isinstance(each, Remote) for each in found)
        pids = {each._process.pid for each in found}
        assert len(pids | {os.getpid()}) == 3 and trials == {}
        for each in found:
            assert each.agreement()["passed"]
            for stage in (*STAGES, "next_word"):
                assert min(timed(lambda each=each, stage=stage: each.turn(stage))) > 0
        with pytest.raises(RFError, match=r"The process of onnx fp32 failed: KeyError: 'dreams'.*--threads 1"):
            found[0].turn("dreams")
        processes = [each._process for each in found]
    assert not any(process.is_alive() for process in processes)


def test_with_one_thread_all_stay_here(task) -> None:
    with entrants(task, 1, lambda what: None, plain=True) as (found, _):
        assert [type(each) for each in found] == [Local, Local]
        found[0].prepare()
        assert found[0].turn("denoise_step") == 2


def test_what_a_process_measured_itself_is_taken_as_it_is() -> None:
    assert timed(lambda: (3.0, 4.0)) == (3.0, 4.0)
    assert np.isclose(timed(lambda: 10)[0], 0, atol=0.1)
