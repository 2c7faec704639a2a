"""Windows give the tokens of the loop that takes them one by one: the bookkeeping alone, and with graphs."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import GenerationOptions, RFError, TokenEvent
from runtime.backends.windows import TokenWindow

START = 99


def token_after(prefix, kinds):
    """A model without weights: a token is a function of all before it; of few kinds, so that guesses come true."""
    return hashlib.sha256(bytes(prefix)).digest()[0] % kinds


def drawn_one_by_one(num_tokens, kinds, forced):
    inputs, drawn = [START], []
    for step in range(num_tokens):
        drawn.append(token_after(inputs, kinds))
        inputs.append(drawn[-1] if forced[step] < 0 else int(forced[step]))
    return drawn, inputs


@st.composite
def grids(draw):
    """A grid, a window, how many kinds of tokens there are, and given tokens."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    given_ones = st.lists(st.integers(-1, 3), min_size=rows * columns, max_size=rows * columns)
    forced = draw(st.one_of(st.just([-1] * (rows * columns)), given_ones))
    return (rows, columns), draw(st.integers(1, 30)), draw(st.integers(1, 6)), np.array(forced)


@given(grids())
def test_any_window_settles_the_tokens_of_the_loop(case):
    grid, size, kinds, forced = case
    num_tokens = grid[0] * grid[1]
    drawn, right = drawn_one_by_one(num_tokens, kinds, forced)
    window = TokenWindow(grid, START, size, forced if (forced >= 0).any() else None)
    assert window.size == min(size, num_tokens + 1)
    ids, positions = np.zeros(window.size, np.int64), np.zeros((window.size, 2), np.int64)
    cached, passes = {}, 0
    while not window.ended:
        draws, start, known = window.draws, window.start, window.num_known
        window.fill(ids, positions)
        assert 0 <= start <= num_tokens + 1 - window.size
        for place, position in enumerate(range(start, start + window.size)):
            assert positions[place].tolist() == list(divmod(max(position - 1, 0), grid[1]))
        # The graph sees what is in the cache, and of the window what is before.
        before = [cached[position] for position in range(start)]
        outputs = [token_after([*before, *ids[: place + 1]], kinds) for place in range(window.size)]
        first, end = window.settle(np.array(outputs))
        cached |= {position: int(ids[position - start]) for position in range(first, end)}
        passes += 1
        assert end > first
        assert window.num_known > known or not draws
    assert window.settle(np.array(outputs)) == (num_tokens + 1, num_tokens + 1)  # others of a batch go on
    assert window.drawn.tolist() == drawn
    assert window.rep_ids.tolist() == right[1:]
    assert [cached[position] for position in range(num_tokens + 1)] == right
    assert passes <= num_tokens + 1
    if (forced >= 0).all():
        assert passes == -(-(num_tokens + 1) // window.size)


def test_given_tokens_are_read_a_window_at_a_time():
    window = TokenWindow((4, 4), START, 6, np.arange(16))
    ends = []
    while not window.ended:
        ids = np.zeros(6, np.int64)
        window.fill(ids, np.zeros((6, 2), np.int64))
        assert ids.tolist() == [START, *range(16)][window.start : window.start + 6]
        ends.append(window.settle(np.zeros(6, np.int64)))
    assert ends == [(0, 6), (6, 12), (12, 17)]


class Counted:
    """A session that counts its runs and their rows."""

    def __init__(self, session):
        self.session, self.signature, self.rows = session, session.signature, []

    def bind(self, inputs, outputs):
        run = self.session.bind(inputs, outputs)

        def counted():
            self.rows.append(len(inputs["row_requests"]))
            run()

        return counted


def counted(pipeline):
    sessions = {name: Counted(pipeline.sessions[name]) for name in ("rep_decoder", "denoiser")}
    return pipeline.with_sessions(sessions), sessions


def events_of(pipeline, prompts, seed, options, rep_ids=None):
    events = list(pipeline.generate(prompts, seed=seed, options=options, rep_ids=rep_ids))
    return [event for event in events if isinstance(event, TokenEvent)], events[-len(prompts) :]


@st.composite
def settings_of_drawings(draw):
    return GenerationOptions(
        num_steps=1,
        height=8 * draw(st.integers(1, 4)),
        width=8 * draw(st.integers(1, 4)),
        temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 3.0])),
        top_k=draw(st.sampled_from([1, 2, 10, 40])),
        rep_guidance_scale=draw(st.sampled_from([0.0, 1.0, 2.0, 4.0])),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=settings_of_drawings(), seed=st.integers(0, 2**40), size=st.integers(2, 17), batch=st.integers(1, 3))
def test_windows_draw_the_same_tokens_and_tell_the_same(pipeline, words, options, seed, size, batch):
    """The random model's logits are far from ties, so that not one may differ."""
    prompts = [" ".join(words[:count]) for count in (2, 0, 5)][:batch]
    plan = pipeline.check(prompts, options=options)[0].plan
    size = min(size, plan.num_rep_tokens + 1)
    expected, pictures = events_of(pipeline, prompts, seed, options)
    found, windowed = events_of(pipeline, prompts, seed, replace(options, window=size))
    assert [event.step for event in found] == list(range(plan.num_rep_tokens))
    for ours, right in zip(found, expected, strict=True):
        assert ours.rep_ids.tolist() == right.rep_ids.tolist()
        np.testing.assert_allclose(ours.logits, right.logits, atol=1e-4)
    for ours, right in zip(windowed, pictures, strict=True):
        assert ours.rep_ids.tolist() == right.rep_ids.tolist()
        np.testing.assert_allclose(ours.pixels, right.pixels, atol=1e-4)


def test_given_tokens_and_drawn_ones_go_together(pipeline, words):
    options = GenerationOptions(num_steps=2, height=32, width=32)
    given_ones = np.where(np.arange(16) % 3 == 0, -1, np.arange(16))[None]
    for size in (1, 4, 17):
        tokens, (picture,) = events_of(pipeline, [words[0]], 3, replace(options, window=size), given_ones)
        if size == 1:
            first, expected = tokens, picture
        assert [event.rep_ids.tolist() for event in tokens] == [event.rep_ids.tolist() for event in first]
        assert picture.rep_ids.tolist() == expected.rep_ids.tolist()


def test_unguided_stages_have_one_row_and_the_last_pass_too(pipeline, words):
    watched, sessions = counted(pipeline)
    num_tokens = watched.check([""])[0].plan.num_rep_tokens
    for scale, rows in ((1.0, 1), (2.0, 2)):
        for session in sessions.values():
            session.rows.clear()
        options = GenerationOptions(num_steps=3, rep_guidance_scale=scale, pix_guidance_scale=scale)
        watched.draw(words[0], options=options)
        assert sessions["rep_decoder"].rows == [rows] * num_tokens + [1]
        assert sessions["denoiser"].rows == [rows] * 3


def test_a_part_of_the_steps_is_guided(pipeline, words):
    watched, sessions = counted(pipeline)
    options = GenerationOptions(times=(0, 0.25, 0.5, 0.75, 1), guided=(0.25, 0.75))
    watched.draw(words[0], options=options)
    assert sessions["denoiser"].rows == [1, 2, 2, 1]


def test_a_window_takes_fewer_passes(pipeline):
    watched, sessions = counted(pipeline)
    options = GenerationOptions(num_steps=1, height=32, width=32, top_k=2)
    for seed in range(5):
        watched.draw("", seed=seed, options=replace(options, window=8))
    assert len(sessions["rep_decoder"].rows) < 5 * 17


def test_a_window_beyond_the_grid_is_refused(pipeline):
    with pytest.raises(
        RFError, match=r"window must be 1 to 7 for 16 x 24 pixels, which have 6 tokens and a start token"
    ):
        pipeline.draw("", options=GenerationOptions(window=8))
    with pytest.raises(RFError, match=r"window must be 1 to 65536, got 0"):
        GenerationOptions(window=0)
