"""Golden vectors are what the runtime draws and answers again, and their folder is replaced only where it may be."""

import numpy as np
import pytest
from click.testing import CliRunner
from golden_vectors import Golden, options_of, same_answers

import cli
from runtime import AnswerOptions, RFError
from runtime.events import AnswerEvent
from runtime.plans import plan_drawing
from runtime.request import make_requests
from verification.golden import require_folder, write_golden


@pytest.fixture(scope="module")
def golden(tiny_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "golden"
    write_golden(tiny_bundle, folder)
    return Golden(folder)


def test_the_numbers_are_those_of_the_runtime(golden):
    golden.check_noise_and_times()


def test_drawn_again_they_are_equal(golden, pipeline):
    assert golden.content["bundle_id"] == pipeline.bundle.manifest.bundle_id
    for each in golden.drawings("fp32"):
        plan = plan_drawing(options_of(each), pipeline.bundle.manifest)
        forced = np.array(each["forced_rep_ids"], np.int64) if each["forced_rep_ids"] else None
        events = list(pipeline.run(make_requests(each["ids"], int(each["seed"]), plan, forced), previews=False))
        golden.compare(each, events[-len(each["ids"]) :])
        assert list(plan.times) == each["times"]


def test_a_text_is_drawn_as_its_ids_are(golden, pipeline):
    (each,) = (each for each in golden.drawings("fp32") if each["texts"])
    events = list(pipeline.generate(each["texts"], seed=int(each["seed"]), options=options_of(each), previews=False))
    golden.compare(each, events[-len(each["ids"]) :])


def test_asked_again_they_are_answered_the_same(golden, pipeline):
    for each in golden.answers("fp32"):
        conversation = pipeline.converse()
        for picture in each["pictures"]:
            conversation.show(golden.picture(picture), height=picture["height"], width=picture["width"])
        options = AnswerOptions(**each["options"])
        for turn in each["turns"]:
            *_, answer = conversation.ask(
                turn["question"], seed=int(each["seed"]), options=options, history=turn["history"]
            )
            assert isinstance(answer, AnswerEvent)
            same_answers(turn, answer)


def test_they_cover_what_a_host_may_get_wrong(golden, tiny_bundle):
    drawings = golden.drawings("fp32")
    assert len(drawings) >= 15
    assert {each["seed"] for each in drawings} >= {"0", "7", str(2**64 - 1)}
    for option in ("window", "guided", "times", "shift", "temperature", "top_k", "rep_guidance_scale", "height"):
        assert any(option in each["options"] for each in drawings), option
    assert any(each["forced_rep_ids"] for each in drawings)
    assert any([] in each["ids"] for each in drawings)
    assert {each["precision"] for each in golden.content["drawings"]} == {"fp32", "fp16"}
    assert {turn["history"] for each in golden.answers("fp32") for turn in each["turns"]} == {"keep", "forget"}
    assert sum(path.stat().st_size for path in golden.folder.iterdir()) < 400_000


def test_the_texts_are_those_that_the_bundle_carries(golden, tiny_bundle, pipeline):
    assert golden.content["texts"] == golden.texts_of(tiny_bundle)
    for each in golden.content["texts"]:
        try:
            ids = pipeline.model.tokenizer.encode(each["text"], 1 << 20)
        except RFError:
            ids = None
        assert ids == each["ids"], each


def test_a_folder_of_something_else_is_never_replaced(tmp_path, tiny_bundle):
    (tmp_path / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(RFError, match="Name a new folder for the golden vectors: --golden DIR"):
            require_folder(tmp_path, force=force)
        with pytest.raises(RFError):
            write_golden(tiny_bundle, tmp_path, force=force)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("command", ["export", "verify"])
def test_the_commands_refuse_it_before_they_begin(command, tmp_path, tiny_bundle, tiny_checkpoint):
    more = [str(tiny_checkpoint), "-o", str(tmp_path / "bundle")] if command == "export" else [str(tiny_bundle)]
    result = CliRunner().invoke(cli.main, [command, *more, "--golden", str(tmp_path)])
    assert result.exit_code == 1
    assert "Name a new folder for the golden vectors" in result.output
    assert not (tmp_path / "bundle").exists()


def test_a_verification_writes_them(golden, tiny_bundle, tmp_path):
    arguments = [
        "verify",
        tiny_bundle,
        "--quick",
        "--precision",
        "fp16",
        "--no-record",
        "--golden",
        tmp_path / "golden",
    ]
    result = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert Golden(tmp_path / "golden").content == golden.content
