"""Options, profiles and targets of TensorRT engines: what is refused, and what comes of four dimensions."""

import platform

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import MODEL

from engines import DimRange, EngineConfig, TensorRTConfig, parse_dims
from engines.build import create_builder
from engines.probe import _room, probe_inputs
from engines.tensorrt.profiles import probe_sizes, profiles, resolve_dims
from runtime import RFError
from runtime.backends.cuda.layout import ALIGNMENT, cache_slots, padded_prompt
from runtime.backends.interface import Target
from runtime.bundle.compatibility import any_device, device_fits, from_capability, from_version, version_fits
from runtime.bundle.folder import open_bundle
from runtime.signature import GRAPHS, GraphSignature, Variant


def test_a_range_is_read_and_written():
    assert DimRange.parse("1:32:256") == DimRange(1, 32, 256)
    assert DimRange.parse("4") == DimRange(4, 4, 4)
    assert str(DimRange(1, 2, 3)) == "1:2:3"
    assert parse_dims(("batch=1:1:4", "prompt=8")) == {"batch": DimRange(1, 1, 4), "prompt": DimRange(8, 8, 8)}


@pytest.mark.parametrize("text", ["batch=", "batch=1:2", "batch=a", "batch", "batch=3:2:1", "batch=0:1:1", "b=1:1:1:1"])
def test_a_wrong_range_is_refused(text):
    with pytest.raises(ValueError, match=r"MIN:OPT:MAX|1 <= min <= opt <= max"):
        parse_dims((text,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": {"cache": DimRange(1, 1, 1)}}, "no dimension 'cache'; choose from batch, prompt, images, window"),
        ({"workspace_mib": 0}, "workspace_mib must be >= 1"),
        ({"builder_optimization_level": 6}, "must be 0 to 5"),
        ({"compute_capabilities": ("sm_86",)}, "written like 8.6"),
        ({"compute_capabilities": ("8.6", "8.6")}, "twice"),
        ({"weights": "stripped", "weight_streaming": True}, "cannot be streamed"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TensorRTConfig(**options)


def test_options_of_tensorrt_are_refused_for_another_backend():
    config = EngineConfig(backend="ort", tensorrt=TensorRTConfig(workspace_mib=64, weight_streaming=True))
    with pytest.raises(RFError, match="workspace_mib, weight_streaming: options of the backends tensorrt"):
        create_builder(config)


def test_every_free_dimension_of_every_graph_has_a_range():
    dims = resolve_dims(MODEL, {})
    for name in GRAPHS:
        specs = GraphSignature.of(name, MODEL, Variant("fp16")).inputs
        free = {dim for spec in specs for dim in spec.shape if isinstance(dim, str)}
        for profile in profiles(name, MODEL, "fp16", dims):
            assert set(profile) == free


def test_the_cache_holds_the_longest_prompt_and_the_largest_picture():
    dims = resolve_dims(MODEL, {"prompt": DimRange(1, 8, 40), "height": DimRange(8, 16, 32)})
    (profile,) = profiles("denoiser", MODEL, "fp16", dims)
    assert profile["cache"].max >= 40 + 4 * 3 + 1
    assert profile["cache"].min <= 1 + 1 * 3 + 1 + 8
    prefill, decode, further = profiles("text_decoder", MODEL, "fp16", dims)
    assert (prefill["sequence"], prefill["cache"]) == (DimRange(1, 8, 40), DimRange(1, 1, 1))
    assert (decode["sequence"], decode["cache"].max) == (DimRange(1, 1, 1), profile["cache"].max)
    assert (further["sequence"], further["cache"]) == (prefill["sequence"], decode["cache"])


def test_images_have_tokens_for_the_prompt_and_a_profile_of_the_encoder():
    dims = resolve_dims(MODEL, {"images": DimRange(1, 2, 3), "height": DimRange(8, 16, 32)})
    for profile in profiles("text_decoder", MODEL, "fp16", dims):
        assert profile["features"] == DimRange(1, 2 * 2 * 3, 3 * 4 * 3)
    assert profiles("vision_encoder", MODEL, "fp16", dims) == [
        {"images": DimRange(1, 2, 3), "height": DimRange(8, 16, 32), "width": DimRange(24, 24, 24)}
    ]


def test_defaults_fit_the_model():
    dims = resolve_dims(MODEL, {})
    assert dims["prompt"].max == MODEL.max_positions - 6 - 2
    assert dims["height"] == DimRange(16, 16, 16)


@pytest.mark.parametrize(
    ("given_dims", "message"),
    [
        ({"prompt": DimRange(1, 1, 200)}, "Prompts of up to 200 tokens do not fit: .* takes 120"),
        ({"height": DimRange(12, 12, 12)}, "cannot draw such pictures: height must be a multiple of 8"),
        ({"width": DimRange(8, 8, 800)}, "width must be a multiple of 8 from 8 to 32"),
    ],
)
def test_dimensions_that_the_model_lacks_are_refused(given_dims, message):
    with pytest.raises(RFError, match=message):
        resolve_dims(MODEL, given_dims)


def test_large_pictures_leave_room_for_a_prompt_or_are_refused():
    small = msgspec.structs.replace(MODEL, max_positions=10)
    with pytest.raises(RFError, match="leave no room for a prompt"):
        resolve_dims(small, {"height": DimRange(32, 32, 32)})


@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 40), st.integers(0, 80))
def test_probes_are_inside_their_profile(low, more, prompt, longer):
    given_dims = {"batch": DimRange(low, low + more, low + more), "prompt": DimRange(prompt, prompt, prompt + longer)}
    dims = resolve_dims(MODEL, given_dims)
    for name in GRAPHS:
        for profile in profiles(name, MODEL, "fp16", dims):
            for sizes in probe_sizes(profile):
                assert all(profile[dim].min <= sizes[dim] <= profile[dim].max for dim in profile)
                inputs = probe_inputs(GraphSignature.of(name, MODEL, Variant("fp16")), MODEL, sizes)
                if "past_lengths" in inputs:
                    assert (inputs["past_lengths"] <= sizes["cache"]).all()
                    assert (inputs["row_starts"] <= inputs["past_lengths"]).all()


def test_probes_of_requests_have_guided_and_unguided_ones_and_none_that_is_guided():
    dims = resolve_dims(MODEL, {"batch": DimRange(1, 2, 3)})
    for name in ("rep_decoder", "denoiser"):
        for profile in profiles(name, MODEL, "fp16", dims):
            some, none = (
                probe_inputs(GraphSignature.of(name, MODEL, Variant("fp16")), MODEL, sizes)
                for sizes in probe_sizes(profile)
            )
            assert (some["row_requests"].tolist(), some["uncond_rows"].tolist()) == ([0, 1, 1], [0, 2])
            assert (none["row_requests"].tolist(), none["uncond_rows"].tolist()) == ([0, 1], [0, 1])


def test_single_tokens_and_windows_have_a_profile_each():
    def of(**given):
        return [each["window"] for each in profiles("rep_decoder", MODEL, "fp16", resolve_dims(MODEL, given))]

    assert of() == [DimRange(1, 1, 1), DimRange(2, 7, 7)], "6 tokens and the start token"
    assert of(height=DimRange(32, 32, 32)) == [DimRange(1, 1, 1), DimRange(2, 8, 8)]
    assert of(window=DimRange(1, 1, 4)) == [DimRange(1, 1, 1), DimRange(2, 2, 4)]
    assert of(window=DimRange(1, 1, 1)) == [DimRange(1, 1, 1)]
    for wrong in (DimRange(2, 2, 4), DimRange(1, 1, 8)):
        with pytest.raises(RFError, match=rf"window of {wrong} tokens does not fit: .* windows of 1 to 7"):
            resolve_dims(MODEL, {"window": wrong})


def test_requests_have_a_row_or_two():
    dims = resolve_dims(MODEL, {"batch": DimRange(2, 3, 4)})
    (profile,) = profiles("denoiser", MODEL, "fp16", dims)
    assert (profile["request"], profile["row"]) == (DimRange(2, 3, 4), DimRange(2, 6, 8))


@given(st.integers(1, 300), st.integers(1, 300))
def test_layers_of_the_cache_end_on_boundaries(prompt, tokens):
    for precision, size in (("fp16", 2), ("fp32", 4)):
        slots = cache_slots(MODEL, precision, prompt, tokens)
        assert slots * MODEL.num_kv_heads * MODEL.head_dim * size % ALIGNMENT == 0
        assert prompt + tokens + 1 <= slots < prompt + tokens + 1 + ALIGNMENT


@given(st.integers(0, 300), st.integers(1, 100), st.integers(0, 200))
def test_a_prompt_is_padded_within_what_the_engine_reads(length, shortest, more):
    longest = max(shortest + more, length)
    padded = padded_prompt(length, shortest, longest)
    assert max(length, shortest) <= padded <= longest


HERE = Target("tensorrt", "10.13.3.9", f"{platform.machine()} sm_89")


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("10.13.3.9", True),
        ("10.13.3.10", False),
        ("10.3.0+", True),
        ("10.13.3.9+", True),
        ("10.14.1+", False),
        ("8.6.1+", False),
        ("11.0.0+", False),
    ],
)
def test_an_engine_runs_with_its_version_or_later_ones_of_its_major_version(version, fits):
    assert version_fits(msgspec.structs.replace(HERE, version=version), HERE) is fits


@pytest.mark.parametrize(
    ("capabilities", "fits"),
    [(["8.9"], True), (["8.6"], False), (["8.6", "8.9", "12.0"], True), (["8.6", "12.0"], False)],
)
def test_an_engine_runs_on_the_devices_that_it_was_built_for(capabilities, fits):
    names = [f"{platform.machine()} sm_{capability.replace('.', '')}" for capability in capabilities]
    assert device_fits(msgspec.structs.replace(HERE, device=any_device(names)), HERE) is fits


@pytest.mark.parametrize(("number", "fits"), [("80", True), ("89", True), ("90", False), ("100", False)])
def test_an_engine_for_a_generation_runs_on_later_ones(number, fits):
    built = msgspec.structs.replace(HERE, device=from_capability(f"{platform.machine()} sm_{number}"))
    assert device_fits(built, HERE) is fits
    assert not device_fits(msgspec.structs.replace(HERE, device=from_capability(f"other sm_{number}")), HERE)


def test_devices_are_compared_as_they_are_where_they_say_nothing_else():
    ort = Target("ort", from_version("1"), "x86_64 avx avx2")
    assert device_fits(ort, ort)
    assert not device_fits(msgspec.structs.replace(ort, device="x86_64 avx"), ort)


@pytest.mark.parametrize(("graph", "new"), [("text_decoder", 5), ("rep_decoder", 3)])
def test_a_probe_leaves_room_for_what_a_graph_writes_into_its_cache(fixed_bundle, graph, new):
    entry = open_bundle(fixed_bundle).graph(graph, Variant("fp32", "modern"))
    assert entry.signature.cache_slots == 20
    assert _room(entry.signature, {"sequence": 5, "cache": 9, "window": 3}) == 20 - new
