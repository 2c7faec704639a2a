"""Drawing with a tiny real bundle: what the caller is promised, and an independent loop that has to agree."""

import itertools
import threading

import numpy as np
import pytest

from runtime import GenerationOptions, PictureEvent, Pipeline, RFError, StepEvent, TokenEvent, noise
from runtime.backends import create_backend
from runtime.backends.host.cache import KVCache
from runtime.backends.host.stages import prefill
from runtime.bundle.folder import open_bundle
from runtime.events import to_picture
from runtime.schedule import timesteps
from runtime.signature import GRAPHS, Variant, kv_names

FEW = GenerationOptions(num_steps=3)


@pytest.fixture(scope="module")
def prompts(words):
    return [" ".join(words[:5]), words[5], ""]


def pictures(pipeline, prompts, **arguments):
    arguments.setdefault("options", FEW)
    return [event for event in pipeline.generate(prompts, **arguments) if isinstance(event, PictureEvent)]


class SlowDrawing:
    """One request at a time, nothing bound, nothing padded, no static cache: written against signature.py alone."""

    def __init__(self, path):
        self.bundle = open_bundle(path)
        self.model = self.bundle.manifest.model
        backend = create_backend("ort")
        self.sessions = {
            name: backend.open(
                self.bundle.file(self.bundle.graph(name, Variant("fp32")).file), num_threads=1, compiled=False
            )
            for name in GRAPHS
        }

    def run(self, graph, past, hidden=0, **inputs):
        """`past` is a list of [rows, H, P, D]; an empty cache is one hidden slot. `hidden` slots no second row sees."""
        length = past[0].shape[2]
        if length == 0:
            past = [np.zeros((*layer.shape[:2], 1, layer.shape[3]), layer.dtype) for layer in past]
        names = kv_names("past_key_values", self.model.num_layers)
        rows = 1 if graph == "denoiser" else len(past[0])
        inputs["row_starts"], inputs["past_lengths"] = np.array([0, hidden][:rows]), np.full(rows, length)
        if graph != "text_decoder":
            inputs["row_requests"], inputs["uncond_rows"] = np.zeros(2, np.int64), np.ones(1, np.int64)
        return self.sessions[graph].run({**inputs, **dict(zip(names, past, strict=True))})

    def extend(self, past, outputs):
        new = [outputs[name] for name in kv_names("present", self.model.num_layers)]
        return [np.concatenate(pair, axis=2) for pair in zip(past, new, strict=True)]

    def empty(self, rows):
        shape = (rows, self.model.num_kv_heads, 0, self.model.head_dim)
        return [np.zeros(shape, np.float32) for _ in range(2 * self.model.num_layers)]

    def draw(self, ids, seed, plan):
        text = self.empty(1)
        if ids:
            one = np.ones(1, np.float32)
            outputs = self.run(
                "text_decoder",
                text,
                input_ids=np.array([ids]),
                image_features=np.zeros((1, self.model.hidden_size), np.float32),
                answer_ids=np.array([[self.model.vocab_size]]),
                top_k=np.ones(1, np.int64),
                gumbel=np.zeros((1, self.model.vocab_size), np.float32),
                temperature=one,
                top_p=one,
                repetition_penalty=one,
            )
            text = self.extend(text, outputs)
        past = [np.concatenate([layer, np.zeros_like(layer)]) for layer in text]
        tokens = []
        for step in range(plan.num_rep_tokens + 1):
            last = max(step - 1, 0)
            outputs = self.run(
                "rep_decoder",
                past,
                hidden=len(ids),
                rep_ids=np.array([[tokens[-1] if tokens else self.model.rep_start_id]]),
                grid_positions=np.array([[[last // plan.grid[1], last % plan.grid[1]]]]),
                gumbel=noise.gumbel(seed, step, self.model.rep_vocab_size)[None, None],
                guidance_scale=np.array([plan.rep_guidance_scale], np.float32),
                temperature=np.array([plan.temperature], np.float32),
                top_k=np.array([plan.top_k]),
            )
            past = self.extend(past, outputs)
            tokens.append(int(outputs["next_rep_ids"][0, 0]))
        tokens.pop()
        sampling = self.bundle.manifest.sampling
        times = timesteps(
            plan.num_steps,
            4 * plan.num_rep_tokens,
            shift=sampling.shift,
            shift_base_patches=sampling.shift_base_patches,
        )
        x = noise.normal(seed, (3, plan.height, plan.width))[None]
        for t, t_next in itertools.pairwise(times):
            outputs = self.run(
                "denoiser",
                [layer[:1] for layer in past],
                x_t=x,
                t=t[None],
                t_next=t_next[None],
                guidance_scale=np.array([plan.pix_guidance_scale], np.float32),
            )
            x = outputs["x_next"]
        return tokens, x[0]


def test_a_batch_equals_a_simple_loop_over_single_requests(tiny_bundle, pipeline, prompts):
    """Left padding, the static cache, guidance rows and bound buffers change nothing."""
    from runtime.plans import plan_drawing

    slow = SlowDrawing(tiny_bundle)
    plan = plan_drawing(FEW, pipeline.bundle.manifest)
    for event in pictures(pipeline, prompts, seed=11):
        ids = pipeline.model.tokenizer.encode(event.prompt, 100)
        tokens, pixels = slow.draw(ids, 11 + event.index, plan)
        assert event.rep_ids.tolist() == tokens
        np.testing.assert_allclose(event.pixels, pixels, atol=2e-4)


def test_events_come_in_order_and_number(pipeline, prompts):
    model = pipeline.bundle.manifest.model
    events = list(pipeline.generate(prompts, seed=3, options=FEW))
    num_tokens = 6
    assert [type(event) for event in events] == [TokenEvent] * num_tokens + [StepEvent] * 3 + [PictureEvent] * 3
    tokens, steps, drawn = events[:num_tokens], events[num_tokens : num_tokens + 3], events[-3:]
    assert [(event.step, event.num_steps) for event in tokens] == [(i, num_tokens) for i in range(num_tokens)]
    assert tokens[0].logits.shape == (3, model.rep_vocab_size)
    assert [(event.step, event.num_steps) for event in steps] == [(0, 3), (1, 3), (2, 3)]
    assert steps[0].t == 0
    assert steps[-1].t_next == 1
    assert all(first.t_next == second.t for first, second in itertools.pairwise(steps))
    for index, event in enumerate(drawn):
        assert (event.index, event.prompt, event.seed) == (index, prompts[index], 3 + index)
        assert event.picture.shape == (model.default_height, model.default_width, 3)
        assert event.picture.dtype == np.uint8
        assert event.rep_ids.tolist() == [int(token.rep_ids[index]) for token in tokens]
        assert (event.pixels == steps[-1].x_next[index]).all()
        assert (event.picture == to_picture(event.pixels)).all()
    # The last step goes all the way to the estimate.
    np.testing.assert_allclose(steps[-1].x_next, steps[-1].x_pred, atol=1e-5)


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(pipeline, prompts):
    first = pipeline.draw(prompts[0], seed=5, options=FEW)
    assert (first == pipeline.draw(prompts[0], seed=5, options=FEW)).all()
    assert (first != pipeline.draw(prompts[0], seed=6, options=FEW)).any()


def test_a_prompt_looks_the_same_alone_and_in_a_batch(pipeline, prompts):
    for event in pictures(pipeline, prompts, seed=20):
        (alone,) = pictures(pipeline, [event.prompt], seed=20 + event.index)
        assert alone.rep_ids.tolist() == event.rep_ids.tolist()
        np.testing.assert_allclose(alone.pixels, event.pixels, atol=2e-4)


def test_nothing_of_a_request_shows_in_the_next(pipeline, prompts):
    before = pictures(pipeline, [prompts[1]], seed=1)[0].pixels
    pictures(pipeline, prompts, seed=9)
    cancelled = pipeline.generate(prompts, seed=9)
    next(cancelled)
    cancelled.close()
    assert (pictures(pipeline, [prompts[1]], seed=1)[0].pixels == before).all()


def test_closing_stops_the_work(pipeline, prompts):
    generator = pipeline.generate(prompts, options=FEW)
    assert isinstance(next(generator), TokenEvent)
    generator.close()
    with pytest.raises(StopIteration):
        next(generator)


def test_what_the_receiver_does_to_an_event_does_not_matter(pipeline, prompts):
    expected = pictures(pipeline, prompts, seed=2)
    spoilt = []
    for event in pipeline.generate(prompts, seed=2, options=FEW):
        if isinstance(event, TokenEvent):
            event.rep_ids[:] = 0
            event.logits[:] = np.nan
        elif isinstance(event, StepEvent):
            event.x_next[:] = np.nan
            event.x_pred[:] = np.nan
        else:
            spoilt.append(event.pixels.copy())
            event.pixels[:] = 0
            event.picture[:] = 0
    for pixels, event in zip(spoilt, expected, strict=True):
        assert (pixels == event.pixels).all()


def test_threads_share_a_pipeline(pipeline, prompts):
    expected = [pictures(pipeline, [prompt], seed=4)[0].pixels for prompt in prompts]
    results = {}

    def work(index):
        results[index] = pictures(pipeline, [prompts[index]], seed=4)[0].pixels

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, pixels in enumerate(expected):
        assert (results[index] == pixels).all()


def test_two_drawings_take_turns_step_by_step(pipeline, prompts):
    expected = [pictures(pipeline, [prompt], seed=8)[0].pixels for prompt in prompts[:2]]
    first, second = (pipeline.generate([prompt], seed=8, options=FEW) for prompt in prompts[:2])
    for one, other in zip(first, second, strict=True):
        last = one, other
    for event, pixels in zip(last, expected, strict=True):
        assert (event.pixels == pixels).all()


def test_every_option_has_an_effect(pipeline, prompts):
    """Guidance silently off and one step too few are the known faults of such software."""
    base = pictures(pipeline, [prompts[0]], seed=1)[0]
    for options in (
        GenerationOptions(num_steps=4),
        GenerationOptions(num_steps=3, pix_guidance_scale=1.0),
        GenerationOptions(num_steps=3, pix_guidance_scale=0.0),
    ):
        changed = pictures(pipeline, [prompts[0]], seed=1, options=options)[0]
        assert changed.rep_ids.tolist() == base.rep_ids.tolist()
        assert np.abs(changed.pixels - base.pixels).max() > 1e-4
    logits = next(pipeline.generate([prompts[0]], seed=1, options=FEW)).logits
    for scale in (0.0, 1.0, 5.0):
        options = GenerationOptions(rep_guidance_scale=scale)
        assert np.abs(next(pipeline.generate([prompts[0]], seed=1, options=options)).logits - logits).max() > 1e-4


def test_the_number_of_steps_is_exact(pipeline):
    for num_steps in (1, 2, 7):
        events = pipeline.generate([""], options=GenerationOptions(num_steps=num_steps))
        assert sum(isinstance(event, StepEvent) for event in events) == num_steps


def test_sizes_other_than_the_default(pipeline, prompts):
    cell = pipeline.bundle.manifest.model.cell
    options = GenerationOptions(height=cell, width=4 * cell, num_steps=1)
    (event,) = pictures(pipeline, [prompts[0]], options=options)
    assert event.picture.shape == (cell, 4 * cell, 3)
    assert len(event.rep_ids) == 4


def test_temperature_zero_draws_the_most_likely_tokens_for_every_seed(pipeline, prompts):
    options = GenerationOptions(temperature=0, num_steps=1)
    runs = []
    for seed in (1, 2):
        events = list(pipeline.generate([prompts[0]], seed=seed, options=options))
        tokens = [event for event in events if isinstance(event, TokenEvent)]
        assert [int(event.rep_ids[0]) for event in tokens] == [int(event.logits[0].argmax()) for event in tokens]
        runs.append(events[-1].rep_ids.tolist())
    assert runs[0] == runs[1]


def test_given_tokens_are_used_instead_of_drawn_ones(pipeline, prompts):
    drawn = pictures(pipeline, prompts, seed=6)
    rep_ids = np.stack([event.rep_ids for event in drawn])
    for event, again in zip(drawn, pictures(pipeline, prompts, seed=6, rep_ids=rep_ids), strict=True):
        assert (event.pixels == again.pixels).all()
    other = (rep_ids + 1) % pipeline.bundle.manifest.model.rep_vocab_size
    for event, changed in zip(drawn, pictures(pipeline, prompts, seed=6, rep_ids=other), strict=True):
        assert changed.rep_ids.tolist() != event.rep_ids.tolist()
        assert (event.pixels != changed.pixels).any()


def test_some_tokens_are_given_and_the_others_drawn_after_them(pipeline, prompts):
    drawn = np.stack([event.rep_ids for event in pictures(pipeline, prompts, seed=6)])
    given = drawn.copy()
    given[:, 2:4] = -1
    for event, again in zip(drawn, pictures(pipeline, prompts, seed=6, rep_ids=given), strict=True):
        assert again.rep_ids.tolist() == event.tolist()  # the same history and noise
    given[:, 0] = (given[:, 0] + 1) % pipeline.bundle.manifest.model.rep_vocab_size
    changed = np.stack([event.rep_ids for event in pictures(pipeline, prompts, seed=6, rep_ids=given)])
    assert (changed[:, [0, 1, 4, 5]] == given[:, [0, 1, 4, 5]]).all()
    assert (changed[:, 2:4] != drawn[:, 2:4]).any()  # another history


def test_fp16_draws_nearly_the_same_picture_from_the_same_tokens(tiny_bundle, pipeline, prompts):
    half = Pipeline.load(tiny_bundle, "fp16", num_threads=1, engine="none")
    exact = pictures(pipeline, prompts, seed=6)
    rep_ids = np.stack([event.rep_ids for event in exact])
    for event, rounded in zip(exact, pictures(half, prompts, seed=6, rep_ids=rep_ids), strict=True):
        assert np.sqrt(np.mean((event.pixels - rounded.pixels) ** 2)) < 0.01


@pytest.mark.parametrize(
    ("prompts", "arguments", "message"),
    [
        ("a red car", {}, "as a list of at least one text"),
        ([], {}, "as a list of at least one text"),
        ([""], {"seed": -1}, r"seed must be 0 to 2\*\*64 - 1 for 1 prompts, got -1"),
        (["", ""], {"seed": 2**64 - 1}, "seed must be 0 to"),
        (["xqzzy"], {}, "does not know 'xqzzy'"),
        ([""], {"options": GenerationOptions(height=4)}, "cannot draw 4 x 24 pixels: height must be a multiple"),
        ([""], {"rep_ids": [[1, 2]]}, r"rep_ids must be whole numbers of shape \(1, 6\)"),
        ([""], {"rep_ids": [[0.5] * 6]}, "rep_ids must be whole numbers"),
        (["", ""], {"rep_ids": [[-1] * 6, [0] * 6]}, "-1 at the same places for all prompts"),
        ([""], {"rep_ids": [[-2] * 6]}, "rep_ids must be 0 to 39, or -1 to draw one, got -2 to -2"),
        ([""], {"rep_ids": [[40] * 6]}, "rep_ids must be 0 to 39, or -1 to draw one, got 40 to 40"),
    ],
)
def test_a_wrong_request_is_refused_by_the_call(pipeline, prompts, arguments, message):
    with pytest.raises(RFError, match=message):
        pipeline.generate(prompts, **arguments)


def test_the_longest_prompt_that_fits_is_drawn(pipeline, words):
    positions = pipeline.bundle.manifest.model.max_positions
    longest = positions - 6 - 2
    assert pipeline.draw(" ".join([words[0]] * longest), options=GenerationOptions(num_steps=1)).any()
    with pytest.raises(RFError, match=f"has {longest + 1} tokens and the model takes {longest}"):
        pipeline.generate([" ".join([words[0]] * (longest + 1))])


class Overflowing:
    """A denoiser whose numbers overflow, as those of a half-precision graph may."""

    def __init__(self, session):
        self.signature = session.signature

    def bind(self, inputs, outputs):
        return lambda: outputs["x_next"].fill(np.inf)


def test_numbers_that_overflow_are_no_picture(pipeline):
    sessions = {**pipeline.sessions, "denoiser": Overflowing(pipeline.sessions["denoiser"])}
    overflowing = pipeline.with_sessions(sessions)
    with pytest.raises(RFError, match=r"The numbers overflowed in fp32.*Use precision fp32, or"):
        overflowing.draw("")


def test_the_largest_seed_works(pipeline):
    assert pipeline.draw("", seed=noise.MAX_SEED, options=FEW).any()


def test_a_precision_that_is_not_there_is_refused(tiny_bundle):
    with pytest.raises(RFError, match="has no text_decoder in int8 classic"):
        Pipeline.load(tiny_bundle, "int8")


def test_no_threads_are_refused(tiny_bundle):
    with pytest.raises(RFError, match="num_threads must be >= 1, got 0"):
        Pipeline.load(tiny_bundle, num_threads=0)


def test_a_new_cache_holds_nothing_even_where_memory_is_used_again(pipeline):
    """NaN of freed memory poisoned fp16 logits once: hidden slots are multiplied by 0."""
    model = pipeline.bundle.manifest.model
    for _ in range(50):
        garbage = [np.full(size, np.nan, np.float16) for size in (64, 128, 256, 512, 1024, 4096)]
        del garbage
        cache = KVCache(model, Variant("fp16"), 2, 4)
        assert (cache.values == 0).all()
        assert (cache.write(2, 1).new == 0).all()


def test_a_cache_that_is_used_again_starts_anew(pipeline):
    prompts = [[1, 2, 3], [], [4]]
    cache = KVCache(pipeline.bundle.manifest.model, Variant("fp32"), 6, 10)
    prefill(pipeline.sessions["text_decoder"], prompts, cache)
    kept = cache.values.copy()
    cache.lengths[:] = 9
    prefill(pipeline.sessions["text_decoder"], prompts, cache)
    assert (kept == cache.values).all()
    assert cache.lengths.tolist() == [3, 0, 1, 0, 0, 0]
    assert not cache.values[:, 1].any()  # the empty text has nothing in the cache
