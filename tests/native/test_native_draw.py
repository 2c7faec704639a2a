"""The native host draws bit for bit what the Python runtime draws, and reports the same events."""

import shutil
import threading
from itertools import product

import numpy as np
import pytest

from engines import EngineConfig, build
from runtime import GenerationOptions, Pipeline, RFError
from runtime.errors import DrawingCancelledError
from runtime.events import StepEvent, TokenEvent

SEEDS = (0, 7, 2**32, 2**64 - 1)
PROMPTS = ("a red car", "", "Two blue FISH", "three green cats and a house")
SIZES = ({}, {"height": 8, "width": 32}, {"height": 32, "width": 32})
# Logarithms of the C library and of NumPy may round otherwise: then some noise differs in its last bit.
MOST_DIFFERENT, LARGEST_DIFFERENCE = 1e-3, 1e-4


def last(pipeline, prompts, seed, options, **more):
    events = list(pipeline.generate(prompts, seed=seed, options=options, previews=False, **more))
    return events[-len(prompts) :]


class Tally:
    """Counts values that differ; tokens never may."""

    def __init__(self):
        self.drawings = self.values = self.different = 0

    def compare(self, expected, found):
        assert np.array_equal(expected.rep_ids, found.rep_ids)
        assert np.abs(expected.pixels - found.pixels).max() <= LARGEST_DIFFERENCE
        assert np.abs(expected.picture.astype(int) - found.picture).max() <= 1
        self.drawings += 1
        self.values += expected.pixels.size
        self.different += int((expected.pixels != found.pixels).sum())

    def finish(self, record_property):
        record_property("differing values", f"{self.different} of {self.values} in {self.drawings} drawings")
        print(f"{self.drawings} drawings, {self.different} of {self.values} values differ")
        assert self.different <= MOST_DIFFERENT * self.values


@pytest.fixture(scope="module")
def fp16(open_both, tiny_bundle):
    return open_both(tiny_bundle, "fp16")


def grid():
    """Options over all that changes what is drawn."""
    plans = (
        {"num_steps": 2},
        {"num_steps": 3, "shift": 2.5, "guided": (0.0, 0.5)},
        {"times": (0.0, 0.3, 1.0), "pix_guidance_scale": 1.0},
        {"num_steps": 1, "rep_guidance_scale": 1.0, "guided": (0.2, 0.9)},
    )
    tokens = ({}, {"temperature": 0.0}, {"temperature": 2.5, "top_k": 3})
    for size, plan, token, window in product(SIZES, plans, tokens, (1, 3)):
        yield GenerationOptions(**size, **plan, **token, window=window)
    yield GenerationOptions(num_steps=2, plan="paper", window=5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_draws_the_same(precision, pipeline, native, fp16, record_property):
    python, ours = (pipeline, native) if precision == "fp32" else fp16
    tally = Tally()
    for number, options in enumerate(grid()):
        for shift in range(2):
            prompt, seed = PROMPTS[(number + shift) % 4], SEEDS[(number // 4 + shift) % 4]
            (expected,) = last(python, [prompt], seed, options)
            tally.compare(expected, *ours.draw_all([prompt], seed=seed, options=options))
    assert tally.drawings >= 140
    tally.finish(record_property)


def test_draws_several_prompts_at_once(pipeline, native, record_property):
    tally = Tally()
    for window in (1, 4):
        options = GenerationOptions(num_steps=2, window=window)
        drawn = native.draw_all(PROMPTS, seed=5, options=options)
        for expected, found in zip(last(pipeline, PROMPTS, 5, options), drawn, strict=True):
            assert (expected.index, expected.seed) == (found.index, found.seed)
            tally.compare(expected, found)
    tally.finish(record_property)


def test_goes_on_with_forced_tokens(pipeline, native, record_property):
    options, tally = GenerationOptions(num_steps=2, window=4), Tally()
    (free,) = last(pipeline, ["a red car"], 3, options)
    some = np.where(np.arange(free.rep_ids.size) % 2, -1, (free.rep_ids + 1) % 40)[None]
    for forced in (free.rep_ids[None], some):
        (expected,) = last(pipeline, ["a red car"], 3, options, rep_ids=forced)
        tally.compare(expected, *native.draw_all(["a red car"], seed=3, options=options, rep_ids=forced))
    tally.finish(record_property)


@pytest.mark.parametrize("window", [1, 3])
def test_reports_the_same_events(window, pipeline, native):
    prompts, options = ["a red car", "two fish"], GenerationOptions(num_steps=3, window=window)
    expected = list(pipeline.generate(prompts, seed=1, options=options))
    found = list(native.generate(prompts, seed=1, options=options))
    assert [type(each) for each in expected] == [type(each) for each in found]
    for a, b in zip(expected, found, strict=True):
        if isinstance(a, TokenEvent):
            assert (a.step, a.num_steps) == (b.step, b.num_steps)
            assert np.array_equal(a.rep_ids, b.rep_ids)
            assert np.allclose(a.logits, b.logits, atol=1e-5)
        elif isinstance(a, StepEvent):
            assert (a.step, a.num_steps, a.t, a.t_next) == (b.step, b.num_steps, b.t, b.t_next)
            assert np.allclose(a.x_next, b.x_next, atol=1e-5)
            assert np.allclose(a.x_pred, b.x_pred, atol=1e-5)


def test_cancels_at_every_event(native):
    options, total = GenerationOptions(num_steps=2, window=2), 6 + 2
    for stop in range(total):
        seen = []

        def on_event(event, seen=seen, stop=stop):
            seen.append(event)
            return len(seen) <= stop

        with pytest.raises(DrawingCancelledError):
            native.draw_all(["a red car"], options=options, on_event=on_event)
        assert len(seen) == stop + 1
    native.draw("a red car", options=options)


def test_an_exception_in_a_callback_comes_out(native):
    def on_event(event):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        native.draw_all(["a red car"], on_event=on_event)


def test_a_generator_that_is_dropped_ends_its_drawing(native):
    events = native.generate(["a red car"])
    next(events)
    events.close()
    assert not any(thread.name == "rf-native" for thread in threading.enumerate())


def test_threads_share_a_pipeline(native):
    options = GenerationOptions(num_steps=2)
    expected = native.draw("a red car", seed=9, options=options)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(native.draw("a red car", seed=9, options=options)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(np.array_equal(expected, each) for each in found)


def test_takes_an_engine_that_fits(tiny_bundle, tmp_path, open_both, record_property):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    build(bundle, EngineConfig(num_threads=1))
    python, ours = open_both(bundle, engine="auto", allow_unverified=True)
    assert ours.info()["engine"] == str(python.engine.path)
    tally = Tally()
    for seed, window in product((0, 2**64 - 1), (1, 3)):
        options = GenerationOptions(num_steps=2, window=window)
        (expected,) = last(python, ["a red car"], seed, options)
        tally.compare(expected, *ours.draw_all(["a red car"], seed=seed, options=options))
    tally.finish(record_property)


def test_takes_ids_in_place_of_a_text(pipeline, native):
    options = GenerationOptions(num_steps=1)
    ids = pipeline.model.tokenizer.encode("a red car", 99)
    assert native.tokenize("a red car") == ids
    (found,) = native.draw_all([ids], seed=4, options=options)
    assert np.array_equal(found.picture, native.draw("a red car", seed=4, options=options))
    for wrong in ([-1], [10**6], [2**63 - 1]):
        with pytest.raises(RFError, match="The ids of a prompt must be 0 to"):
            native.draw_all([wrong], options=options)


def test_modern_graphs_draw_the_same(modern_bundle, open_both, record_property):
    python, ours = open_both(modern_bundle, dialect="modern", allow_unverified=True)
    assert isinstance(python, Pipeline)
    tally = Tally()
    for prompts, window in product((PROMPTS[:1], PROMPTS[:3]), (1, 3)):
        options = GenerationOptions(num_steps=2, window=window)
        for expected, found in zip(
            last(python, prompts, 2, options), ours.draw_all(prompts, seed=2, options=options), strict=True
        ):
            tally.compare(expected, found)
    tally.finish(record_property)
