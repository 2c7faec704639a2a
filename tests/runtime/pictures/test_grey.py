"""Grey and colours of wide numbers go from black to white, or are refused; none is silently dark."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import levels, tiff
from PIL import Image

from runtime.errors import RFError
from runtime.pictures.load import load_pixels

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
FULL = {
    ("<", 8, UNSIGNED): (np.uint8, 255),
    (">", 8, UNSIGNED): (np.uint8, 255),
    ("<", 12, UNSIGNED): (np.uint16, 4095),
    ("<", 16, UNSIGNED): (np.uint16, 65535),
    (">", 16, UNSIGNED): (np.uint16, 65535),
    ("<", 16, SIGNED): (np.int16, 32767),
    (">", 16, SIGNED): (np.int16, 32767),
    ("<", 32, UNSIGNED): (np.uint32, 2**32 - 1),
    ("<", 32, SIGNED): (np.int32, 2**31 - 1),
    (">", 32, SIGNED): (np.int32, 2**31 - 1),
    ("<", 32, FLOAT): (np.float32, 1),
    (">", 32, FLOAT): (np.float32, 1),
}


@settings(max_examples=100)
@given(st.sampled_from(sorted(FULL)), st.sampled_from([0, 1]), st.booleans(), st.integers(0, 2**32))
def test_grey_of_any_type_goes_from_black_to_white(form, photometric, big, seed):
    order, bits, kind = form
    dtype, full = FULL[form]
    shares = np.random.default_rng(seed).random((4, 6))
    shares[0, 0], shares[0, 1] = 0, 1
    content = tiff((shares * full).astype(dtype), bits, kind=kind, photometric=photometric, order=order, big=big)
    expected = 255 * (shares if photometric else 1 - shares)
    assert np.abs(levels(content, shares.shape)[..., 0] - expected).max() <= 1.5


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_a_tiff_go_from_black_to_white_or_back(bits):
    values = np.arange(24).reshape(3, 8) % (1 << bits)
    full = values * 255 // ((1 << bits) - 1)
    for photometric in (0, 1):
        content = tiff(values, bits, photometric=photometric)
        assert (levels(content, values.shape)[..., 0] == (full if photometric else 255 - full)).all()


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_grey_of_sixteen_bits_is_turned_too(compression):
    values = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    for photometric in (0, 1):
        file = io.BytesIO()
        Image.fromarray(values).save(file, "TIFF", compression=compression, tiffinfo={262: photometric})
        expected = values / 257 if photometric else 255 - values / 257
        assert np.abs(levels(file.getvalue(), (4, 6))[..., 0] - expected).max() <= 1


@pytest.mark.parametrize(
    ("dtype", "bits", "kind", "low", "high"),
    [
        (np.uint16, 16, UNSIGNED, 0, 1023),
        (np.uint16, 16, UNSIGNED, 100, 4095),
        (np.int16, 16, SIGNED, -1024, 3071),
        (np.uint32, 32, UNSIGNED, 0, 4095),
        (np.int32, 32, SIGNED, -5000, 5000),
        (np.float32, 32, FLOAT, -1.0, 1.0),
        (np.float32, 32, FLOAT, 0.0, 0.01),
        (np.uint8, 8, UNSIGNED, 16, 235),
    ],
)
@pytest.mark.parametrize("photometric", [0, 1])
def test_a_range_that_a_tiff_tells_is_black_to_white(dtype, bits, kind, low, high, photometric):
    shares = np.linspace(0, 1, 20).reshape(4, 5)
    values = np.rint(low + shares * (high - low)) if dtype != np.float32 else low + shares * (high - low)
    tags = [(340, 12, (float(low),)), (341, 12, (float(high),))]
    content = tiff(values.astype(dtype), bits, kind=kind, photometric=photometric, tags=tags)
    expected = 255 * (shares if photometric else 1 - shares)
    assert np.abs(levels(content, shares.shape)[..., 0] - expected).max() <= 1.5


@pytest.mark.parametrize("used", [10, 12, 14])
def test_the_largest_number_of_some_bits_is_white(used):
    values = np.linspace(0, 2**used - 1, 20).astype(np.uint16).reshape(4, 5)
    content = tiff(values, 16, tags=[(281, 3, (2**used - 1,))])
    assert np.abs(levels(content, (4, 5))[..., 0] - values * (255 / (2**used - 1))).max() <= 1


@pytest.mark.parametrize(
    ("values", "bits", "kind"),
    [
        (np.arange(4096, dtype=np.uint16) % 31, 16, UNSIGNED),  # a mask
        (np.arange(-1000, 3096, dtype=np.int16) * 8, 16, SIGNED),
        (np.arange(4096, dtype=np.uint32), 32, UNSIGNED),
        (np.arange(4096, dtype=np.uint32) << 12, 32, UNSIGNED),
        (np.arange(4096, dtype=np.int32), 32, SIGNED),
        (np.linspace(0, 1.5, 4096, dtype=np.float32), 32, FLOAT),
        (np.linspace(-1, 1, 4096, dtype=np.float32), 32, FLOAT),
        (np.linspace(0, 1e6, 4096, dtype=np.float32), 32, FLOAT),
        (np.linspace(0, 0.01, 4096, dtype=np.float32), 32, FLOAT),
        (np.arange(256, dtype=np.uint8), 8, SIGNED),
    ],
)
def test_grey_that_nobody_can_tell_is_refused_and_not_dark(values, bits, kind):
    content = tiff(values.reshape(16, -1), bits, kind=kind)
    with pytest.raises(RFError, match=r"^the picture has numbers of \d+ bits, and what is black and white .*Say it in"):
        load_pixels(content, 16, 16)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize(
    ("largest", "white"), [(32, 255), (255, 255), (256, 1023), (1023, 1023), (1024, 4095), (4095, 4095)]
)
def test_what_leaves_most_of_sixteen_bits_empty_is_of_a_camera(dtype, largest, white):
    values = np.linspace(0, largest, 24).astype(dtype).reshape(4, 6)
    content = tiff(values, 16, kind=SIGNED if dtype == np.int16 else UNSIGNED)
    assert np.abs(levels(content, (4, 6))[..., 0] - values * (255 / white)).max() <= 1


def test_a_dark_picture_of_sixteen_bits_stays_dark():
    for largest, white in ((8190, 16383), (8192, 65535), (20_000, 65535)):
        values = np.linspace(0, largest, 24).astype(np.uint16).reshape(4, 6)
        assert np.abs(levels(tiff(values, 16), (4, 6))[..., 0] - values * (255 / white)).max() <= 1


FULL_COLOURS = {form: full for form, full in FULL.items() if form[1] in (16, 32)} | {
    (">", 32, UNSIGNED): (np.uint32, 2**32 - 1)
}


@settings(max_examples=100)
@given(
    st.sampled_from(sorted(FULL_COLOURS)), st.sampled_from(["grey", "RGB", "CMYK"]), st.sampled_from([None, 0, 1, 2])
)
def test_wide_colours_of_any_type_are_those_of_eight_bits(form, kind, extra):
    order, bits, sample_format = form
    dtype, full = FULL_COLOURS[form]
    num, photometric = {"grey": (1, 1), "RGB": (3, 2), "CMYK": (4, 5)}[kind]
    shares = np.random.default_rng(0).random((4, 6, num + (extra is not None)))
    shares[0, 0], shares[0, 1] = 0, 1
    shares[..., num:] = np.maximum(shares[..., num:], 0.01)
    if extra == 1 and kind != "CMYK":
        shares[..., :num] *= shares[..., num:]
    tags = [] if extra is None else [(338, 3, (extra,))]
    content = tiff(
        (shares * full).astype(dtype), bits, kind=sample_format, photometric=photometric, order=order, tags=tags
    )
    colours, opacity = shares[..., :num], shares[..., num:] if extra in (1, 2) else 1
    if kind == "CMYK":
        colours, opacity = (1 - colours[..., :3]) * (1 - colours[..., 3:]), 1
    expected = colours * (1 if extra == 1 else opacity) + 1 - opacity
    assert np.abs(levels(content, (4, 6)) - 255 * expected).max() <= 2.5


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_packed_wide_colours(compression, dtype):
    """Packed as one wide row of grey, which is the same; and then said to be colours."""
    full = {np.uint16: 65535, np.int32: 2**31 - 1, np.float32: 1}[dtype]
    shares = np.random.default_rng(1).random((5, 4, 3))
    shares[0, 0] = 1
    file = io.BytesIO()
    Image.fromarray((shares * full).astype(dtype).reshape(5, 12)).save(file, "TIFF", compression=compression)
    content = said_to_be_colours(file.getvalue())
    assert np.abs(levels(content, (5, 4)) - 255 * shares).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_differences_of_pixels_are_summed_for_each_colour(dtype):
    full = np.iinfo(dtype).max
    values = np.tile((np.random.default_rng(2).random((1, 5, 3)) * full).astype(dtype), (8, 1, 1))
    values[:, 0] = full
    differences = np.concatenate((values[:, :1], values[:, 1:] - values[:, :-1]), axis=1)
    content = tiff(differences, values.itemsize * 8, photometric=2, tags=[(317, 3, (2,)), (259, 3, (8,))])
    packed = zlib.compress(differences.tobytes())
    assert (
        np.abs(levels(with_pixels(content, differences.tobytes(), packed), (8, 5)) - values * (255 / full)).max() <= 1
    )


def said_to_be_colours(content):
    """A file of grey, three times as wide, as Pillow writes it: every number of its directory is changed in place."""
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    changed = bytearray(content)
    for row in range(at + 2, at + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", content, row)
        if tag == 256:
            struct.pack_into("<H", changed, row + 8, struct.unpack_from("<H", content, row + 8)[0] // 3)
        elif tag == 262:
            struct.pack_into("<H", changed, row + 8, 2)
        elif tag == 284:  # which means what is meant without it
            struct.pack_into("<HHIH", changed, row, 277, 3, 1, 3)
    return bytes(changed)


def with_pixels(content, plain, packed):
    """Other bytes for the pixels of what `tiff` makes; they may be fewer."""
    assert len(packed) <= len(plain)
    return content[:8] + packed.ljust(len(plain), b"\0") + content[8 + len(plain) :]


def test_colours_of_sixteen_bits_are_scaled_or_refused():
    rng = np.random.default_rng(0)
    for order in "<>":
        values = rng.integers(0, 65536, (4, 5, 3)).astype(np.uint16)
        assert np.abs(levels(tiff(values, 16, photometric=2, order=order), (4, 5)) - values / 257).max() <= 1
        assert np.abs(levels(tiff(values >> 4, 16, photometric=2, order=order), (4, 5)) - values / 257).max() <= 1
        with pytest.raises(RFError, match="black and white"):
            load_pixels(tiff(values >> 12, 16, photometric=2, order=order), 4, 5)


@pytest.mark.parametrize("bits", [10, 24, 64])
def test_kinds_that_no_reader_knows_are_refused(bits):
    said = rf"^the picture is damaged or of a kind that is not read .*, {bits} bits for each number.*Save it again"
    with pytest.raises(RFError, match=said):
        load_pixels(tiff(np.zeros((4, 4), np.float64), bits, kind=FLOAT if bits == 64 else UNSIGNED), 4, 4)


@pytest.mark.parametrize(("kind", "dtype"), [(UNSIGNED, np.uint32), (SIGNED, np.int32), (FLOAT, np.float32)])
@pytest.mark.parametrize("white", [255, 65535])
def test_numbers_that_fill_a_smaller_type_exactly_are_of_that(kind, dtype, white):
    values = np.linspace(0, white, 24).astype(dtype).reshape(4, 6)
    assert np.abs(levels(tiff(values, 32, kind=kind), (4, 6))[..., 0] - values * (255 / white)).max() <= 1
