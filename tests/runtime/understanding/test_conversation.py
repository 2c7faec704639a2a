"""A conversation answers as eager PyTorch does, reads nothing twice, goes back, and shares nothing with another."""

import dataclasses
import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import pipeline_of

from rf_export.checkpoint import load_checkpoint
from rf_export.eager import EagerQuestion, sample_text
from rf_export.eager import answer as eager_answer
from runtime import AnswerEvent, AnswerOptions, Pipeline, RFError, WordEvent, noise
from runtime.pictures.load import load_pixels
from runtime.plans import plan_answer

FEW = AnswerOptions(max_tokens=5)
START, STOP = 2, 3  # of the tiny model
TOLERANCE = 1e-4  # fp32: another order of sums only


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint)


class Watched:
    """A session that counts its runs, and how many tokens each reads."""

    def __init__(self, session):
        self.session, self.signature, self.runs = session, session.signature, []

    def run(self, inputs):
        self.runs.append(inputs["pixels"].shape)
        return self.session.run(inputs)

    def bind(self, inputs, outputs):
        run = self.session.bind(inputs, outputs)

        def watched():
            self.runs.append(inputs["input_ids"].shape[1])
            run()

        return watched


def watch(pipeline):
    watched = {name: Watched(pipeline.sessions[name]) for name in ("vision_encoder", "text_decoder")}
    return pipeline.with_sessions(watched), watched


def picture(seed, height=16, width=24):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def ask(conversation, question="", options=FEW, **arguments):
    *words, last = conversation.ask(question, options=options, **arguments)
    assert isinstance(last, AnswerEvent)
    assert all(isinstance(word, WordEvent) for word in words)
    assert [word.token_id for word in words] == last.token_ids
    assert "".join(word.text for word in words) == last.text
    return words, last


def start(pipeline, *seeds):
    conversation = pipeline.converse()
    conversation.show(*map(picture, seeds))
    return conversation


def eager(model, seeds, ids, options=FEW, seed=0):
    images = [torch.from_numpy(load_pixels(picture(each), 16, 24)) for each in seeds]
    return eager_of(model, images, ids, options, seed)


def question_of(model, images, ids, options, seed=0):
    gumbel = [noise.gumbel(seed, n, model.config.vocab_size, noise.TEXT_STAGE) for n in range(options.max_tokens)]
    return EagerQuestion(
        images=images,
        ids=torch.tensor(ids),
        max_tokens=options.max_tokens,
        stop_ids=(STOP,),
        gumbel=torch.from_numpy(np.stack(gumbel)) if options.temperature else None,
        temperature=options.temperature,
        top_k=options.top_k or model.config.vocab_size,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
    )


def eager_of(model, images, ids, options, seed=0):
    return eager_answer(model, question_of(model, images, ids, options, seed))


def assert_same(words, expected):
    assert [word.token_id for word in words] == expected.ids
    for word, logits in zip(words, expected.logits, strict=True):
        np.testing.assert_allclose(word.logits, logits.numpy(), atol=TOLERANCE)


@settings(max_examples=40)
@given(
    seeds=st.lists(st.integers(0, 99), max_size=3),
    question=st.lists(st.integers(0, 5), max_size=6),
    options=st.builds(
        AnswerOptions,
        max_tokens=st.integers(1, 12),
        temperature=st.sampled_from([0.0, 0.5, 1.0]),
        top_k=st.sampled_from([None, 1, 7]),
        top_p=st.sampled_from([0.6, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.4]),
    ),
    seed=st.integers(0, 2**64 - 1),
)
def test_an_answer_is_that_of_eager_pytorch(pipeline, model, words, seeds, question, options, seed):
    """Any number of images, none too, any question, an empty one too, and every way to sample."""
    text = " ".join(words[each] for each in question)
    conversation = start(pipeline, *seeds)
    events, last = ask(conversation, text, options, seed=seed)
    ids = pipeline.model.tokenizer.encode(text, 100)
    expected = eager(model, seeds, [START, *ids], options, seed)
    ties = (n for n, (word, token) in enumerate(zip(events, expected.ids, strict=False)) if word.token_id != token)
    tie = next(ties, None)
    if tie is None:
        assert_same(events, expected)
    else:  # two tokens that rounding tells apart: the graph's logits are right, and its choice is theirs
        np.testing.assert_allclose(events[tie].logits, expected.logits[tie].numpy(), atol=1e-5)
        how = question_of(model, [], ids, options, seed)
        noise_of_step = how.gumbel[tie] if options.temperature else None
        own = sample_text(torch.from_numpy(events[tie].logits), expected.ids[:tie], noise_of_step, how)
        assert events[tie].token_id == own
    assert last.ended_by == ("stop" if last.token_ids[-1] == STOP else "length")
    assert last.seed == seed


@settings(max_examples=20)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), seed=st.integers(0, 99))
def test_pictures_of_every_size_that_the_model_reads(pipeline, model, rows, columns, seed):
    conversation = pipeline.converse()
    conversation.show(picture(seed), height=8 * rows, width=8 * columns)
    assert conversation.length == rows * columns
    pixels = torch.from_numpy(load_pixels(picture(seed), 8 * rows, 8 * columns))
    assert_same(ask(conversation)[0], eager_of(model, [pixels], [START], FEW))


def test_a_second_question_reads_its_own_words_alone(pipeline, model, words):
    watching, watched = watch(pipeline)
    conversation = start(watching, 1, 2)
    first, second = words[0], " ".join(words[1:4])
    ask(conversation, first, history="forget")
    assert watched["vision_encoder"].runs == [(1, 3, 16, 24)] * 2
    assert watched["text_decoder"].runs == [12 + 1 + 1, 1, 1, 1, 1]
    events, _ = ask(conversation, second, history="forget")
    assert len(watched["vision_encoder"].runs) == 2, "no image was encoded again"
    assert watched["text_decoder"].runs[5:] == [1 + 3, 1, 1, 1, 1], "no image was read again"
    assert_same(events, eager(model, (1, 2), [START, *pipeline.model.tokenizer.encode(second, 9)]))
    assert (conversation.length, conversation.num_read) == (12, 12)


def test_a_conversation_that_is_kept_goes_on_after_the_answer(pipeline, model, words):
    watching, watched = watch(pipeline)
    conversation = start(watching, 1)
    _, first = ask(conversation, words[0])
    events, _ = ask(conversation, words[1])
    one, two = (pipeline.model.tokenizer.encode(word, 9)[0] for word in words[:2])
    assert_same(events, eager(model, (1,), [START, one, *first.token_ids, START, two]))
    # The last token of the first answer was drawn and not read: it is read with the question.
    assert watched["text_decoder"].runs == [6 + 2, 1, 1, 1, 1, 1 + 2, 1, 1, 1, 1]
    conversation.show(picture(2))
    conversation.say(words[2])
    assert conversation.length == 6 + 2 * (2 + 5) + 6 + 1
    ask(conversation, words[3])
    assert watched["text_decoder"].runs[10] == 1 + 6 + 1 + 2


@settings(max_examples=30)
@given(
    parts=st.lists(st.one_of(st.integers(0, 9), st.sampled_from("abc")), min_size=1, max_size=6),
    cuts=st.sets(st.integers(0, 5)),
)
def test_read_in_pieces_is_read_at_once(pipeline, words, parts, cuts):
    """Questions in between that are forgotten leave nothing but keys and values that the next one needs anyway."""
    whole, pieces = pipeline.converse(), pipeline.converse()
    for number, part in enumerate(parts):
        for conversation in (whole, pieces):
            if isinstance(part, int):
                conversation.show(picture(part), height=8, width=16)
            else:
                conversation.say(words["abc".index(part)])
        if number in cuts:
            ask(pieces, words[4], history="forget")
            assert pieces.num_read == pieces.length
    expected, found = ask(whole, words[5])[0], ask(pieces, words[5])[0]
    assert [word.token_id for word in found] == [word.token_id for word in expected]
    np.testing.assert_allclose(found[0].logits, expected[0].logits, atol=TOLERANCE)


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["show", "say", "keep", "forget", "give up", "rewind"]), max_size=7), st.data())
def test_the_way_back_is_the_way(pipeline, words, steps, data):
    """After any steps, going back to any place that was, the conversation is as one that took the steps until there."""
    used, places = start(pipeline, 0), []

    def step(conversation, name, number):
        if name == "show":
            conversation.show(picture(number), height=8, width=8)
        elif name == "say":
            conversation.say(words[number % 4])
        elif name in ("keep", "forget"):
            ask(conversation, words[number % 4], history=name)

    done = []
    places.append((used.length, 0))
    for number, name in enumerate(steps):
        if name == "give up":
            answers = used.ask(words[0], options=FEW)
            next(answers)
            answers.close()
        elif name == "rewind":
            length, taken = data.draw(st.sampled_from(places))
            used.rewind(length)
            del done[taken:]
            places = places[: taken + 1]
            continue
        else:
            step(used, name, number)
        done.append((name, number))
        places.append((used.length, len(done)))
    fresh = start(pipeline, 0)
    for name, number in done:
        step(fresh, name, number)
    assert used.length == fresh.length
    used_words, fresh_words = ask(used, words[1])[0], ask(fresh, words[1])[0]
    assert [word.token_id for word in used_words] == [word.token_id for word in fresh_words]
    np.testing.assert_allclose(used_words[0].logits, fresh_words[0].logits, atol=TOLERANCE)


def test_an_answer_that_is_given_up_never_was(pipeline, words):
    conversation, untouched = start(pipeline, 1), start(pipeline, 1)
    answers = conversation.ask(words[0], options=FEW)
    next(answers)
    next(answers)
    for refused in (
        lambda: conversation.show(picture(1)),
        lambda: conversation.say(words[0]),
        lambda: conversation.ask(words[0]),
        lambda: conversation.rewind(0),
    ):
        with pytest.raises(RFError, match="An answer is being given"):
            refused()
    answers.close()
    assert (conversation.length, conversation.num_read) == (6, 6)
    assert (conversation._row._cache.values[:, :, :, 6:] == 0).all(), "hidden slots have to be finite"
    expected = ask(untouched, words[1])[1]
    assert ask(conversation, words[1])[1] == expected
    late = conversation.ask(words[0], options=FEW)
    conversation.say(words[0])
    with pytest.raises(RFError, match="went on since this question was asked"):
        next(late)
    del answers, late
    gc.collect()


def test_two_conversations_share_nothing(pipeline, words):
    alone = [ask(start(pipeline, seed), words[seed])[0] for seed in (0, 1)]
    conversations = [start(pipeline, seed) for seed in (0, 1)]
    answers = [each.ask(words[seed], options=FEW) for seed, each in enumerate(conversations)]
    for pair, expected in zip(zip(*answers, strict=True), zip(*alone, strict=True), strict=False):
        for event, other in zip(pair, expected, strict=True):
            assert event.token_id == other.token_id
            assert (event.logits == other.logits).all(), "to the last bit"


def test_a_given_answer_is_gone_on_with_and_the_events_tell_what_the_model_would_have_said(pipeline, model):
    shown, given = picture(4), [5, 9, 7, 5]
    conversation = pipeline.converse()
    conversation.show(shown)
    *words, last = conversation.ask(history="keep", token_ids=given)
    pixels = torch.from_numpy(load_pixels(shown, model.config.default_height, model.config.default_width))
    for n, word in enumerate(words):
        question = EagerQuestion(images=[pixels], ids=torch.tensor([START, *given[:n]]), max_tokens=1)
        assert word.token_id == eager_answer(model, question).ids[0]
    assert last.token_ids == given
    assert [word.token_id for word in words] != given
    assert conversation.length == conversation.num_read + 1
    with pytest.raises(RFError, match="at least one id that the model knows"):
        conversation.ask(token_ids=[])


def test_a_stop_token_ends_the_answer_and_is_no_part_of_its_text(pipeline):
    free = ask(start(pipeline, 1))[1]
    manifest = pipeline.bundle.manifest
    defaults = manifest.understanding.replace(stop_ids=(free.token_ids[2],))
    bundle = dataclasses.replace(pipeline.bundle, manifest=manifest.replace(understanding=defaults))
    stopping = pipeline_of(bundle, pipeline.sessions)
    first = free.token_ids.index(free.token_ids[2])
    words, last = ask(start(stopping, 1))
    assert last.token_ids == free.token_ids[: first + 1]
    assert last.ended_by == "stop"
    assert words[-1].text == ""
    assert last.text == pipeline.model.tokenizer.decode(free.token_ids[:first])


def test_seeds_decide_what_is_drawn(pipeline):
    warm = AnswerOptions(max_tokens=8, temperature=1.0)
    answers = [ask(start(pipeline, 1), options=warm, seed=seed)[1].token_ids for seed in (0, 0, 1, 2)]
    assert answers[0] == answers[1]
    assert len({tuple(each) for each in answers}) == 3
    greedy = [ask(start(pipeline, 1), seed=seed)[1].token_ids for seed in (0, 1)]
    assert greedy[0] == greedy[1]


def test_a_text_that_ends_within_a_character_is_held_back(pipeline, monkeypatch):
    conversation = start(pipeline, 1)
    texts = iter(["a", "a\ufffd", "a\ufffd\ufffd", "aé", "aéb", "aéb"])
    monkeypatch.setattr(type(pipeline.model.tokenizer), "decode", lambda self, ids: next(texts))
    *words, last = conversation.ask(options=FEW)
    assert [word.text for word in words] == ["a", "", "", "é", "b"]
    assert last.text == "aéb"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be >= 1"),
        ({"temperature": -1}, "temperature must be >= 0"),
        ({"temperature": float("nan")}, "temperature must be >= 0"),
        ({"top_k": 0}, "top_k must be >= 1"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"top_k": 68}, "top_k must be 1 to 67"),
    ],
)
def test_options_that_no_model_takes_are_refused(pipeline, options, message):
    with pytest.raises(RFError, match=message):
        plan_answer(AnswerOptions(**options), pipeline.bundle.manifest)


def test_what_does_not_fit_is_refused_and_changes_nothing(pipeline, words):
    conversation = start(pipeline, 1)
    with pytest.raises(RFError, match=r"That takes 7 tokens|That takes 206 tokens, .* the model has 128 positions"):
        conversation.ask(options=AnswerOptions(max_tokens=200))
    with pytest.raises(RFError, match=r"128 positions.*fewer or smaller images"):
        conversation.show(*[picture(2)] * 30)
    with pytest.raises(RFError, match="seed must be"):
        conversation.ask(seed=-1)
    with pytest.raises(RFError, match="does not know 'xyzzy'"):
        conversation.ask("xyzzy")
    with pytest.raises(RFError, match="reads no pictures of 9 x 24 pixels: height must be a multiple of 8"):
        conversation.show(picture(1), height=9)
    with pytest.raises(RFError, match="does not exist"):
        conversation.show(picture(1), "none.png")
    for length in (-1, 7):
        with pytest.raises(RFError, match="of 6 tokens cannot be rewound"):
            conversation.rewind(length)
    assert conversation.length == 6
    longest = AnswerOptions(max_tokens=128 - 6)  # the last token is drawn and not read
    assert len(ask(conversation, options=longest)[1].token_ids) <= 122


def test_numbers_that_overflow_are_told(pipeline):
    class Broken(Watched):
        def run(self, inputs):
            return {name: array * np.inf for name, array in self.session.run(inputs).items()}

    sessions = {**pipeline.sessions, "vision_encoder": Broken(pipeline.sessions["vision_encoder"])}
    broken = pipeline.with_sessions(sessions)
    with pytest.raises(RFError, match="overflowed in fp32"):
        start(broken, 1)


def test_a_model_that_only_draws_says_so(pipeline):
    manifest = pipeline.bundle.manifest.replace(understanding=None)
    drawing = pipeline_of(dataclasses.replace(pipeline.bundle, manifest=manifest), pipeline.sessions)
    with pytest.raises(RFError, match=r"answers no questions.*understanding.*config\.json"):
        drawing.converse()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_modern_dialect_answers_the_same(tiny_bundle, modern_bundle, words, precision):
    classic = Pipeline.load(tiny_bundle, precision, num_threads=1, engine="none")
    modern = Pipeline.load(modern_bundle, precision, num_threads=1, dialect="modern")
    answers = []
    for pipeline in (classic, modern):
        conversation = start(pipeline, 1)
        told = zip(words[:3], ("forget", "keep", "keep"), strict=True)
        answers.append([ask(conversation, word, history=how)[0] for word, how in told])
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one[0].logits, other[0].logits, atol=TOLERANCE if precision == "fp32" else 0.02)
        if precision == "fp32":
            assert [word.token_id for word in one] == [word.token_id for word in other]


def test_graphs_with_a_fixed_cache_answer_within_it(fixed_bundle, pipeline, words):
    fixed = Pipeline.load(fixed_bundle, num_threads=1, dialect="modern")
    for question in words[:2]:  # a second one in the same cache
        conversation = start(fixed, 1)
        assert ask(conversation, question)[1].token_ids == ask(start(pipeline, 1), question)[1].token_ids
    with pytest.raises(RFError, match=r"these graphs have 20 cache slots.*--cache-slots"):
        conversation.show(picture(1), picture(2))


def test_one_call_answers_one_question(pipeline, words):
    text = pipeline.understand(picture(1), picture(2), question=words[0], options=FEW)
    assert text == ask(start(pipeline, 1, 2), words[0])[1].text
