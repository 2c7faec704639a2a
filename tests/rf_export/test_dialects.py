"""Both dialects of one checkpoint draw the same pictures, and the modern one writes its cache in place."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verifying import compare

from rf_export.checkpoint import load_checkpoint
from rf_export.graphs.modern import tensor_scatter
from runtime import GenerationOptions, PictureEvent, Pipeline, RFError, TokenEvent
from runtime.backends import create_backend
from runtime.backends.host.cache import KVCache
from runtime.backends.host.stages import prefill
from runtime.bundle.engine import Engine, EngineGraph, EngineRecord
from runtime.bundle.folder import open_bundle
from runtime.bundle.manifest import FileEntry
from runtime.scheduling.scheduler import Scheduler
from runtime.signature import GRAPHS, GraphSignature, Variant
from verification.limits import LIMITS
from verification.measures.metrics import psnr_db

FEW = GenerationOptions(num_steps=4)
PROMPTS = ["a red car left of a blue fish", "two cats", ""]
SLOTS = 20  # of fixed_bundle: 6 representation tokens and their start leave 13 for a prompt


def load(bundle, precision="fp32", dialect="modern"):
    return Pipeline.load(bundle, precision, num_threads=1, engine="none", dialect=dialect)


def draw(pipeline, **arguments):
    events = list(pipeline.generate(PROMPTS, seed=5, options=FEW, **arguments))
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    pictures = [event for event in events if isinstance(event, PictureEvent)]
    return (
        np.stack([event.logits for event in tokens]),  # [N, R, K]
        np.stack([event.rep_ids for event in pictures]),  # [R, N]
        np.stack([event.pixels for event in pictures]),
    )


def test_the_modern_dialect_draws_the_same_tokens_and_picture(tiny_bundle, modern_bundle):
    """Three prompts of different length together, one of them empty."""
    logits, rep_ids, pixels = draw(load(tiny_bundle, dialect="classic"))
    modern_logits, modern_ids, modern_pixels = draw(load(modern_bundle))
    assert (modern_ids == rep_ids).all()
    np.testing.assert_allclose(modern_logits, logits, atol=1e-4)
    assert psnr_db(modern_pixels, pixels) >= 60


def test_fp16_of_both_dialects_agrees_from_the_same_tokens(tiny_bundle, modern_bundle):
    _, rep_ids, exact = draw(load(tiny_bundle, dialect="classic"))
    classic_logits, _, classic = draw(load(tiny_bundle, "fp16", "classic"), rep_ids=rep_ids)
    modern_logits, _, modern = draw(load(modern_bundle, "fp16"), rep_ids=rep_ids)
    for pixels in (classic, modern):
        assert psnr_db(pixels, exact) >= LIMITS["fp16"].psnr_db
    cosine = (classic_logits * modern_logits).sum(-1)
    cosine /= np.linalg.norm(classic_logits, axis=-1) * np.linalg.norm(modern_logits, axis=-1)
    assert cosine.min() >= LIMITS["fp16"].cosine


def test_the_export_records_the_verdict_on_each_dialect(modern_bundle):
    bundle = open_bundle(modern_bundle)
    verified = bundle.manifest.verified
    assert set(verified) == {"fp32.modern", "fp16.modern"}
    for precision in ("fp32", "fp16"):
        figures = verified[f"{precision}.modern"]
        assert figures["verdict"] == "passed"
        assert figures["graphs"] == {name: bundle.graph_sha256(name, Variant(precision, "modern")) for name in GRAPHS}
        assert figures["picture_psnr_db"] >= LIMITS[precision].psnr_db


def test_the_dialects_differ_in_nothing_but_the_cache_that_comes_out(modern_bundle):
    manifest = open_bundle(modern_bundle).manifest
    for graph in manifest.graphs:
        classic = GraphSignature.of(graph.name, manifest.model, Variant(graph.precision))
        assert graph.opset == 24
        assert graph.signature.inputs == classic.inputs
        plain = [spec for spec in graph.signature.outputs if not spec.name.startswith("present.")]
        assert plain == [spec for spec in classic.outputs if not spec.name.startswith("present.")]
        for spec in graph.signature.outputs[len(plain) :]:
            assert spec.shape == graph.signature.input(spec.name.replace("present", "past_key_values")).shape


def rep_step(bundle, cache, write):
    """Runs rep_decoder for one request on bound memory."""
    opened = open_bundle(bundle)
    entry = opened.graph("rep_decoder", Variant("fp32", "modern"))
    session = create_backend("ort").open(opened.file(entry.file), num_threads=1, compiled=False)
    inputs = {
        "rep_ids": np.array([[3]]),
        "grid_positions": np.zeros((1, 1, 2), np.int64),
        "row_requests": np.zeros(2, np.int64),
        "uncond_rows": np.ones(1, np.int64),
        "row_starts": np.array([1, 4]),
        "past_lengths": cache.lengths.copy(),
        "gumbel": np.zeros((1, 1, opened.manifest.model.rep_vocab_size), np.float32),
        "guidance_scale": np.ones(1, np.float32),
        "temperature": np.ones(1, np.float32),
        "top_k": np.array([5]),
    }
    outputs = {"next_rep_ids": np.zeros((1, 1), np.int64), **write.outputs}
    session.bind({**inputs, **write.inputs}, outputs)()


def test_one_buffer_for_past_and_present_is_written_in_one_slot(modern_bundle):
    model = open_bundle(modern_bundle).manifest.model
    cache = KVCache(model, Variant("fp32", "modern"), 2, 9)
    cache.values[:] = np.random.default_rng(0).standard_normal(cache.values.shape)
    cache.lengths[:] = 6, 4
    before = cache.values.copy()
    write = cache.write(2, 1)
    for name, array in write.outputs.items():
        assert np.shares_memory(array, write.inputs[name.replace("present", "past_key_values")])
    rep_step(modern_bundle, cache, write)
    changed = (cache.values != before).any(axis=(2, 4))  # [2 L, rows, slots]
    written = np.zeros(changed.shape[1:], bool)
    written[[0, 1], cache.lengths] = True
    assert (changed == written).all()


def test_the_picture_of_a_prompt_does_not_depend_on_its_neighbours(modern_bundle):
    pipeline = load(modern_bundle)
    together = [
        event.pixels for event in pipeline.generate(PROMPTS, seed=5, options=FEW) if isinstance(event, PictureEvent)
    ]
    for index, prompt in enumerate(PROMPTS):
        *_, alone = pipeline.generate([prompt], seed=5 + index, options=FEW)
        np.testing.assert_allclose(alone.pixels, together[index], atol=2e-4)


def test_a_cache_of_fixed_length_draws_the_same(modern_bundle, fixed_bundle):
    slots = {graph.name: graph.signature.cache_slots for graph in open_bundle(fixed_bundle).manifest.graphs}
    assert slots == {**dict.fromkeys(GRAPHS, SLOTS), "vision_encoder": None}
    _, rep_ids, pixels = draw(load(modern_bundle))
    _, fixed_ids, fixed_pixels = draw(load(fixed_bundle))
    assert (fixed_ids == rep_ids).all()
    np.testing.assert_allclose(fixed_pixels, pixels, atol=2e-4)


def test_what_does_not_fit_into_a_fixed_cache_is_refused_by_the_call(fixed_bundle):
    pipeline = load(fixed_bundle)
    assert pipeline.draw(" ".join(["red"] * 13), options=FEW).any()
    with pytest.raises(RFError, match="has 14 tokens and the model takes 13"):
        pipeline.generate([" ".join(["red"] * 14)])
    large = GenerationOptions(height=32, width=32)  # 16 tokens and their start
    assert pipeline.draw("red red red", options=GenerationOptions(height=32, width=32, num_steps=1)).any()
    with pytest.raises(RFError, match="has 4 tokens and the model takes 3"):
        pipeline.generate(["red red red red"], options=large)


def test_a_fixed_cache_that_no_picture_fits_is_refused(fixed_bundle, modern_bundle):
    small = open_bundle(fixed_bundle)
    loaded = load(fixed_bundle)
    fixed = _Fixed(loaded.sessions["rep_decoder"], small.manifest.model, 6)
    pipeline = loaded.with_sessions({"rep_decoder": fixed})
    with pytest.raises(RFError, match=r"have 6 cache slots, and a picture of 16 x 24 takes 7\..*--cache-slots"):
        pipeline.generate([""])


class _Fixed:
    """A session that tells of another length of its cache."""

    def __init__(self, session, model, slots):
        self.signature = GraphSignature.of("rep_decoder", model, Variant("fp32", "modern"), slots)


def test_only_the_modern_dialect_has_a_fixed_cache(modern_bundle):
    model = open_bundle(modern_bundle).manifest.model
    for slots, dialect in ((8, "classic"), (0, "modern")):
        with pytest.raises(ValueError, match="fixed in the modern dialect only"):
            GraphSignature.of("denoiser", model, Variant("fp32", dialect), slots)


def test_a_dialect_that_is_not_there_is_refused(tiny_bundle, modern_bundle):
    with pytest.raises(RFError, match="has no text_decoder in fp32 modern; it has fp16 classic, fp32 classic"):
        load(tiny_bundle)
    with pytest.raises(RFError, match="has no text_decoder in fp32 classic"):
        load(modern_bundle, dialect="classic")


def test_engines_and_the_scheduler_are_for_classic_graphs(modern_bundle, monkeypatch, tmp_path):
    with pytest.raises(RFError, match="The scheduler runs classic graphs, and this pipeline is modern"):
        Scheduler(load(modern_bundle))
    record = EngineRecord(
        target=create_backend("ort").target(),
        precision="fp32",
        dialect="classic",
        bundle_id="",
        graphs={name: EngineGraph(file="graph", source_sha256="0" * 64) for name in GRAPHS},
        files={"graph": FileEntry(sha256="0" * 64, size=1)},
        build={},
        verified={},
    )
    monkeypatch.setattr("runtime.loading.open_engine", lambda path: Engine(path, record))
    with pytest.raises(RFError, match="was built from classic graphs, and modern was asked for"):
        Pipeline.load(modern_bundle, dialect="modern", engine=tmp_path)


class _WrongSlot:
    """rep_decoder that writes one slot too early, as a mistaken index would."""

    def __init__(self, session):
        self._session = session
        self.signature = session.signature

    def bind(self, inputs, outputs):
        shifted = inputs["past_lengths"].copy()
        run = self._session.bind({**inputs, "past_lengths": shifted}, outputs)

        def step():
            shifted[:] = np.maximum(inputs["past_lengths"] - 1, 0)
            run()

        return step


def test_verification_finds_a_row_written_into_the_wrong_slot(tiny_checkpoint, modern_bundle):
    model = load_checkpoint(tiny_checkpoint)
    wrong = {"rep_decoder": _WrongSlot(load(modern_bundle).sessions["rep_decoder"])}
    assert compare(model, modern_bundle, "fp32", "modern").verdict == "passed"
    outcome = compare(model, modern_bundle, "fp32", "modern", sessions=wrong, look_inside=False)
    assert outcome.verdict == "failed"
    assert outcome.tally.first.tensor == "present.0.key"  # of the text, whose last slot is overwritten


def test_verification_takes_prompts_that_fit_into_a_fixed_cache(tiny_checkpoint, fixed_bundle):
    outcome = compare(load_checkpoint(tiny_checkpoint), fixed_bundle, "fp32", "modern", profile="full")
    assert (outcome.verdict, outcome.tally.denoising_steps) == ("passed", 25)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_tensor_scatter_writes_the_rows_that_onnx_says(data):
    """Against the pseudocode of the ONNX specification, TensorScatter-24."""
    rows, heads, slots, size = (data.draw(st.integers(1, 4)) for _ in range(4))
    tokens = data.draw(st.integers(1, slots))
    starts = data.draw(st.lists(st.integers(0, slots - tokens), min_size=rows, max_size=rows))
    rng = np.random.default_rng(0)
    past = rng.standard_normal((rows, heads, slots, size))
    update = rng.standard_normal((rows, heads, tokens, size))
    expected = past.copy()
    for row, start in enumerate(starts):
        expected[row, :, start : start + tokens] = update[row]
    found = tensor_scatter(torch.from_numpy(past), torch.from_numpy(update), torch.tensor(starts))
    assert (found.numpy() == expected).all()


@pytest.mark.parametrize("dialect", ["classic", "modern"])
def test_nothing_of_the_padding_stays_in_the_cache(dialect, tiny_bundle, modern_bundle):
    bundle = tiny_bundle if dialect == "classic" else modern_bundle
    pipeline = load(bundle, dialect=dialect)
    model = pipeline.bundle.manifest.model
    cache = KVCache(model, Variant("fp32", dialect), 6, 9)
    prefill(pipeline.sessions["text_decoder"], [[1, 2, 3], [], [4]], cache)
    assert cache.lengths.tolist() == [3, 0, 1, 0, 0, 0]
    for row, length in enumerate(cache.lengths):
        assert (cache.values[:, row, :, length:] == 0).all()
        assert (cache.values[:, row, :, :length] != 0).any() == (length > 0)
