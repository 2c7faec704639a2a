"""Many requests drawn together, on a tiny real bundle: each gets the picture that it would get alone.

The tests step the dispatcher themselves, so that who joins and leaves when is exact; a few run the scheduler's threads.
"""

import itertools

import numpy as np
import pytest
from stepping import (
    FEW,
    MIN_PSNR_DB,
    Stepped,
    Watched,
    check_same_events,
    check_same_picture,
    psnr_db,
    stepped_events,
    with_sessions,
)

from runtime import GenerationOptions, Pipeline, Scheduler, StepEvent, TokenEvent

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


def rows_of(inputs):
    """Rows of a run; the texts of text_decoder are rows too."""
    return len(inputs.get("row_requests", inputs["row_starts"]))


def test_steps_of_several_requests_are_one_run(pipeline, prompts):
    runs = []
    watched = {
        name: Watched(pipeline.sessions[name], lambda inputs, name=name: runs.append((name, rows_of(inputs))))
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
