"""Grey and colours of wide numbers go from black to white, or are refused; none is silently dark."""

import io

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
        (np.arange(4096, dtype=np.uint16), 16, UNSIGNED),  # 12 bits that say nothing
        (np.arange(1024, dtype=np.uint16), 16, UNSIGNED),
        (np.arange(4096, dtype=np.int16), 16, SIGNED),
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


def test_colours_of_sixteen_bits_are_scaled_or_refused():
    rng = np.random.default_rng(0)
    for order in "<>":
        values = rng.integers(0, 65536, (4, 5, 3)).astype(np.uint16)
        assert np.abs(levels(tiff(values, 16, photometric=2, order=order), (4, 5)) - values / 257).max() <= 1
        with pytest.raises(RFError, match="black and white"):
            load_pixels(tiff(values >> 4, 16, photometric=2, order=order), 4, 5)


@pytest.mark.parametrize("bits", [10, 24, 64])
def test_kinds_that_no_reader_knows_are_refused(bits):
    with pytest.raises(RFError, match=r"^the picture is damaged or of a kind that is not read .*Save it again"):
        load_pixels(tiff(np.zeros((4, 4), np.float64), bits, kind=FLOAT if bits == 64 else UNSIGNED), 4, 4)
