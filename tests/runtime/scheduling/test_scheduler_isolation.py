"""Nothing of a request shows in another one, whatever fails, is freed, or comes and goes."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepping import FEW, Stepped, Watched, check_same_events, check_same_picture, stepped_events, with_sessions

from runtime import GenerationOptions, PictureEvent, RFError
from runtime.backends.host.cache import KVCache
from runtime.scheduling.prefixes import CacheMemory, copy_row, lay_out
from runtime.signature import Variant


def test_freed_rows_and_slots_never_reach_another_request(pipeline, prompts, options, alone, poison):
    stepped = Stepped(pipeline, max_batch=3)
    asked = [(prompt, seed, each) for seed, (each, prompt) in enumerate(itertools.product(options, prompts))]
    for count, each in enumerate(asked):
        stepped.submit(*each)
        stepped.step(3)
        if count % 5 == 4:
            stepped.handles[-1].cancel()
    stepped.finish()
    done = [handle for handle in stepped.handles if handle.status == "done"]
    assert len(done) == 23
    for handle in done:
        check_same_picture(handle.result(), alone(*asked[stepped.handles.index(handle)])[-1])


def poisoned_request(pipeline, value):
    """A pipeline on which the keys and values of every request with top_k 7 are not finite."""

    def spoil(inputs, outputs):
        (rows,) = np.nonzero(inputs["top_k"] == 7)
        for name, array in outputs.items():
            if name.startswith("present"):
                array[rows] = array[inputs["uncond_rows"][rows]] = value

    return with_sessions(pipeline, rep_decoder=Watched(pipeline.sessions["rep_decoder"], after=spoil))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_request_whose_numbers_overflow_fails_alone(pipeline, prompts, alone, value):
    stepped = Stepped(poisoned_request(pipeline, value), max_batch=3)
    bad = GenerationOptions(num_steps=3, top_k=7)
    asked = [(prompts[seed % 4], seed, bad if seed % 3 == 1 else FEW) for seed in range(9)]
    handles = [stepped.submit(*each) for each in asked]
    stepped.finish()
    for handle, each in zip(handles, asked, strict=True):
        if each[2] is bad:
            assert handle.status == "failed"
            with pytest.raises(RFError, match="The numbers overflowed in fp32"):
                handle.result()
            with pytest.raises(RFError, match="The numbers overflowed in fp32"):
                list(handle)
        else:
            check_same_picture(handle.result(), alone(*each)[-1])


@pytest.mark.parametrize("graph", ["text_decoder", "rep_decoder", "denoiser"])
def test_a_run_that_breaks_fails_its_batch_and_the_others_go_on(pipeline, prompts, alone, graph):
    breaks = [True]

    def fail(inputs):
        if breaks and len(inputs["row_starts"]) > 2 - (graph != "rep_decoder"):
            breaks.clear()
            raise MemoryError("no memory")

    sessions = with_sessions(pipeline, **{graph: Watched(pipeline.sessions[graph], fail)})
    stepped = Stepped(sessions, max_batch=2)
    handles = [stepped.submit(prompt, 5) for prompt in (prompts[0], prompts[1], prompts[2], prompts[3])]
    stepped.finish()
    for handle in handles[:2]:
        with pytest.raises(MemoryError, match="no memory"):
            handle.result()
    for handle in handles[2:]:
        check_same_picture(handle.result(), alone(handle.request.prompt, 5, FEW)[-1])


def test_what_the_receiver_does_to_an_event_does_not_matter(pipeline, prompts, alone):
    stepped = Stepped(pipeline)
    handle = stepped.submit(prompts[0], seed=2)
    while not handle.ended:
        stepped.step()
        for event in stepped_events(handle):
            for value in vars(event).values():
                if isinstance(value, np.ndarray) and not isinstance(event, PictureEvent):
                    value.fill(0)
    check_same_events([handle.result()], alone(prompts[0], 2, FEW)[-1:])


def test_a_laid_out_cache_holds_what_its_rows_see_and_zeros(pipeline):
    model = pipeline.bundle.manifest.model
    rng = np.random.default_rng(0)
    memory = CacheMemory(model, Variant("fp32"), 4, 10)
    rows = []
    for length in (5, 3, 0):
        cache = KVCache(model, Variant("fp32"), 2, 8)
        cache.lengths[1] = length
        cache.values[:] = rng.normal(size=cache.values.shape)
        rows.append(copy_row(cache, 1))
    for _ in range(2):
        memory.clear()
        laid_out = lay_out(memory, rows, 9)
        assert laid_out.lengths.tolist() == [5, 3, 0]
        assert laid_out.values.shape[1:4:2] == (3, 9)
        for row, values in enumerate(rows):
            length = values.shape[2]
            np.testing.assert_array_equal(laid_out.values[:, row, :, :length], values)
            assert not laid_out.values[:, row, :, length:].any()
        memory._values.fill(np.nan)


# Any order of arrivals and cancels


ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 3), st.integers(0, 6), st.integers(0, 2)),
    st.tuples(st.just("step"), st.integers(1, 12)),
    st.tuples(st.just("cancel"), st.integers(0, 19)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, max_size=25), max_batch=st.integers(1, 4), num_pixel_batches=st.integers(1, 3))
def test_any_schedule_gives_everyone_the_picture_that_he_gets_alone(
    pipeline, prompts, options, alone, poison, actions, max_batch, num_pixel_batches
):
    stepped = Stepped(pipeline, max_batch, max_queue=3, num_pixel_batches=min(num_pixel_batches, max_batch))
    asked = []
    for name, *values in actions:
        if name == "submit":
            each = prompts[values[0]], values[2], options[values[1]]
            if len(stepped.dispatcher._queue) < 3:
                stepped.submit(*each)
                asked.append(each)
            else:
                with pytest.raises(RFError, match="The queue is full"):
                    stepped.submit(*each)
        elif name == "step":
            stepped.step(values[0])
        elif values[0] < len(stepped.handles):
            stepped.handles[values[0]].cancel()
    stepped.finish()
    for handle, each in zip(stepped.handles, asked, strict=True):
        assert handle.status in ("done", "cancelled")
        if handle.status == "done":
            events = list(handle)
            assert [type(event) for event in events] == [type(event) for event in alone(*each)]
            check_same_picture(events[-1], alone(*each)[-1])
    stepped.dispatcher.close("finish")
    assert not stepped.dispatcher.step()
    assert not stepped.dispatcher._jobs()
