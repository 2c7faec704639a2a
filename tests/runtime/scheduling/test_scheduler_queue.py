"""Requests are cancelled in every state, and wait for a place; memory is for what is in flight."""

import threading
from concurrent.futures import CancelledError

import msgspec
import pytest
from stepping import FEW, Stepped, Watched, check_same_picture, wait_until, with_sessions

from runtime import GenerationOptions, RFError, Scheduler
from runtime.commands.memory_plan import cache_bytes
from runtime.scheduling.prefixes import CacheMemory
from runtime.signature import Variant

# Cancelling


@pytest.mark.parametrize("moment", ["queued", "tokens", "between", "pixels", "done"])
def test_a_request_is_cancelled_in_every_state(pipeline, prompts, alone, moment):
    stepped = Stepped(pipeline, max_batch=2)
    other = stepped.submit(prompts[0], seed=1)
    handle = stepped.submit(prompts[1], seed=2, options=GenerationOptions(num_steps=4))
    if moment == "tokens":
        stepped.step(3)
        assert handle.status == "tokens"
    elif moment == "between":
        stepped.step_until(handle, "pixels")
        assert not stepped.pixels[0].jobs
    elif moment == "pixels":
        stepped.step_until(handle, "pixels")
        stepped.step(2)
        assert handle in [job.handle for job in stepped.pixels[0].jobs]
    elif moment == "done":
        stepped.finish()
    late = stepped.submit(prompts[2], seed=3)
    assert handle.cancel() is (moment != "done")
    assert not handle.cancel()
    if moment == "done":
        assert handle.result().prompt == prompts[1]
    else:
        assert handle.status == "cancelled"
        assert list(handle) == []
        with pytest.raises(CancelledError):
            handle.result()
    stepped.finish()
    for each in (other, late):
        check_same_picture(each.result(), alone(each.request.prompt, each.request.seed, FEW)[-1])
    assert not stepped.dispatcher._jobs()
    assert not stepped.tokens._laid_out
    assert not stepped.pixels[0]._laid_out


@pytest.mark.parametrize("num_pixel_steps", [0, 1])
def test_a_cancelled_request_runs_no_more(pipeline, prompts, num_pixel_steps):
    rows = []
    watched = Watched(pipeline.sessions["denoiser"], lambda inputs: rows.append(len(inputs["t"])))
    stepped = Stepped(with_sessions(pipeline, denoiser=watched))
    handles = [stepped.submit(prompt, seed) for seed, prompt in enumerate(prompts[:2])]
    stepped.step_until(handles[0], "pixels")
    stepped.step(num_pixel_steps)
    handles[1].cancel()
    stepped.finish()
    assert rows == [2] * num_pixel_steps + [1] * (3 - num_pixel_steps)


@pytest.mark.parametrize("graph", ["rep_decoder", "denoiser"])
def test_a_request_that_is_cancelled_during_a_run_stays_cancelled(pipeline, prompts, alone, graph):
    handles = []
    watched = Watched(pipeline.sessions[graph], lambda inputs: handles[0].cancel())
    stepped = Stepped(with_sessions(pipeline, **{graph: watched}))
    handles += [stepped.submit(prompt, seed, GenerationOptions(num_steps=1)) for seed, prompt in enumerate(prompts[:2])]
    stepped.finish()
    assert handles[0].status == "cancelled"
    assert list(handles[0]) == []
    check_same_picture(handles[1].result(), alone(prompts[1], 1, GenerationOptions(num_steps=1))[-1])


def test_cancelling_wakes_those_who_wait_for_it(pipeline, prompts):
    held = threading.Event()
    watched = Watched(pipeline.sessions["rep_decoder"], lambda inputs: held.wait())
    with Scheduler(with_sessions(pipeline, rep_decoder=watched)) as scheduler:
        handle = scheduler.submit(prompts[0], options=FEW)
        seen = []
        reader = threading.Thread(target=lambda: seen.append(list(handle)))
        reader.start()
        assert handle.cancel()
        reader.join(timeout=10)
        assert seen == [[]]
        held.set()


# The queue


def test_a_full_queue_refuses(pipeline, prompts):
    stepped = Stepped(pipeline, max_batch=1, max_queue=2)
    stepped.submit(prompts[0])
    stepped.step()
    stepped.submit(prompts[1])
    queued = stepped.submit(prompts[2])
    with pytest.raises(RFError, match=r"The queue is full: 2 requests wait already\. Submit it later, or with"):
        stepped.submit(prompts[3])
    queued.cancel()
    stepped.submit(prompts[3])  # its place is free at once
    assert len(stepped.finish()) == 3


def test_a_full_queue_can_be_waited_for(pipeline, prompts):
    permits = threading.Semaphore(0)
    watched = Watched(pipeline.sessions["rep_decoder"], lambda inputs: permits.acquire())
    with Scheduler(with_sessions(pipeline, rep_decoder=watched), max_batch=1, max_queue=1) as scheduler:
        first = scheduler.submit(prompts[0], options=FEW)
        wait_until(lambda: first.status == "tokens")
        scheduler.submit(prompts[1], options=FEW)
        with pytest.raises(RFError, match="The queue is full: 1 requests"):
            scheduler.submit(prompts[2], options=FEW)
        handles = []
        waiting = threading.Thread(
            target=lambda: handles.append(scheduler.submit(prompts[2], options=FEW, when_full="wait"))
        )
        waiting.start()
        waiting.join(timeout=0.1)
        assert waiting.is_alive()
        permits.release(100)
        waiting.join(timeout=10)
        assert handles[0].result(timeout_s=10).prompt == prompts[2]


def test_no_more_are_in_flight_than_the_buffers_are_for(pipeline, prompts):
    stepped = Stepped(pipeline, max_batch=2)
    buffers = []
    for _ in range(2):
        for seed in range(12):
            stepped.submit(prompts[seed % 4], seed, GenerationOptions(num_steps=9))
        while not all(handle.ended for handle in stepped.handles):
            stepped.step()
            assert len(stepped.tokens.jobs) + len(stepped.dispatcher._waiting) <= 2
            assert len(stepped.pixels[0].jobs) <= 2
        buffers.append([batch._memory._values for batch in (stepped.tokens, *stepped.pixels)])
    for first, again in zip(*buffers, strict=True):
        assert first is again  # they grow no more


def test_a_batch_takes_memory_for_what_it_draws_and_not_for_the_longest_text_of_the_model(pipeline, prompts, alone):
    large = msgspec.structs.replace(pipeline.bundle.manifest.model, max_positions=2**40)
    stepped = Stepped(pipeline, model=large)
    for seed, prompt in enumerate(prompts):
        stepped.submit(prompt, seed)
    for event in stepped.finish():
        check_same_picture(event, alone(event.prompt, event.seed, FEW)[-1])
    slots = 5 + 6 + 1  # the longest text and all tokens
    for batch in (stepped.tokens, *stepped.pixels):
        assert batch._memory._values.nbytes <= 2 * cache_bytes(large, "fp32", len(prompts), slots)


def test_cache_memory_grows_to_what_is_cut_and_no_further_than_its_limit(pipeline):
    model = pipeline.bundle.manifest.model
    memory = CacheMemory(model, Variant("fp32"), 4, 10)
    assert memory._values.size == 0
    first = memory.cut(2, 4).values
    first.fill(1)
    assert memory._values.size == first.size
    second = memory.cut(2, 6).values
    second.fill(2)
    assert (first == 1).all()  # where it was
    assert not memory.cut(4, 5).values.any()
    assert memory._values.size == cache_bytes(model, "fp32", 2, 10) // 4
    values = memory._values
    memory.clear()
    assert not memory.cut(4, 10).values.any()
    assert memory._values is values
