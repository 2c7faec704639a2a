"""What is transparent is white, whatever the depth and the kind of a picture."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, chunk, levels, png

from runtime.errors import RFError
from runtime.pictures.load import load_pixels


def white_where(transparent, picture):
    return np.where(transparent[..., None], 255, picture)


def test_a_transparent_colour_of_any_depth_is_white():
    @settings(max_examples=60)
    @given(st.sampled_from([(1, GREY), (2, GREY), (4, GREY), (8, GREY), (16, GREY), (8, RGB), (16, RGB)]), st.data())
    def check(form, data):
        depth, colour = form
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        few = rng.integers(0, 1 << depth, 3)  # so that the transparent colour occurs, and colours like it
        few[2] = few[1] ^ 1
        values = rng.choice(few, (5, 7) if colour == GREY else (5, 7, 3))
        key = values[2, 3].reshape(-1)
        body = struct.pack(f">{len(key)}H", *(int(value) | (0xFF00 if depth < 16 else 0) for value in key))
        place = {data.draw(st.sampled_from(["before", "after"])): [chunk(b"tRNS", body)]}
        found = levels(png(values, depth, colour, **place), values.shape)
        full = (values if colour == RGB else values[..., None]) * 255 / ((1 << depth) - 1)
        expected = white_where((values.reshape(5, 7, -1) == key).all(-1), full)
        assert np.abs(found - expected).max() <= 1

    check()


def test_a_transparent_colour_of_a_palette_of_any_depth_is_white():
    @settings(max_examples=60)
    @given(st.sampled_from([1, 2, 4, 8]), st.data())
    def check(depth, data):
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        num_colours = data.draw(st.integers(1, 1 << depth))
        colours = rng.integers(0, 256, (num_colours, 3), np.uint8)
        some = st.lists(st.sampled_from([0, 10, 128, 255]), min_size=1, max_size=num_colours)
        alphas = np.array(data.draw(some), np.uint8)
        values = rng.integers(0, num_colours, (6, 5))
        before = [chunk(b"PLTE", colours.tobytes()), chunk(b"tRNS", alphas.tobytes())]
        found = levels(png(values, depth, PALETTE, before), values.shape)
        opaque = np.concatenate([alphas, np.full(num_colours - len(alphas), 255)])[values][..., None] / 255
        assert np.abs(found - (colours[values] * opaque + 255 * (1 - opaque))).max() <= 1

    check()


@given(st.sampled_from([(8, GREY_ALPHA), (16, GREY_ALPHA), (8, RGB_ALPHA), (16, RGB_ALPHA)]), st.integers(0, 2**32))
def test_opacity_of_any_depth_lays_the_picture_on_white(form, seed):
    depth, colour = form
    values = np.random.default_rng(seed).integers(0, 1 << depth, (4, 5, 2 if colour == GREY_ALPHA else 4))
    full = values * 255 / ((1 << depth) - 1)
    opaque = full[..., -1:] / 255
    expected = full[..., :-1] * opaque + 255 * (1 - opaque)
    most = 2 if depth == 8 else 2.5  # 16 bits are cut to 8, colour and opacity each by less than 1, and then rounded
    assert np.abs(levels(png(values, depth, colour), values.shape) - expected).max() <= most


@pytest.mark.parametrize("form", [(8, GREY, b"\0"), (16, RGB, b"\0\0\0")])
def test_a_transparent_colour_that_is_cut_off_or_damaged_is_refused(form):
    depth, colour, cut_off = form
    values = np.zeros((3, 3, 3) if colour == RGB else (3, 3), int)
    for bad in (chunk(b"tRNS", cut_off), chunk(b"tRNS", bytes(6), sound=False)):
        with pytest.raises(RFError, match=r"damaged.*transparent colours are damaged.*Save it again"):
            load_pixels(png(values, depth, colour, [bad]), 3, 3)
