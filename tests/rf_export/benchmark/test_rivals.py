"""Other libraries draw and answer over our graphs what ours does, and say nothing to anybody."""

import subprocess
import sys

import numpy as np
import pytest

from rf_export.benchmark import aotinductor, openvino
from rf_export.benchmark.compiled import Compiled, CompiledReader
from rf_export.benchmark.task import RIVALS, BenchOptions, open_task, rival_candidates
from rf_export.benchmark.workload import DrawingWork, ReadingWork
from rf_export.checkpoint import load_checkpoint
from runtime.options import GenerationOptions
from verification.measures.metrics import psnr_db


@pytest.fixture(scope="module", params=["openvino", pytest.param("aotinductor", marks=pytest.mark.slow)])
def rival(request, pipeline, tiny_checkpoint):
    if request.param == "aotinductor":
        if why := aotinductor.why_not():
            pytest.skip(why)
        return aotinductor.aotinductor_pipeline(pipeline, load_checkpoint(tiny_checkpoint).requires_grad_(False))
    pytest.importorskip("openvino", reason="pip install 'rf-export[rivals]'")
    return openvino.openvino_pipeline(pipeline, openvino.OPENVINO_KINDS[0], 1)


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(num_steps=3),
        GenerationOptions(num_steps=4, guided=(0.0, 0.5), window=4),
        GenerationOptions(num_steps=2, rep_guidance_scale=1, pix_guidance_scale=1),
    ],
    ids=["paper", "interval and window", "unguided"],
)
def test_a_rival_draws_what_we_draw(pipeline, rival, options) -> None:
    work = DrawingWork.of(pipeline.bundle.manifest, 7, options)
    ours, theirs = (Compiled(each, work) for each in (pipeline, rival))
    for _ in range(2):
        for drawer in (ours, theirs):
            drawer.prefill()
        assert (ours.draw_tokens() == theirs.draw_tokens()).all()
        assert psnr_db(theirs.denoise(options.num_steps), ours.denoise(options.num_steps)) > 100


def test_a_rival_answers_what_we_answer(pipeline, rival) -> None:
    questions = ReadingWork.of(pipeline.bundle.manifest, 5, 9)
    ours, theirs = (CompiledReader(each, questions) for each in (pipeline, rival))
    for reader in (ours, theirs):
        reader.prepare()
    assert theirs.words() == ours.words()
    assert theirs.second_question() == ours.second_question()
    assert np.allclose(theirs.encode(), ours.encode(), atol=1e-5)


def test_openvino_comes_without_its_sender_of_usage_data() -> None:
    pytest.importorskip("openvino", reason="pip install 'rf-export[rivals]'")
    code = (
        "import sys; from rf_export.benchmark.openvino import _core; _core();"
        "import openvino.tools.ovc.telemetry_utils as t;"
        "print(sys.modules['openvino_telemetry'], t.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "openvino.tools.ovc.telemetry_stub"]


def test_a_rival_that_is_not_installed_is_left_out_with_the_command(tiny_bundle, tiny_checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(aotinductor.shutil, "which", lambda name: None)
    task = open_task(tiny_bundle, tiny_checkpoint, BenchOptions(rivals=RIVALS))
    assert rival_candidates(task, 1) == {}
    assert task.left_out["aotinductor"] == "it needs a C++ compiler: apt-get install g++"
    assert task.left_out["openvino"] == "it is not installed: pip install 'rf-export[rivals]'"
