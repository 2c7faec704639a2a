"""The native host comes to the golden vectors, read as a host in any language reads them."""

import contextlib

import pytest
from golden_vectors import Golden, options_of, same_answers

from runtime import AnswerOptions, RFError
from verification.golden import write_golden


@pytest.fixture(scope="module")
def golden(tiny_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "golden"
    write_golden(tiny_bundle, folder)
    return Golden(folder)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def opened(request, tiny_bundle, open_both):
    """A precision, and the native host that runs it."""
    return request.param, open_both(tiny_bundle, request.param)[1]


def test_draws_what_is_written_there(opened, golden):
    precision, native = opened
    for each in golden.drawings(precision):
        drawn = native.draw_all(
            each["ids"], seed=int(each["seed"]), options=options_of(each), rep_ids=each["forced_rep_ids"]
        )
        golden.compare(each, drawn)
    (each,) = (each for each in golden.drawings(precision) if each["texts"])
    golden.compare(each, native.draw_all(each["texts"], seed=int(each["seed"]), options=options_of(each)))


def test_answers_what_is_written_there(opened, golden):
    precision, native = opened
    for each in golden.answers(precision):
        with contextlib.closing(native.converse()) as conversation:
            for picture in each["pictures"]:
                conversation.show(golden.picture(picture), height=picture["height"], width=picture["width"])
            for turn in each["turns"]:
                options = AnswerOptions(**each["options"])
                found = conversation.ask(
                    turn["question"], seed=int(each["seed"]), options=options, history=turn["history"]
                )
                same_answers(turn, found)


def test_reads_the_texts_that_are_written_there(golden, native):
    for each in golden.content["texts"]:
        try:
            ids = native.tokenize(each["text"])
        except RFError:
            ids = None
        assert ids == each["ids"], each
