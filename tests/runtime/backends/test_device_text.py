"""Conversations on a device say what they say on the CPU, and between two words no keys and values leave it.

As in test_runtime_device.py, all of it is the product's own code but the GPU.
"""

import gc
import shutil
import types

import numpy as np
import pytest
from pipelines import pipeline_of

from engines import DimRange, EngineConfig, TensorRTConfig, build
from runtime import AnswerEvent, AnswerOptions, Pipeline, RFError
from runtime.backends.cuda import memory as device_memory
from runtime.backends.cuda import text as device_text
from runtime.backends.cuda.device import CudaDevice
from runtime.backends.cuda.ort import OrtCudaBackend
from runtime.bundle.folder import open_bundle
from runtime.options import AnswerPlan
from runtime.signature import GRAPHS, Variant
from runtime.understanding.answers import answer
from tests.emulation.api import VERSIONS, read_api
from tests.emulation.machine import machine

__all__ = ["machine"]  # a fixture

IN_PLACE = [version for version in VERSIONS if "get_aliased_input_tensor" in read_api(version)["ICudaEngine"]]
TOLERANCE = 2e-4  # fp32 graphs on the same kernels; the cache of a device has more hidden slots
PICTURES = [np.full((16, 24, 3), 200, np.uint8), np.random.default_rng(1).integers(0, 256, (16, 24, 3), np.uint8)]
GREEDY = AnswerOptions(max_tokens=4)
WARM = AnswerOptions(max_tokens=5, temperature=1.0, top_p=0.9, repetition_penalty=1.2)


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))


def load(bundle, here, precision="fp32", dialect="classic"):
    """A pipeline on the emulated GPU, its engine built for conversations of up to 64 tokens or so."""
    dims = {"batch": DimRange(1, 1, 2)} if dialect == "modern" else {"prompt": DimRange(1, 8, 60)}
    config = EngineConfig(
        backend=here.backend,
        precision=precision,
        dialect=dialect,
        num_threads=1,
        force=True,
        window=1,
        tensorrt=TensorRTConfig(dims=dims),
    )
    build(bundle, config)
    return Pipeline.load(bundle, precision, here.backend, dialect=dialect)


def on_cpu(bundle, precision="fp32", dialect="classic"):
    return Pipeline.load(bundle, precision, num_threads=1, engine="none", dialect=dialect)


def ask(conversation, question="", options=GREEDY, **arguments):
    return list(conversation.ask(question, options=options, **arguments))


def talk(pipeline):
    """Captions, further questions, the way back, a second picture, and an answer that is given up."""
    conversation = pipeline.converse()
    conversation.show(PICTURES[0])
    events = ask(conversation, history="forget")
    events += ask(conversation, "a red car", history="forget")
    events += ask(conversation, "two blue fish", WARM, seed=3)
    place = conversation.length
    given_up = conversation.ask("a cup", options=GREEDY)
    events += [next(given_up), next(given_up)]
    given_up.close()
    conversation.show(PICTURES[1])
    events += ask(conversation, "a key")
    conversation.rewind(place)
    return events + ask(conversation, "a key", WARM)


def short_talk(pipeline):
    """The same within the few slots of a fixed cache."""
    conversation = pipeline.converse()
    conversation.show(PICTURES[0])
    events = ask(conversation, history="forget")
    events += ask(conversation, "a red car", history="forget")
    return events + ask(conversation, "a cup", WARM, seed=3)


def assert_same(events, expected, tolerance=TOLERANCE):
    assert len(events) == len(expected)
    for event, other in zip(events, expected, strict=True):
        if isinstance(other, AnswerEvent):
            assert event == other
        else:
            assert event.token_id == other.token_id
            np.testing.assert_allclose(event.logits, other.logits, atol=tolerance)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_says_what_the_cpu_says(bundle, machine, version):
    """Images, a first question, and further ones after a past: every profile of the text decoder."""
    assert_same(talk(load(bundle, machine(version))), talk(on_cpu(bundle)))


@pytest.mark.parametrize("version", IN_PLACE)
def test_modern_engines_say_what_the_cpu_says(fixed_bundle, machine, tmp_path, version):
    path = shutil.copytree(fixed_bundle, tmp_path / "fixed", ignore=shutil.ignore_patterns("engines"))
    here = machine(version)
    assert_same(short_talk(load(path, here, dialect="modern")), short_talk(on_cpu(path, dialect="modern")))


def test_half_precision_says_the_same_words(bundle, machine):
    assert_same(talk(load(bundle, machine(), "fp16")), talk(on_cpu(bundle, "fp16")), tolerance=0.05)


def test_a_word_moves_no_keys_and_values_between_host_and_device(bundle, machine):
    here = machine()
    pipeline = load(bundle, here)
    vocabulary, log = pipeline.bundle.manifest.model.vocab_size, here.gpu.log
    conversation = pipeline.converse()
    conversation.show(PICTURES[0])
    answer = conversation.ask("two blue fish", options=GREEDY)
    next(answer), next(answer)
    for _ in range(2):
        before = log.uploaded, log.downloaded
        next(answer)
        assert log.uploaded - before[0] <= 2 * 256, "the token before, and where it goes"
        assert log.downloaded - before[1] == 256 + device_memory.aligned(4 * vocabulary), "a token and its logits"


def test_words_are_captured_once_and_replayed_for_further_answers(bundle, machine):
    here = machine()
    conversation = load(bundle, here).converse()
    conversation.show(PICTURES[0])
    captures, launches = len(here.gpu.log.captures), here.gpu.log.launches
    ask(conversation, history="forget")
    assert here.gpu.log.captures[captures:] == [1], "one run"
    assert here.gpu.log.launches - launches == 2, "the first word comes with the prompt, the second is run plainly"
    ask(conversation, "", history="forget")
    assert len(here.gpu.log.captures) <= captures + 2, "at most the question, which was asked a second time"
    assert here.gpu.log.launches - launches >= 5


def test_the_row_grows_by_many_slots_and_keeps_what_was_read(bundle, machine):
    row, plain = load(bundle, machine()).model.text_row(), on_cpu(bundle).model.text_row()
    plan = AnswerPlan(max_tokens=1, temperature=1.0, top_k=1, top_p=1.0, repetition_penalty=1.0, greedy=True)
    sizes = set()
    for token in range(60):
        found, expected = (
            next(answer(each, [token], np.zeros((0, 0), each.kv), plan, lambda *_: None)) for each in (row, plain)
        )
        np.testing.assert_allclose(found.logits, expected.logits, atol=TOLERANCE)
        sizes.add(row._cache.num_slots)
    assert row.length == plain.length == 60
    assert len(sizes) == 2, "a few slots, and then enough for all of it"


def test_nothing_of_another_conversation_shows(bundle, machine):
    here = machine()
    pipeline = load(bundle, here)
    one, other = pipeline.converse(), pipeline.converse()
    for conversation, shown in ((one, PICTURES[0]), (other, PICTURES[1])):
        conversation.show(shown)
    first, second = one.ask("a red car", options=GREEDY), other.ask("a red car", options=GREEDY)
    pairs = list(zip(first, second, strict=True))  # word by word, in turns
    for pictures, events in ((PICTURES[:1], [a for a, _ in pairs]), (PICTURES[1:], [b for _, b in pairs])):
        alone = on_cpu(bundle).converse()
        alone.show(*pictures)
        assert_same(events, ask(alone, "a red car"))


def test_memory_goes_with_the_conversation(bundle, machine):
    here = machine()
    pipeline = load(bundle, here)
    talk(pipeline)
    gc.collect()  # the builder's own device
    here.gpu.log.freed_without_context = 0
    with pipeline.model.runner._device.exclusive():
        before = sum(here.gpu.sizes.values())
    for _ in range(3):
        talk(pipeline)
    with pipeline.model.runner._device.exclusive():
        assert sum(here.gpu.sizes.values()) == before
    assert here.gpu.log.freed_without_context == 0


def test_a_conversation_longer_than_the_engine_is_refused_with_what_to_build(bundle, machine):
    here = machine()
    pipeline = load(bundle, here)
    conversation = pipeline.converse()
    conversation.show(*PICTURES)
    assert ask(conversation, "a cup", history="forget")
    with pytest.raises(RFError, match=r"takes 96 tokens, .* this engine was built for 68\. .*--dim prompt"):
        conversation.show(*PICTURES * 7)
    with pytest.raises(RFError, match="built for other sizes: input_ids"):
        ask(pipeline.converse(), " ".join(["cup"] * 61), AnswerOptions(max_tokens=1))
    assert ask(conversation, "a cup")


def test_onnx_runtime_on_a_device_says_the_same(bundle, machine):
    """ONNX Runtime's real binding of addresses, with the CPU in the place of the GPU."""
    machine()
    backend = OrtCudaBackend("CPUExecutionProvider", "cpu")
    opened, sessions = open_bundle(bundle), {}
    for name in GRAPHS:
        session = backend.open(opened.file(opened.graph(name, Variant("fp32")).file), num_threads=1, compiled=False)
        if name != "vision_encoder":
            run, binding = session._session.run_with_iobinding, session._session.io_binding

            def run_in_order(bound, options, run=run):  # the CPU does not wait for a stream: do what is on it first
                CudaDevice.synchronize(backend._device)
                run(bound, options)

            session._session = types.SimpleNamespace(io_binding=binding, run_with_iobinding=run_in_order)
        sessions[name] = session
    assert_same(talk(pipeline_of(opened, sessions, runner=backend)), talk(on_cpu(bundle)))


# ---- mutations: what the comparison has to see


def break_slot(monkeypatch):
    append = device_memory.DeviceCache.append
    monkeypatch.setattr(device_memory.DeviceCache, "append", lambda self, new, slot, n: append(self, new, slot + 1, n))


def break_growth(monkeypatch):
    monkeypatch.setattr(device_memory.DeviceCache, "take", lambda self, other, num_slots: None)


def break_upload(monkeypatch):
    call = device_text._Run.__call__

    def stale(self, values):
        call(self, values if not self._num_runs else {"past_lengths": values["past_lengths"]})

    monkeypatch.setattr(device_text._Run, "__call__", stale)


@pytest.mark.parametrize("mutation", [break_slot, break_growth, break_upload])
def test_a_mistake_is_seen(bundle, machine, monkeypatch, mutation):
    pipeline, expected = load(bundle, machine()), talk(on_cpu(bundle))
    monkeypatch.setattr(device_text, "_GROWTH", 1)  # so that the row grows again and again
    assert_same(talk(pipeline), expected)
    mutation(monkeypatch)
    with pytest.raises(AssertionError):
        assert_same(talk(pipeline), expected)
