"""Memory is told before it is taken: the cache exactly, the rest from above, and how many pictures fit."""

import json
from dataclasses import replace

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from manifests import sample_model

import cli
from runtime.backends.host.cache import KVCache
from runtime.commands.memory_plan import MIB, Workload, cache_bytes, drawing_memory, fits, largest_batch
from runtime.errors import RFError
from runtime.signature import Variant

MODEL = sample_model(
    patch_size=16,
    hidden_size=512,
    num_layers=8,
    num_kv_heads=4,
    head_dim=64,
    vocab_size=8192,
    rep_vocab_size=16_384,
    rep_start_id=16_384,
    max_grid=32,
    max_positions=4096,
    default_height=256,
    default_width=256,
    num_parameters=101_000_000,
    num_heads=8,
    ffn_size=1536,
)
WEIGHTS = 4 * MODEL.num_parameters


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("requests", [1, 3])
def test_the_cache_is_as_large_as_the_one_that_is_made(precision, requests):
    cache = KVCache(MODEL, Variant(precision), 2 * requests, 97)
    assert cache_bytes(MODEL, precision, requests, 97) == cache.values.nbytes


@pytest.mark.parametrize(("requests", "side", "measured_mib"), [(1, 256, 58), (8, 256, 424), (1, 512, 342)])
def test_the_estimate_is_above_what_was_measured_and_below_twice_it(requests, side, measured_mib):
    work = Workload(num_requests=requests, height=side, width=side, prompt_tokens=1)  # python docs/memory_table.py
    estimate = drawing_memory(MODEL, "fp32", 0, work).total / MIB
    assert measured_mib < estimate < 2 * measured_mib


SMALL = sample_model(
    patch_size=6,
    max_grid=8,
    default_height=48,
    default_width=48,
    hidden_size=192,
    num_layers=6,
    num_kv_heads=2,
    head_dim=32,
    num_heads=6,
    ffn_size=640,
)


@pytest.mark.parametrize(
    ("precision", "requests", "measured_mib"),
    [("fp32", 1, 9), ("fp32", 8, 39), ("fp32", 64, 272), ("fp16", 1, 9), ("fp16", 8, 40), ("fp16", 64, 294)],
)
def test_the_estimate_of_many_pictures_on_a_cpu_is_above_what_the_reference_model_took(
    precision, requests, measured_mib
):
    work = Workload(num_requests=requests, prompt_tokens=3, on_cpu=True)
    estimate = drawing_memory(SMALL, precision, 0, work).total / MIB
    assert measured_mib < estimate < 1.2 * measured_mib + 32


@given(st.integers(1, 2**36), st.sampled_from([256, 512, 1024]), st.integers(1, 512))
def test_the_largest_batch_fits_and_one_more_does_not(available, side, prompt_tokens):
    work = Workload(height=side, width=side, prompt_tokens=prompt_tokens)
    batch = largest_batch(MODEL, "fp32", WEIGHTS, work, available)
    assert drawing_memory(MODEL, "fp32", WEIGHTS, replace(work, num_requests=batch + 1)).total > available
    if batch:
        rounding = batch + 1  # activations are rounded down to whole bytes
        assert drawing_memory(MODEL, "fp32", WEIGHTS, replace(work, num_requests=batch)).total <= available + rounding


def test_half_precision_takes_half_beside_what_is_fixed():
    single, half = (drawing_memory(MODEL, precision, 0, Workload()) for precision in ("fp32", "fp16"))
    assert single.cache == 2 * half.cache
    assert single.activations > half.activations


def test_a_model_that_fits_no_board_is_told_so():
    row = fits(MODEL, {"fp32": 2**40}, Workload())[0]
    assert set(row.pictures_at_once.values()) == {0}


def test_a_size_that_the_model_does_not_draw_is_refused():
    for size in ({"height": 100}, {"height": 0}, {"width": 0}):
        (side,) = size
        with pytest.raises(RFError, match=f"does not draw such pictures: {side} must be a multiple of 32"):
            drawing_memory(MODEL, "fp32", 0, Workload(**size))


def test_a_bundle_that_does_not_tell_its_widths_has_to_be_exported_again():
    with pytest.raises(RFError, match="Export it again"):
        drawing_memory(msgspec.structs.replace(MODEL, num_heads=None), "fp32", 0, Workload())


def test_inspect_shows_it_for_every_precision(tiny_bundle):
    arguments = ["inspect", str(tiny_bundle), "--memory"]
    table = CliRunner().invoke(cli.main, arguments)
    assert table.exit_code == 0
    assert [line.split(" | ")[0] for line in table.stdout.splitlines()[2:]] == ["| fp32", "| fp16"]
    one, four = (
        json.loads(CliRunner().invoke(cli.main, [*arguments, "--json", "--batch", batch]).stdout)[0]
        for batch in ("1", "4")
    )
    assert four["memory"]["cache"] == 4 * one["memory"]["cache"]
    refused = CliRunner().invoke(cli.main, [*arguments, "--size", "17x16"])
    assert refused.exit_code == 2 and "--size" in refused.stderr and "multiple of 8" in refused.stderr


@pytest.mark.parametrize("prompt_tokens", [1, 32])
def test_the_cache_has_room_for_the_prompt_the_tokens_and_one_more(prompt_tokens):
    work = Workload(prompt_tokens=prompt_tokens, height=64, width=96)  # 2 x 3 tokens
    assert drawing_memory(MODEL, "fp32", 0, work).cache == cache_bytes(MODEL, "fp32", 1, prompt_tokens + 6 + 1)
