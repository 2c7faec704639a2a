"""INT8 graphs, engines with windows, and execution providers draw in the native host what they draw in Python."""

import contextlib
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from exporting import CALIBRATION, CALIBRATION_PROMPTS

from calibration import calibrate, workbench
from engines import EngineConfig, build
from runtime import AnswerOptions, GenerationOptions, RFError
from runtime.native.binding import NativePipeline


@pytest.fixture(scope="module")
def int8_bundle(calibrated_bundle, tmp_path_factory):
    """INT8 graphs on fp32 and on fp16, and an engine of the former whose window is 3."""
    bundle = shutil.copytree(calibrated_bundle, tmp_path_factory.mktemp("int8") / "bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workbench, "_TURN_SECONDS", 0.001)
        config = replace(CALIBRATION, target="tensorrt")
        calibrate(bundle, CALIBRATION_PROMPTS[:4], config)
    build(bundle, EngineConfig(precision="int8", num_threads=1, window=3, allow_unverified=True))
    return bundle


def compare_drawings(python, ours, windows=(None, 1, 4)):
    """Tokens and pictures are equal, and nearly all pixels."""
    values = different = 0
    prompts = (["a red car"], ["two blue fish", "", "a red car"])
    for seed, window, prompt, greedy in product((0, 2**64 - 3), windows, prompts, (False, True)):
        options = GenerationOptions(num_steps=2, window=window, temperature=0.0 if greedy else 2.0)
        expected = list(python.generate(prompt, seed=seed, options=options, previews=False))[-len(prompt) :]
        for a, b in zip(expected, ours.draw_all(prompt, seed=seed, options=options), strict=True):
            assert np.array_equal(a.rep_ids, b.rep_ids)
            assert np.abs(a.pixels - b.pixels).max() <= 1e-4
            values += a.pixels.size
            different += int((a.pixels != b.pixels).sum())
    assert different <= 1e-3 * values


def compare_answers(python, ours):
    option = AnswerOptions(max_tokens=6, temperature=1.0)
    picture = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
    with contextlib.closing(ours.converse()) as other:
        one = python.converse()
        for each in (one, other):
            each.show(picture, height=24, width=24)
        for question in ("", "how many cats"):
            *_, expected = one.ask(question, seed=3, options=option)
            assert other.ask(question, seed=3, options=option).token_ids == expected.token_ids


@pytest.mark.parametrize("precision", ["int8", "int8-fp16"])
def test_int8_draws_and_answers_the_same(precision, int8_bundle, open_both):
    python, ours = open_both(int8_bundle, precision, allow_unverified=True)
    compare_drawings(python, ours)
    compare_answers(python, ours)


def test_an_engine_brings_its_window(int8_bundle, open_both):
    python, ours = open_both(int8_bundle, "int8", engine="auto", allow_unverified=True)
    assert ours.info()["engine"] == str(python.engine.path)
    assert python.engine.record.window == 3
    compare_drawings(python, ours)


def test_a_provider_is_given_the_memory_of_each_run(tiny_bundle, native, native_library):
    """The CPU as a provider that ONNX Runtime lists: on the way that a GPU takes."""
    loaded = {"num_threads": 1, "library": native_library, "provider": "CPUExecutionProvider"}
    with NativePipeline.load(tiny_bundle, **loaded) as provided:
        assert (provided.info()["provider"], provided.info()["engine"]) == ("CPUExecutionProvider", None)
        options = GenerationOptions(num_steps=3, window=3)
        prompts = ["a red car", "", "two blue fish"]
        drawn = (each.draw_all(prompts, seed=5, options=options) for each in (native, provided))
        for a, b in zip(*drawn, strict=True):
            assert np.array_equal(a.rep_ids, b.rep_ids)
            assert np.array_equal(a.picture, b.picture)


@pytest.mark.parametrize(
    ("provider", "plugin", "words"),
    [
        ("CUDA", None, "cannot run on the execution provider CUDA: "),
        ("TensorRT", None, "cannot run on the execution provider TensorRT: "),
        ("Abacus", None, "cannot run on the execution provider Abacus: "),
        ("Abacus", "/none/libabacus.so", "/none/libabacus.so"),
        (None, "/none/libabacus.so", "A provider_library needs the name of its execution provider"),
    ],
)
def test_a_provider_that_is_not_there_is_refused_in_a_sentence(provider, plugin, words, tiny_bundle, native_library):
    with pytest.raises(RFError) as raised:
        NativePipeline.load(
            tiny_bundle, engine="none", library=native_library, provider=provider, provider_library=plugin
        )
    assert words in str(raised.value)
    assert raised.value.kind == ("missing" if provider else "input")


def test_engines_are_for_the_cpu(int8_bundle, native_library):
    engine = next((int8_bundle / "engines").iterdir())
    with pytest.raises(RFError, match="Leave one of them out"):
        NativePipeline.load(int8_bundle, "int8", engine=engine, library=native_library, provider="CUDA")
