"""The browser host answers what the Python runtime answers, and forgets as it does; and it has the golden vectors."""

import base64

import numpy as np
import pytest
from browsing import array, in_javascript
from chromium import require_browser
from golden_vectors import Golden

from runtime import AnswerOptions
from runtime.errors import RFError
from runtime.events import WordEvent
from runtime.pictures.load import load_pixels
from verification.golden import write_golden

require_browser()

OPTIONS = (
    {"max_tokens": 6},
    {"max_tokens": 6, "temperature": 1.5},
    {"max_tokens": 5, "temperature": 1.0, "top_k": 5, "top_p": 0.8},
    {"max_tokens": 7, "temperature": 0.7, "repetition_penalty": 1.4},
)


def picture(seed, height=16, width=24):
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return rgb, {"rgb": base64.b64encode(rgb.tobytes()).decode(), "height": height, "width": width}


def talk(questions):
    """What is said to a conversation: [method, ...arguments]."""
    for seed, options in enumerate(OPTIONS):
        yield ("show", picture(seed), {"height": 16, "width": 24})
        yield ("ask", questions[seed % 3], {**options, "seed": seed, "history": "keep"})
        yield ("say", questions[1])
        yield ("ask", "", {**options, "seed": 2**64 - 1 - seed, "history": "forget"})
        yield ("ask", questions[2], {**options, "seed": 7, "history": "forget"})
        yield ("show", picture(seed + 9, 40, 17), {"height": 8, "width": 16})
        yield ("ask", questions[seed % 3], {**options, "seed": 3, "token_ids": [5, 6, 7]})
        yield ("rewind", 4)


def test_answers_what_python_answers(precision, web, python):
    words = python[precision].model.tokenizer.vocabulary.words
    steps = list(talk(["", " ".join(words[:3]), " ".join(words[5:9])]))
    asked, expected = [], []
    conversation = python[precision].converse()
    for method, *args in steps:
        if method == "show":
            (rgb, sent), size = args
            conversation.show(rgb, **size)
            asked.append([method, sent, size])
        elif method == "ask":
            question, more = args
            how = {name: more[name] for name in ("seed", "history", "token_ids") if name in more}
            options = {name: value for name, value in more.items() if name not in how}
            *told, answer = conversation.ask(question, options=AnswerOptions(**options), **how)
            expected.append((told, answer, conversation.length, conversation.num_read))
            forced = {"forcedIds": how["token_ids"]} if "token_ids" in how else {}
            history = {"history": how["history"]} if "history" in how else {}
            asked.append([method, question, {**in_javascript(options), "seed": str(how["seed"]), **history, **forced}])
        else:
            getattr(conversation, method)(*args)
            asked.append([method, *args])
    found = web("converse", precision, asked)
    assert len(found) == len(expected) == 16
    for (told, answer, length, num_read), other in zip(expected, found, strict=True):
        assert (answer.text, answer.token_ids, answer.ended_by) == (other["text"], other["ids"], other["endedBy"])
        assert (length, num_read) == (other["length"], other["numRead"])
        assert len(told) == len(other["words"])
        for a, b in zip(told, other["words"], strict=True):
            assert isinstance(a, WordEvent)
            assert (a.step, a.max_tokens, a.token_id, a.text) == (b["step"], b["maxTokens"], b["tokenId"], b["text"])


def test_an_answer_that_is_given_up_leaves_the_conversation_as_it_was(tiny, opened):
    lengths = opened[1].evaluate(
        """async () => {
          const conversation = await rf.pipelines.fp32.converse(), lengths = [], controller = new AbortController();
          await conversation.say("a red car");
          for await (const _ of conversation.ask("two fish", { maxTokens: 9 })) {
            await new Promise((resolve) => setTimeout(resolve, 100)); // however fast the model is, it waits
            break;
          }
          lengths.push(await conversation.length);
          try {
            const events = conversation.ask("", { maxTokens: 9 }, { signal: controller.signal });
            for await (const _ of events) controller.abort();
          } catch (error) { lengths.push(error.name); }
          lengths.push(await conversation.length, await conversation.numRead);
          for await (const event of conversation.ask("", { maxTokens: 2, history: "forget" })) lengths.push(event.type);
          return lengths;
        }"""
    )
    assert lengths == [3, "AbortError", 3, 3, "word", "word", "answer"]


def test_refuses_in_the_same_sentences(tiny, web, python):
    cases = [
        [["ask", "a red zebra"]],
        [["say", "a red " + "\u2603"]],
        [["ask", "", {"maxTokens": 9999}]],
        [["ask", "", {"seed": str(2**64)}]],
        [["ask", "", {"topK": 99999}]],
        [["ask", "", {"topP": 0}]],
        [["ask", "", {"repetitionPenalty": 0}]],
        [["ask", "", {"forcedIds": [10**6]}]],
        [["rewind", 5]],
        [["show", picture(0)[1], {"height": 7}]],
    ]
    found = web("refusedTalks", "fp32", cases)
    expected = []
    calls = (
        lambda each: list(each.ask("a red zebra")),
        lambda each: each.say("a red \u2603"),
        lambda each: list(each.ask(options=AnswerOptions(max_tokens=9999))),
        lambda each: list(each.ask(seed=2**64)),
        lambda each: list(each.ask(options=AnswerOptions(top_k=99999))),
        lambda each: list(each.ask(options=AnswerOptions(top_p=0))),
        lambda each: list(each.ask(options=AnswerOptions(repetition_penalty=0))),
        lambda each: list(each.ask(token_ids=[10**6])),
        lambda each: each.rewind(5),
        lambda each: each.show(picture(0)[0], height=7),
    )
    for call in calls:
        with pytest.raises(RFError) as error:
            call(python["fp32"].converse())
        expected.append([str(error.value), error.value.kind])
    for one, other in zip(expected, found, strict=True):
        assert [one[0].replace("got 0.0.", "got 0."), one[1]] == other


def test_pictures_of_any_size_are_fitted_as_pillow_fits_them(tiny, web):
    sizes = [(16, 24), (17, 24), (5, 3), (100, 31), (64, 200), (333, 257), (1, 1), (48, 72), (16, 700)]
    pictures = [picture(number, *size) for number, size in enumerate(sizes)]
    flat = np.full((90, 140, 3), 200, np.uint8)
    flat[20:60, 30:90] = (255, 0, 20)
    pictures.append((flat, {"rgb": base64.b64encode(flat.tobytes()).decode(), "height": 90, "width": 140}))
    found = web("pixels", [sent for _, sent in pictures], 16, 24)
    for (rgb, _), pixels in zip(pictures, found, strict=True):
        expected = load_pixels(rgb, 16, 24)
        away = np.abs(expected - array(pixels, np.float32).reshape(3, 16, 24)) * 127.5
        assert away.max() < 1.01, rgb.shape  # which direction comes first differs between versions of Pillow
        assert (away > 0).mean() < 0.1


@pytest.fixture(scope="module")
def golden(tiny_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "golden"
    write_golden(tiny_bundle, folder)
    return Golden(folder)


def test_noise_times_and_texts_of_the_golden_vectors(golden, tiny, web):
    found = web("golden", golden.content)
    for each, values in zip(golden.content["noise"], found["noise"], strict=True):
        expected = np.array(each.get("normal") or each["gumbel"], np.float32)
        # The last bit is the business of the browser's logarithm.
        assert np.allclose(expected, values, rtol=2e-7, atol=1e-7), each
    assert found["times"] == [each["values"] for each in golden.content["times"]]
    assert found["texts"] == [each["ids"] for each in golden.content["texts"]]


def test_draws_the_golden_vectors(precision, golden, web):
    """Prompts that were drawn together are drawn one by one: the same up to rounding."""
    numbers = {"drawings": 0, "values": 0, "different": 0}
    for each in golden.drawings(precision):
        count = len(each["ids"])
        requests = [
            {
                "ids": ids,
                "seed": str(int(each["seed"]) + row),
                **in_javascript(each["options"]),
                **({"repIds": each["forced_rep_ids"][row]} if each["forced_rep_ids"] else {}),
            }
            for row, ids in enumerate(each["ids"])
        ]
        found = web("draw", precision, requests)
        assert [one["repIds"] for one in found] == each["rep_ids"], each["name"]
        data = np.frombuffer((golden.folder / each["file"]).read_bytes(), np.uint8).reshape(count, -1, 3)
        rgba = np.stack([array(one["rgba"], np.uint8).reshape(-1, 4)[:, :3] for one in found])
        away = np.abs(rgba.astype(int) - data)
        assert away.max() <= 1, each["name"]
        numbers["drawings"] += count
        numbers["values"] += away.size
        numbers["different"] += int((away > 0).sum())
    print(precision, numbers)
    assert numbers["drawings"] >= 10


def test_answers_the_golden_vectors(precision, golden, web):
    for each in golden.answers(precision):
        talk = []
        for shown in each["pictures"]:
            size = {"height": shown["height"], "width": shown["width"]}
            rgb = base64.b64encode(golden.picture(shown).tobytes()).decode()
            talk.append(["show", {"rgb": rgb, **size}, size])
        for turn in each["turns"]:
            options = {**in_javascript(each["options"]), "seed": each["seed"], "history": turn["history"]}
            talk.append(["ask", turn["question"], options])
        for turn, found in zip(each["turns"], web("converse", precision, talk), strict=True):
            assert (found["ids"], found["text"], found["endedBy"]) == (
                turn["answer_ids"],
                turn["answer"],
                turn["ended_by"],
            )
