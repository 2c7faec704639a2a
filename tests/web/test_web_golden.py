"""The browser host comes to the golden vectors, read as a host in any language reads them."""

import base64

import numpy as np
import pytest
from browsing import array, in_javascript, require_browser
from golden_vectors import Golden

from verification.golden import write_golden

require_browser()


@pytest.fixture(scope="module")
def golden(tiny_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "golden"
    write_golden(tiny_bundle, folder)
    return Golden(folder)


def test_noise_times_and_texts(golden, tiny, web):
    found = web("golden", golden.content)
    for each, values in zip(golden.content["noise"], found["noise"], strict=True):
        expected = np.array(each.get("normal") or each["gumbel"], np.float32)
        # The last bit is the business of the browser's logarithm.
        assert np.allclose(expected, values, rtol=2e-7, atol=1e-7), each
    assert found["times"] == [each["values"] for each in golden.content["times"]]
    assert found["texts"] == [each["ids"] for each in golden.content["texts"]]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_draws_what_is_written_there(precision, golden, tiny, web):
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_answers_what_is_written_there(precision, golden, tiny, web):
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
