"""Modern graphs on a device: past and present are one buffer, which the graphs write; and which profile a run takes.

As in test_runtime_device.py, all of it is the product's own code but the GPU.
"""

import json
import shutil

import numpy as np
import pytest

from engines import DimRange, EngineConfig, TensorRTConfig, build
from engines.probe import probe_inputs
from engines.tensorrt import network
from engines.tensorrt.profiles import resolve_dims
from runtime import GenerationOptions, PictureEvent, Pipeline, RFError
from runtime.backends import create_backend
from runtime.backends.cuda import memory as device_memory
from runtime.backends.cuda.device import CudaDevice
from runtime.bundle.engine import open_engine
from runtime.bundle.folder import open_bundle
from runtime.signature import GraphSignature, Variant
from tests.emulation import execution
from tests.emulation.api import VERSIONS, read_api
from tests.emulation.machine import machine

__all__ = ["machine"]  # a fixture

IN_PLACE = [version for version in VERSIONS if "get_aliased_input_tensor" in read_api(version)["ICudaEngine"]]
FEW = GenerationOptions(num_steps=5)
PROMPTS = ["a red car", "", "two blue fish left of a green cat"]  # with 6 tokens and their start at most 13 of 20 slots


@pytest.fixture
def bundle(fixed_bundle, tmp_path):
    return shutil.copytree(fixed_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))


def build_engine(bundle, here, dialect="modern", **options):
    options.setdefault("dims", {"batch": DimRange(1, 1, 4)})
    config = EngineConfig(
        backend=here.backend,
        dialect=dialect,
        num_threads=1,
        force=True,
        window=1,  # not measured
        tensorrt=TensorRTConfig(**options),
    )
    return build(bundle, config)


def draw(pipeline, prompts=PROMPTS, options=FEW, **arguments):
    events = pipeline.generate(prompts, seed=11, options=options, previews=False, **arguments)
    return [event for event in events if isinstance(event, PictureEvent)]


def assert_same(pictures, expected):
    assert len(pictures) == len(expected)
    for picture, other in zip(pictures, expected, strict=True):
        assert (picture.rep_ids == other.rep_ids).all()
        np.testing.assert_allclose(picture.pixels, other.pixels, atol=2e-4)


@pytest.fixture
def expected(fixed_bundle):
    return draw(Pipeline.load(fixed_bundle, num_threads=1, engine="none", dialect="modern"))


def load(bundle, here):
    return Pipeline.load(bundle, "fp32", here.backend, dialect="modern")


def test_three_versions_write_in_place():
    assert IN_PLACE == ["10.16.1", "11.4.0", "rtx-1.7.1"]


@pytest.mark.parametrize("version", IN_PLACE)
def test_modern_engines_draw_what_the_cpu_draws(bundle, machine, expected, version):
    here = machine(version)
    record = open_engine(build_engine(bundle, here)).record
    assert record.dialect == "modern"
    assert record.build["cache_slots"] == 20
    assert max(record.verified["largest_relative_error"].values()) < 1e-5, "every engine was run against its graph"
    pipeline = load(bundle, here)
    assert_same(draw(pipeline), expected)
    # Runs and nothing else: no keys and values are copied.
    assert here.gpu.log.captures[-2:] == [6 + 1, 5]
    assert_same(draw(pipeline), expected)


@pytest.mark.parametrize("version", IN_PLACE)
@pytest.mark.parametrize("window", [2, 4, 7])
def test_windows_write_in_place_what_single_passes_write(bundle, machine, expected, version, window):
    here = machine(version)
    build_engine(bundle, here)
    pipeline = load(bundle, here)
    for _ in range(2):
        assert_same(draw(pipeline, options=GenerationOptions(num_steps=5, window=window)), expected)
    assert here.gpu.log.captures[-2:] == [1, 5], "a pass, and the steps"
    unguided = {"rep_guidance_scale": 1.0, "guided": (0.2, 0.6)}
    found, wanted = (
        draw(each, options=GenerationOptions(num_steps=5, window=size, **unguided))
        for each, size in ((pipeline, window), (Pipeline.load(bundle, engine="none", dialect="modern"), 1))
    )
    assert_same(found, wanted)


def test_the_cache_has_no_free_dimension_in_the_profiles(bundle, machine):
    path = build_engine(bundle, machine("10.16.1"))
    plan = json.loads((path / "text_decoder.fp32.engine").read_bytes())
    prefill, decode = plan["profiles"]
    assert (prefill["input_ids"], prefill["row_starts"]) == ([[1, 1], [1, 13], [4, 13]], [[1], [1], [4]])
    assert decode["input_ids"] == [[1, 1], [1, 1], [4, 1]]
    assert all(shape[2] == 20 for name, shapes in prefill.items() if "key_values" in name for shape in shapes)
    assert plan["num_attentions"] == 2, "each layer's attention may be taken apart"


def test_attention_without_a_fused_kernel_may_be_taken_apart(bundle, machine, monkeypatch):
    monkeypatch.setattr(network, "_let_attention_decompose", lambda *_: None)
    with pytest.raises(RFError, match="no fused kernel for attention"):
        build_engine(bundle, machine("11.4.0"))


def test_what_graphs_write_for_the_padding_is_hidden(bundle, machine, monkeypatch):
    """Zeros, as in a cache that was never written: a hidden NaN would show."""
    here = machine("10.16.1")
    build_engine(bundle, here)
    drawing = load(bundle, here).generate(PROMPTS, seed=11, options=FEW)
    stages = []
    original = device_memory.DeviceCache.hide
    monkeypatch.setattr(
        device_memory.DeviceCache, "hide", lambda self, row, n: stages.append((self, row, n)) or original(self, row, n)
    )
    next(drawing)
    (cache, _, _), *_ = stages
    hidden = {row: num_slots for _, row, num_slots in stages}
    assert sorted(hidden) == [0, 1, 2]
    assert hidden[1] > hidden[0] > hidden[2] == hidden[1] - 8
    for address in cache.addresses():
        values = here.gpu.view(address, cache.shape, np.float32)
        for row, num_slots in hidden.items():
            assert not values[row, :, :num_slots].any()
            assert values[row, :, num_slots : hidden[1]].all(axis=-1).all()
    drawing.close()


def test_a_prompt_is_padded_no_further_than_the_cache(bundle, machine):
    here = machine("10.16.1")
    build_engine(bundle, here)
    pipeline = load(bundle, here)
    with pytest.raises(RFError, match="13"):
        pipeline.check(["a red car left of a blue fish right of a green cat and a red key"])
    draw(pipeline, ["a red car"])
    assert pipeline.model.runner._pool._kept.popitem()[0].prompt_slots == 13


def test_a_cache_of_free_length_is_refused_with_what_to_export(modern_bundle, machine, tmp_path):
    with pytest.raises(RFError, match=r"a cache of free length.*Export them with --cache-slots"):
        build_engine(modern_bundle, machine("10.16.1"))


def test_a_version_that_does_not_write_in_place_is_refused(bundle, machine):
    with pytest.raises(RFError, match=r"TensorRT 10\.13\.3 does not write a cache in place.* leave out --dialect"):
        build_engine(bundle, machine("10.13.3"))


def test_pictures_that_leave_no_room_in_the_cache_are_refused(bundle, machine):
    here = machine("10.16.1")
    with pytest.raises(RFError, match=r"with 6 representation tokens the cache of these graphs takes 13"):
        build_engine(bundle, here, dims={"prompt": DimRange(1, 8, 16)})
    large = {"height": DimRange(16, 16, 32), "width": DimRange(24, 24, 32)}  # 16 tokens and their start: 3 are left
    with pytest.raises(RFError, match=r"with 16 representation tokens the cache of these graphs takes 3"):
        build_engine(bundle, here, dims={**large, "prompt": DimRange(1, 2, 4)})
    with pytest.raises(RFError, match=r"have 7 cache slots, and pictures of 6 tokens take 7 and a prompt"):
        resolve_dims(open_bundle(bundle).manifest.model, {}, 7)


def test_engines_of_both_dialects_stand_side_by_side(tiny_bundle, bundle, machine, tmp_path):
    here = machine("10.16.1")
    modern = build_engine(bundle, here)
    with pytest.raises(RFError, match=r"has no engine of the backend tensorrt in fp32, and"):
        Pipeline.load(bundle, "fp32", here.backend)
    with pytest.raises(RFError, match="was built from modern graphs, and classic was asked for"):
        Pipeline.load(bundle, "fp32", here.backend, engine=modern)
    classic = shutil.copytree(tiny_bundle, tmp_path / "classic", ignore=shutil.ignore_patterns("engines"))
    build_engine(classic, here, "classic")
    with pytest.raises(RFError, match=r"tensorrt in fp32 modern, .* --dialect modern"):
        load(classic, here)


def test_onnx_runtime_builds_no_engine_from_modern_graphs(bundle):
    with pytest.raises(RFError, match="built from classic graphs, and modern was asked for"):
        build(bundle, EngineConfig(dialect="modern"))


# ---- profiles, contexts and dtypes


def text_decoder(bundle, here, dialect):
    path = build_engine(bundle, here, dialect, dims={"batch": DimRange(1, 1, 2), "prompt": DimRange(1, 8, 12)})
    return create_backend(here.backend).open(path / "text_decoder.fp32.engine", num_threads=None, compiled=True)


def chosen_profile(session, num_tokens, num_slots):
    spec = session.signature
    shapes = {each.name: tuple(size if isinstance(size, int) else 1 for size in each.shape) for each in spec.inputs}
    shapes["input_ids"] = (1, num_tokens)
    shapes |= {name: (1, shape[1], num_slots, shape[3]) for name, shape in shapes.items() if "past_key" in name}
    return session._choose_profile(shapes)


def test_whole_prompts_and_single_tokens_have_a_profile_each(tiny_bundle, bundle, machine, tmp_path):
    here = machine("10.16.1")
    modern = text_decoder(bundle, here, "modern")
    assert [chosen_profile(modern, n, 20) for n in (12, 5, 2, 1)] == [0, 0, 0, 1]
    copy = shutil.copytree(tiny_bundle, tmp_path / "classic", ignore=shutil.ignore_patterns("engines"))
    classic = text_decoder(copy, here, "classic")
    assert [chosen_profile(classic, n, 1) for n in (12, 2)] == [0, 0]
    assert chosen_profile(classic, 1, 17) == 1
    assert chosen_profile(classic, 3, 17) == 2, "a further question"
    with pytest.raises(RFError, match="built for other sizes"):
        chosen_profile(classic, 3, 10_000)


@pytest.fixture
def classic_bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "classic", ignore=shutil.ignore_patterns("engines"))


def test_version_8_has_whole_numbers_of_32_bits_and_is_given_these(classic_bundle, machine, monkeypatch):
    here = machine("8.6.1")
    build_engine(classic_bundle, here, "classic")
    tables = []
    original = device_memory.StepTable.__init__

    def keep(self, *arguments):
        original(self, *arguments)
        tables.append(self)

    monkeypatch.setattr("runtime.backends.cuda.memory.StepTable.__init__", keep)
    pictures = draw(Pipeline.load(classic_bundle, "fp32", here.backend))
    assert_same(pictures, draw(Pipeline.load(classic_bundle, num_threads=1, engine="none")))
    assert {table.dtype.name for table in tables} == {"int32", "float32"}


def test_version_8_lets_contexts_share_a_profile_only_if_it_was_built_so(classic_bundle, machine):
    here = machine("8.6.1")
    path = build_engine(classic_bundle, here, "classic")
    plan = json.loads((path / "denoiser.fp32.engine").read_bytes())
    assert plan["shares_profiles"]
    backend = create_backend(here.backend)
    (path / "denoiser.fp32.engine").write_text(json.dumps({**plan, "shares_profiles": False}))
    session = backend.open(path / "denoiser.fp32.engine", num_threads=None, compiled=True)
    model = open_bundle(classic_bundle).manifest.model
    sizes = {"request": 1, "row": 2, "cache": 40, "height": 16, "width": 24}
    inputs = probe_inputs(GraphSignature.of("denoiser", model, Variant("fp32")), model, sizes)
    with pytest.raises(RuntimeError, match="does not take its profile"):
        session.run(inputs)


def test_an_engine_that_needs_no_memory_for_activations_runs(classic_bundle, machine, monkeypatch):
    """11.x has no other property to ask than the one that says 0."""
    monkeypatch.setitem(execution.ARENA_BYTES, "text_decoder", 0)
    here = machine("11.4.0")
    build_engine(classic_bundle, here, "classic")
    draw(Pipeline.load(classic_bundle, "fp32", here.backend))


def test_memory_beyond_what_one_memset_takes_is_cleared_in_pieces(machine, monkeypatch):
    gpu, device = machine().gpu, CudaDevice()
    monkeypatch.setattr("runtime.backends.cuda.device._MEMSET_BYTES", 300)
    with device.exclusive():
        memory = device.allocate(1000)
        device.zero(int(memory), 900)
        device.synchronize()
        values = gpu.view(int(memory), (1000,), np.uint8)
        assert not values[:900].any()
        assert values[900:].all(), "and nothing else"
    assert gpu.log.operations == 3


def test_tensorrt_rtx_compiles_for_the_shape_at_once_so_that_it_can_be_captured(classic_bundle, machine):
    here = machine("rtx-1.7.1")
    build_engine(classic_bundle, here, "classic")
    draw(Pipeline.load(classic_bundle, "fp32", here.backend))
    assert len(here.gpu.log.captures) == 2
