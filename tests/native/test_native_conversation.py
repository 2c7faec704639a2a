"""The native host answers what the Python runtime answers, and keeps, forgets and rewinds as it does."""

import contextlib

import numpy as np
import pytest

from runtime import AnswerOptions, RFError
from runtime.errors import DrawingCancelledError
from runtime.events import WordEvent


def pictures(count):
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (24, 24, 3), np.uint8) for _ in range(count)]


@pytest.fixture
def both(pipeline, native):
    """A conversation with each, about the same."""
    with contextlib.closing(native.converse()) as conversation:
        yield pipeline.converse(), conversation


def asked(conversation, *arguments, **options):
    *words, answer = conversation.ask(*arguments, **options)
    return words, answer


def readable(pipeline):
    """Questions of words that the model knows."""
    words = pipeline.model.tokenizer.vocabulary.words
    return ["", " ".join(words[:3]), " ".join(words[5:9])]


def options():
    yield AnswerOptions(max_tokens=6)
    yield AnswerOptions(max_tokens=6, temperature=1.5)
    yield AnswerOptions(max_tokens=5, temperature=1.0, top_k=5, top_p=0.8)
    yield AnswerOptions(max_tokens=7, temperature=0.7, repetition_penalty=1.4)


def same(a, b):
    assert (a.text, a.token_ids, a.ended_by) == (b.text, b.token_ids, b.ended_by)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_answers_the_same(precision, tiny_bundle, open_both):
    python, ours = open_both(tiny_bundle, precision)
    questions, total = readable(python), 0
    for seed in (0, 7, 2**32, 2**64 - 1):
        for option in options():
            one = python.converse()
            with contextlib.closing(ours.converse()) as other:
                for number, picture in enumerate(pictures(2)):
                    one.show(picture, height=24, width=24)
                    other.show(picture, height=24, width=24)
                    history = "forget" if number else "keep"
                    for question in questions:
                        _, expected = asked(one, question, seed=seed, options=option, history=history)
                        found = other.ask(question, seed=seed, options=option, history=history)
                        same(expected, found)
                        assert (one.length, one.num_read) == (other.length, other.num_read)
                        total += 1
                one.rewind(3)
                other.rewind(3)
                one.say(questions[1])
                other.say(questions[1])
                _, expected = asked(one, questions[2], seed=seed, options=option)
                same(expected, other.ask(questions[2], seed=seed, options=option))
                total += 1
    assert total == 112


def test_reports_the_same_words(both, pipeline):
    one, other = both
    for conversation in both:
        conversation.show(pictures(1)[0], height=24, width=24)
    option, found = AnswerOptions(max_tokens=6, temperature=1.0), []
    expected, _ = asked(one, readable(pipeline)[1], options=option)
    other.ask(readable(pipeline)[1], options=option, on_word=lambda word: found.append(word) or True)
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert isinstance(b, WordEvent)
        assert (a.step, a.max_tokens, a.token_id, a.text) == (b.step, b.max_tokens, b.token_id, b.text)
        assert np.allclose(a.logits, b.logits, atol=1e-5)


def test_an_answer_that_is_given_up_leaves_no_trace(native, pipeline):
    question, option = readable(pipeline)[1], AnswerOptions(max_tokens=4, temperature=1.0)
    with contextlib.closing(native.converse()) as conversation:
        conversation.show(pictures(1)[0], height=24, width=24)
        length = conversation.length
        for stop in range(2):
            seen = []
            with pytest.raises(DrawingCancelledError):
                conversation.ask(
                    question,
                    options=option,
                    on_word=lambda word, seen=seen, stop=stop: seen.append(word) or len(seen) <= stop,
                )
            assert conversation.length == length
        again = conversation.ask(question, options=option)
    with contextlib.closing(native.converse()) as conversation:
        conversation.show(pictures(1)[0], height=24, width=24)
        same(again, conversation.ask(question, options=option))


def test_goes_on_with_a_given_answer(both):
    one, other = both
    for conversation in both:
        conversation.show(pictures(1)[0], height=24, width=24)
    _, expected = asked(one, "", token_ids=[5, 6, 7])
    same(expected, other.ask("", token_ids=[5, 6, 7]))
    _, expected = asked(one, "")
    same(expected, other.ask(""))


def sentence(call):
    try:
        call()
    except RFError as error:
        return str(error), error.kind
    return None


def test_the_same_sentence_for_what_cannot_be_asked(both):
    one, other = both
    calls = [
        lambda c: c.show(pictures(1)[0], height=7, width=24),
        lambda c: c.say("zebra zebra"),
        lambda c: c.ask("zebra"),
        lambda c: c.ask("", options=AnswerOptions(max_tokens=10_000)),
        lambda c: c.ask("", options=AnswerOptions(top_k=10_000)),
        lambda c: c.ask("", token_ids=[-1]),
        lambda c: c.rewind(10**6),
    ]
    for call in calls:
        expected = sentence(lambda c=call: c(one))
        assert expected is not None
        assert sentence(lambda c=call: c(other)) == expected


def test_refuses_to_go_on_while_it_answers(native):
    with contextlib.closing(native.converse()) as conversation:
        conversation.show(pictures(1)[0], height=24, width=24)
        found = []

        def on_word(word):
            found.append(sentence(lambda: conversation.rewind(0)))
            return True

        conversation.ask("", options=AnswerOptions(max_tokens=1), on_word=on_word)
    assert found[0][1] == "busy"
