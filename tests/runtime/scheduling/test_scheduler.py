"""Many requests drawn together, on a tiny real bundle: each gets the picture that it would get alone.

Most tests step the dispatcher themselves, so that who joins, leaves and cancels when is exact; the others run
the scheduler's threads.
"""

import gc
import itertools
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import GenerationOptions, PictureEvent, Pipeline, RFError, Scheduler, StepEvent, TokenEvent
from runtime.backends.host.cache import KVCache
from runtime.commands.memory_plan import cache_bytes
from runtime.scheduling.batches import Job, PixelBatch, TokenBatch
from runtime.scheduling.dispatch import Dispatcher
from runtime.scheduling.handle import DrawingHandle
from runtime.scheduling.prefixes import CacheMemory, copy_prefix, lay_out
from runtime.signature import Variant

# Together with others a request's rows start at another slot, so that the attention sums in another order.
# Measured: 5e-6 of 2 at most, which is 128 dB.
MIN_PSNR_DB = 100

FEW = GenerationOptions(num_steps=3)


@pytest.fixture(scope="module")
def prompts(words):
    """Of five, one, no and two words."""
    return [" ".join(words[:5]), words[5], "", " ".join(words[6:8])]


@pytest.fixture(scope="module")
def options(pipeline):
    """Ways to draw that differ in everything: two sizes of pictures, and steps, guidance, temperature, top-k."""
    cell = pipeline.bundle.manifest.model.cell
    return [
        FEW,
        GenerationOptions(num_steps=1, temperature=0.5, top_k=5),
        GenerationOptions(num_steps=4, rep_guidance_scale=0.0, pix_guidance_scale=1.5),
        GenerationOptions(height=cell, width=2 * cell, num_steps=2, temperature=0),
        GenerationOptions(height=2 * cell, width=cell, num_steps=5, top_k=1),
    ]


@pytest.fixture(scope="module")
def alone(pipeline):
    """The events of a request that is drawn by itself."""
    known = {}

    def draw(prompt, seed, options):
        key = prompt, seed, options
        if key not in known:
            known[key] = list(pipeline.generate([prompt], seed=seed, options=options))
        return known[key]

    return draw


class Stepped:
    """The scheduler without its threads: whoever holds it steps it."""

    def __init__(self, pipeline, max_batch=8, max_queue=64, num_pixel_batches=1, model=None):
        self.pipeline = pipeline
        loaded = pipeline.model
        if model is not None:
            manifest = loaded.manifest.replace(model=model)
            loaded = replace(loaded, bundle=replace(loaded.bundle, manifest=manifest))
        self.tokens = TokenBatch(loaded, max_batch)
        share = -(-max_batch // num_pixel_batches)
        self.pixels = [PixelBatch(loaded, share) for _ in range(num_pixel_batches)]
        ticks = itertools.count()
        self.dispatcher = Dispatcher(
            self.tokens, self.pixels, max_batch=max_batch, max_queue=max_queue, clock=lambda: next(ticks)
        )
        self.handles = []

    def submit(self, prompt, seed=0, options=FEW, reports="all", **arguments):
        (request,) = self.pipeline.check([prompt], seed=seed, options=options, **arguments)
        handle = DrawingHandle(request, reports, self.dispatcher.forget_cancelled)
        self.dispatcher.submit(Job(handle), "refuse")
        self.handles.append(handle)
        return handle

    def step(self, times=1):
        for _ in range(times):
            if not all(handle.ended for handle in self.handles):
                self.dispatcher.step()

    def finish(self):
        while not all(handle.ended for handle in self.handles):
            self.dispatcher.step()
        return [handle.result() for handle in self.handles if handle.status == "done"]

    def step_until(self, handle, status):
        while handle.status != status:
            assert not handle.ended
            self.dispatcher.step()


class Watched:
    """A real session that tells of every run: its bound inputs, and its outputs afterwards."""

    def __init__(self, session, before=lambda inputs: None, after=lambda inputs, outputs: None):
        self.session, self.signature = session, session.signature
        self.before, self.after = before, after

    def bind(self, inputs, outputs):
        run = self.session.bind(inputs, outputs)

        def watched():
            self.before(inputs)
            run()
            self.after(inputs, outputs)

        return watched


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def with_sessions(pipeline, **sessions):
    return pipeline.with_sessions(sessions)


def psnr_db(one, other):
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return np.inf if error == 0 else 10 * np.log10(4 / error)


def check_same_picture(event, expected):
    assert event.rep_ids.tolist() == expected.rep_ids.tolist()
    assert (event.prompt, event.seed, event.index) == (expected.prompt, expected.seed, 0)
    assert psnr_db(event.pixels, expected.pixels) >= MIN_PSNR_DB
    assert np.abs(event.picture.astype(int) - expected.picture).max() <= 1


def check_same_events(events, expected):
    """Bit for bit."""
    assert [type(event) for event in events] == [type(event) for event in expected]
    for event, other in zip(events, expected, strict=True):
        for name, value in vars(other).items():
            np.testing.assert_array_equal(
                getattr(event, name), value, err_msg=name, strict=isinstance(value, np.ndarray)
            )


# What each one gets


def test_a_request_alone_gets_the_events_of_the_pipeline_bit_for_bit(pipeline, prompts, options, alone):
    with Scheduler(pipeline) as scheduler:
        for prompt, each in itertools.product(prompts, options):
            check_same_events(list(scheduler.submit(prompt, seed=3, options=each)), alone(prompt, 3, each))


def test_texts_of_one_length_drawn_together_get_the_same_bits_as_alone(pipeline, prompts, alone):
    prompt = prompts[0]
    others = [" ".join(prompt.split()[::-1]), " ".join(prompt.split()[:1] * 5)]
    stepped = Stepped(pipeline)
    handles = [stepped.submit(each, seed=seed) for seed, each in enumerate([prompt, *others])]
    stepped.finish()
    for seed, handle in enumerate(handles):
        check_same_events(list(handle), alone(handle.request.prompt, seed, FEW))


def test_requests_of_every_kind_drawn_together_get_their_own_pictures(pipeline, prompts, options, alone):
    """Texts of several lengths, sizes, step counts, guidance, temperatures and top-k, all at the same time."""
    stepped = Stepped(pipeline, max_batch=5)
    asked = [(prompt, seed, each) for seed, (prompt, each) in enumerate(itertools.product(prompts, options))]
    handles = [stepped.submit(*each) for each in asked]
    stepped.finish()
    for handle, each in zip(handles, asked, strict=True):
        events, expected = list(handle), alone(*each)
        assert [type(event) for event in events] == [type(event) for event in expected]
        check_same_picture(events[-1], expected[-1])
        for event, other in zip(events, expected, strict=True):
            if isinstance(other, TokenEvent):
                np.testing.assert_allclose(event.logits, other.logits, atol=1e-4)
                assert event.rep_ids.tolist() == other.rep_ids.tolist()
            elif isinstance(other, StepEvent):
                assert (event.step, event.t, event.t_next) == (other.step, other.t, other.t_next)
                assert psnr_db(event.x_pred, other.x_pred) >= MIN_PSNR_DB


def test_a_request_joins_at_any_step_of_the_others(pipeline, prompts, alone):
    num_steps = len(alone(prompts[1], 1, FEW))
    for moment in range(num_steps + 1):
        stepped = Stepped(pipeline)
        stepped.submit(prompts[1], seed=1)
        stepped.step(moment)
        stepped.submit(prompts[0], seed=2)  # longer than all that is there: the others have to move
        stepped.submit(prompts[2], seed=3)
        for event in stepped.finish():
            check_same_picture(event, alone(event.prompt, event.seed, FEW)[-1])


@pytest.mark.parametrize("rep_ids", [[[5, 4, 3, 2, 1, 0]], [[5, -1, 3, -1, -1, 0]]])
def test_given_tokens_are_used(pipeline, prompts, rep_ids):
    *_, expected = pipeline.generate([prompts[0]], options=FEW, rep_ids=rep_ids)
    with Scheduler(pipeline) as scheduler:
        handle = scheduler.submit(prompts[0], options=FEW, rep_ids=rep_ids[0])
        check_same_picture(handle.result(), expected)
        tokens = [event for event in handle if isinstance(event, TokenEvent)]
    assert [int(event.rep_ids[0]) for event in tokens] != rep_ids[0]  # as they were drawn


def test_half_precision_gets_the_same_bits_too(tiny_bundle, prompts):
    half = Pipeline.load(tiny_bundle, "fp16", num_threads=1, engine="none")
    expected = list(half.generate([prompts[0]], seed=1, options=FEW))
    with Scheduler(half) as scheduler:
        check_same_events(list(scheduler.submit(prompts[0], seed=1, options=FEW)), expected)


def test_the_longest_prompt_and_a_short_one_fit_together(pipeline, prompts):
    longest = pipeline.bundle.manifest.model.max_positions - 6 - 2
    long_prompt = " ".join([prompts[1]] * longest)
    stepped = Stepped(pipeline, max_batch=2)
    stepped.submit("", seed=1)
    stepped.step(3)
    stepped.submit(long_prompt, seed=2)
    for event in stepped.finish():
        check_same_picture(event, list(pipeline.generate([event.prompt], seed=event.seed, options=FEW))[-1])


# Who runs when


def test_steps_of_several_requests_are_one_run(pipeline, prompts):
    runs = []
    watched = {
        name: Watched(pipeline.sessions[name], lambda inputs, name=name: runs.append((name, len(inputs["row_starts"]))))
        for name in ("text_decoder", "rep_decoder", "denoiser")
    }
    stepped = Stepped(with_sessions(pipeline, **watched))
    for seed, prompt in enumerate(prompts):
        stepped.submit(prompt, seed)
    stepped.finish()
    assert runs == [("text_decoder", 3)] + 7 * [("rep_decoder", 8)] + 3 * [("denoiser", 8)]  # the empty text has no run


def test_one_is_denoised_while_another_draws_its_tokens(pipeline, prompts):
    stepped = Stepped(pipeline)
    first = stepped.submit(prompts[0])
    stepped.step_until(first, "pixels")
    second = stepped.submit(prompts[1])
    stepped.step(4)
    seen = [first.status, second.status, sum(isinstance(event, StepEvent) for event in stepped_events(first))]
    assert seen == ["pixels", "tokens", 2]


def stepped_events(handle):
    """What a handle holds by now."""
    return list(handle._events)


def test_pictures_of_several_sizes_take_turns(pipeline, prompts, options):
    sizes = []
    watched = Watched(pipeline.sessions["denoiser"], lambda inputs: sizes.append(inputs["x_t"].shape[2:]))
    stepped = Stepped(with_sessions(pipeline, denoiser=watched))
    cell = pipeline.bundle.manifest.model.cell
    shapes = [(cell, 2 * cell), (2 * cell, cell), (cell, 2 * cell)]
    for seed, (height, width) in enumerate(shapes):
        given = np.zeros((1, 2), int)
        each = GenerationOptions(height=height, width=width, num_steps=3)
        stepped.submit(prompts[0], seed, each, rep_ids=given)
    stepped.finish()
    assert sizes == 3 * [shapes[0], shapes[1]]


def test_nobody_starves_while_others_keep_coming(pipeline, prompts, options):
    """With as many newcomers as the queue takes: everyone is admitted in order, and each batch has every other turn."""
    stepped = Stepped(pipeline, max_batch=2, max_queue=2)
    first = stepped.submit(prompts[0])
    num_steps = 0
    while not first.ended:
        while len(stepped.dispatcher._queue) < 2:
            stepped.submit(prompts[1], seed=len(stepped.handles), options=options[num_steps % len(options)])
        stepped.step()
        num_steps += 1
    # Its 7 + 3 steps, each after one of the other stage, and a turn of another size after each of its own.
    assert num_steps <= 2 * 7 + 4 * 3
    admitted = [handle.status != "queued" for handle in stepped.handles]
    assert admitted == sorted(admitted, reverse=True)


def test_a_batch_that_was_idle_for_long_gets_no_credit(pipeline, prompts):
    stepped = Stepped(pipeline)
    many = GenerationOptions(num_steps=40)
    for seed in range(3):
        handle = stepped.submit(prompts[1], seed, many)
        stepped.step_until(handle, "pixels")
        stepped.step(30)
    last = stepped.submit(prompts[0], 9, many)
    before = [handle for handle in stepped.handles if handle.status == "pixels"]
    counts = [len(handle._events) for handle in before]
    stepped.step_until(last, "pixels")
    for handle, count in zip(before, counts, strict=True):
        assert len(handle._events) - count >= 5  # of the 7 + 7 steps


def test_pictures_are_spread_evenly_over_pixel_batches(pipeline, prompts, alone):
    stepped = Stepped(pipeline, max_batch=6, num_pixel_batches=2)
    for seed in range(6):
        stepped.submit(prompts[seed % 4], seed, GenerationOptions(num_steps=2 if seed % 2 == 0 else 9))
    largest = []
    while not all(handle.ended for handle in stepped.handles):
        stepped.step()
        largest.append(max(len(batch.jobs) for batch in stepped.pixels))
        sizes = [len(batch.jobs) for batch in stepped.pixels]
        stepped.dispatcher._spread()
        assert (
            max(len(batch.jobs) for batch in stepped.pixels) - min(len(batch.jobs) for batch in stepped.pixels) <= 1
        ), sizes
    assert max(largest) == 3
    for handle in stepped.handles:
        check_same_picture(
            handle.result(),
            alone(
                handle.request.prompt, handle.request.seed, GenerationOptions(num_steps=handle.request.plan.num_steps)
            )[-1],
        )


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


# Nothing of a request shows in another one


@pytest.fixture
def poison(monkeypatch):
    """All cache memory that is freed is NaN from then on, and so is what a new array is made of."""
    clear, grow = CacheMemory.clear, CacheMemory._grow

    def clear_and_poison(memory):
        clear(memory)
        memory._values.fill(np.nan)

    def grow_poisoned(memory, size):
        grow(memory, size)
        memory._values.fill(np.nan)

    monkeypatch.setattr(CacheMemory, "clear", clear_and_poison)
    monkeypatch.setattr(CacheMemory, "_grow", grow_poisoned)


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
    assert len(done) == 16
    for handle in done:
        check_same_picture(handle.result(), alone(*asked[stepped.handles.index(handle)])[-1])


def poisoned_request(pipeline, value):
    """A pipeline on which the keys and values of every request with top_k 7 are not finite."""

    def spoil(inputs, outputs):
        (rows,) = np.nonzero(inputs["top_k"] == 7)
        for name, array in outputs.items():
            if name.startswith("present"):
                array[rows] = array[rows + len(inputs["top_k"])] = value

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
        if breaks and len(inputs["row_starts"]) > 2 - (graph == "text_decoder"):
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
    prefixes = []
    for length, text_length in ((5, 2), (3, 0)):
        cache = KVCache(model, Variant("fp32"), 2, 8)
        cache.length = length
        cache.values[:] = rng.normal(size=cache.values.shape)
        prefixes.append(copy_prefix(cache, 0, 0, text_length))
    for _ in range(2):
        memory.clear()
        laid_out, starts = lay_out(memory, prefixes, 4)
        assert laid_out.length == 5
        assert laid_out.values.shape[1:4:2] == (4, 9)
        assert starts.tolist() == [0, 2]
        for row, first in enumerate([0, 2, 2, 2]):
            prefix = prefixes[row % 2]
            expected = prefix.values[:, row // 2, :, prefix.length - (5 - first) :]
            np.testing.assert_array_equal(laid_out.values[:, row, :, first:5], expected)
            assert not laid_out.values[:, row, :, :first].any()
            assert not laid_out.values[:, row, :, 5:].any()
        memory._values.fill(np.nan)


# Any order of arrivals and cancels


ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 3), st.integers(0, 4), st.integers(0, 2)),
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


# Threads


@pytest.mark.parametrize(("num_workers", "num_pixel_batches"), [(1, None), (2, None), (2, 1), (3, 2)])
def test_many_threads_submit_and_read_at_the_same_time(
    pipeline, prompts, options, alone, num_workers, num_pixel_batches
):
    found = {}

    def ask(scheduler, seed):
        for index in range(4):
            prompt, each = prompts[(seed + index) % 4], options[(seed * index) % 5]
            handle = scheduler.submit(prompt, seed=seed, options=each, when_full="wait")
            if (seed + index) % 4 == 3:
                handle.cancel()
            else:
                found[prompt, seed, each] = list(handle)

    settings = {"max_batch": 3, "max_queue": 2, "num_workers": num_workers, "num_pixel_batches": num_pixel_batches}
    with Scheduler(pipeline, **settings) as scheduler:
        threads = [threading.Thread(target=ask, args=(scheduler, seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert len(found) >= 12
    for key, events in found.items():
        check_same_picture(events[-1], alone(*key)[-1])


def test_two_workers_run_both_stages_at_the_same_time(pipeline, prompts):
    """As the two streams of a GPU: each stage waits inside its run for the other one."""
    both = threading.Barrier(2)
    meet = threading.Event()

    def wait(inputs):
        if meet.is_set():
            both.wait(timeout=10)
            meet.clear()

    sessions = {name: Watched(pipeline.sessions[name], wait) for name in ("rep_decoder", "denoiser")}
    long = GenerationOptions(num_steps=200)
    with Scheduler(with_sessions(pipeline, **sessions), num_workers=2, num_pixel_batches=1) as scheduler:
        first = scheduler.submit(prompts[0], options=long, reports="picture")
        wait_until(lambda: first.status == "pixels")
        meet.set()
        assert scheduler.submit(prompts[1], options=FEW).result(timeout_s=20).picture.any()
        first.cancel()


def test_there_is_a_worker_for_every_core_that_the_runs_leave_free(pipeline, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    for num_threads, expected in ((1, 6), (4, 1), (8, 1), (2, 3), (None, 1)):
        given = Pipeline(replace(pipeline.model, num_threads=num_threads))
        with Scheduler(given) as scheduler:
            assert len(scheduler._workers) == expected
    with Scheduler(pipeline, max_batch=2) as scheduler:
        assert len(scheduler._workers) == 2


def test_events_of_one_request_are_shared_by_its_readers(pipeline, prompts, alone):
    with Scheduler(pipeline) as scheduler:
        handle = scheduler.submit(prompts[0], seed=1, options=FEW)
        found = []
        readers = [threading.Thread(target=lambda: found.extend(handle)) for _ in range(3)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert len(found) == len(alone(prompts[0], 1, FEW))
        assert handle.result().rep_ids.tolist() == alone(prompts[0], 1, FEW)[-1].rep_ids.tolist()


def test_only_the_picture_is_reported_where_that_is_wanted(pipeline, prompts, alone):
    with Scheduler(pipeline) as scheduler:
        (event,) = scheduler.submit(prompts[0], seed=1, options=FEW, reports="picture")
    check_same_events([event], alone(prompts[0], 1, FEW)[-1:])


def test_waiting_for_a_result_may_end_early(pipeline, prompts):
    held = threading.Event()
    watched = Watched(pipeline.sessions["denoiser"], lambda inputs: held.wait())
    with Scheduler(with_sessions(pipeline, denoiser=watched)) as scheduler:
        handle = scheduler.submit(prompts[0], options=FEW)
        with pytest.raises(TimeoutError, match=r"not finished in 0\.01 s"):
            handle.result(timeout_s=0.01)
        held.set()
        assert handle.result(timeout_s=10).picture.any()


# The end


def test_leaving_the_block_finishes_what_was_submitted(pipeline, prompts):
    with Scheduler(pipeline, max_batch=1) as scheduler:
        handles = [scheduler.submit(prompt, options=FEW) for prompt in prompts]
    assert [handle.status for handle in handles] == ["done"] * 4
    with pytest.raises(RFError, match="The scheduler is closed and takes no more requests"):
        scheduler.submit(prompts[0])


def test_an_error_in_the_block_cancels_what_was_submitted(pipeline, prompts):
    with pytest.raises(KeyError), Scheduler(pipeline, max_batch=1) as scheduler:
        handles = [scheduler.submit(prompt, options=GenerationOptions(num_steps=1000)) for prompt in prompts]
        raise KeyError
    assert [handle.status for handle in handles] == ["cancelled"] * 4
    assert not any(worker.is_alive() for worker in scheduler._workers)


def test_closing_wakes_those_who_wait_for_a_place(pipeline, prompts):
    held = threading.Event()
    watched = Watched(pipeline.sessions["rep_decoder"], lambda inputs: held.wait())
    scheduler = Scheduler(with_sessions(pipeline, rep_decoder=watched), max_batch=1, max_queue=1)
    first = scheduler.submit(prompts[0])
    wait_until(lambda: first.status == "tokens")
    scheduler.submit(prompts[0])
    errors = []

    def submit():
        try:
            scheduler.submit(prompts[0], when_full="wait")
        except RFError as error:
            errors.append(str(error))

    waiting = threading.Thread(target=submit)
    waiting.start()
    closing = threading.Thread(target=scheduler.close, args=("cancel",))
    closing.start()
    waiting.join(timeout=10)
    assert errors == ["The scheduler is closed and takes no more requests. Make a new one."]
    held.set()
    closing.join(timeout=10)
    assert not closing.is_alive()


def test_a_scheduler_that_is_dropped_ends_its_threads(pipeline, prompts):
    scheduler = Scheduler(pipeline, num_workers=2)
    handle = scheduler.submit(prompts[0], options=GenerationOptions(num_steps=1000))
    workers = scheduler._workers
    del scheduler
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)
    assert handle.status == "cancelled"


def test_python_ends_while_a_scheduler_is_at_work(tiny_bundle):
    code = (
        "from runtime import GenerationOptions, Pipeline, Scheduler\n"
        f"pipeline = Pipeline.load({str(tiny_bundle)!r}, num_threads=1, engine='none')\n"
        "scheduler = Scheduler(pipeline, num_workers=2)\n"
        "handles = [scheduler.submit('', options=GenerationOptions(num_steps=1000)) for _ in range(8)]\n"
        "next(iter(handles[0]))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_a_worker_leaves_nobody_waiting(pipeline, prompts, monkeypatch):
    monkeypatch.setattr(Dispatcher, "_spread", lambda self: 1 / 0)
    scheduler = Scheduler(pipeline)
    with pytest.raises((ZeroDivisionError, RFError)):
        scheduler.submit(prompts[0]).result(timeout_s=10)
    with pytest.raises(RFError, match="is closed"):
        scheduler.submit(prompts[0])
    scheduler.close()


@pytest.mark.parametrize("name", ["max_batch", "max_queue", "num_workers", "num_pixel_batches"])
def test_a_scheduler_for_nobody_is_refused(pipeline, name):
    with pytest.raises(RFError, match=f"{name} must be >= 1, got 0"):
        Scheduler(pipeline, **{name: 0})


def test_a_wrong_request_is_refused_by_the_call(pipeline, prompts):
    with Scheduler(pipeline) as scheduler:
        with pytest.raises(RFError, match="Give one prompt as a text, and submit several one by one; got list"):
            scheduler.submit(prompts)
        with pytest.raises(RFError, match="does not know 'xqzzy'"):
            scheduler.submit("xqzzy")
        with pytest.raises(RFError, match="seed must be 0 to"):
            scheduler.submit(prompts[0], seed=-1)
        for rep_ids in ([1, 2], [[1, 2], [3]], np.zeros((1, 6), int), 7, "abc"):
            with pytest.raises(RFError, match=r"rep_ids must be whole numbers of shape \(1, 6\)"):
                scheduler.submit(prompts[0], rep_ids=rep_ids)
