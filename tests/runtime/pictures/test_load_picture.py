"""Every picture that a person has becomes the pixels that the model reads, or a sentence that says why not."""

import io
import os
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from runtime.errors import RFError
from runtime.pictures import load
from runtime.pictures.flatten import flatten

HEIGHT, WIDTH = 16, 24
KINDS = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "TIFF": ("RGB", "RGBA", "L", "I;16", "F", "CMYK"),
    "BMP": ("RGB", "L", "1"),
}


def read(picture, height=HEIGHT, width=WIDTH):
    pixels = load.load_pixels(picture, height, width)
    assert pixels.shape == (3, height, width)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    assert np.abs(pixels).max() <= 1
    return pixels


def noise(seed, height, width, mode):
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16))
    if mode == "F":
        return Image.fromarray(rng.random((height, width), np.float32))
    return Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8), "RGBA").convert(mode)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colour(pixels, row=None, column=None):
    """Red, green and blue from 0 to 255 at a place, the middle by default."""
    _, height, width = pixels.shape
    place = pixels[:, height // 2 if row is None else row, width // 2 if column is None else column]
    return np.rint((place + 1) * 127.5).astype(int).tolist()


@settings(max_examples=60)
@given(st.data(), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**31))
def test_every_kind_and_mode_and_size_of_a_picture_is_read(data, height, width, seed):
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    mode = data.draw(st.sampled_from(KINDS[kind]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on writing modes that it will drop
        content = encoded(noise(seed, height, width, mode), kind)
    read(content)


@given(st.integers(0, 2**31))
def test_a_picture_of_the_right_size_is_taken_as_it_is(seed):
    picture = np.asarray(noise(seed, HEIGHT, WIDTH, "RGB"))
    expected = picture.transpose(2, 0, 1) / np.float32(127.5) - 1
    assert (read(picture) == expected).all()
    assert (read(encoded(Image.fromarray(picture), "PNG")) == expected).all()


def test_pixels_are_those_that_the_model_was_trained_on():
    from rf_export.training.tokens import to_pixels

    picture = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint32).reshape(HEIGHT, WIDTH, 3).astype(np.uint8)
    np.testing.assert_allclose(read(picture), to_pixels([picture])[0].numpy(), atol=1e-7)


@pytest.mark.parametrize(("height", "width"), [(100, 10), (10, 100), (1, 5000), (5000, 1), (1, 1), (32, 48)])
def test_the_whole_picture_is_in_the_middle_of_white(height, width):
    pixels = read(np.zeros((height, width, 3), np.uint8))
    scale = min(HEIGHT / height, WIDTH / width)
    inside = (max(round(height * scale), 1), max(round(width * scale), 1))
    dark = (pixels < 0).all(0)
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    assert (len(rows), len(columns)) == inside
    assert abs(rows[0] - (HEIGHT - 1 - rows[-1])) <= 1
    assert abs(columns[0] - (WIDTH - 1 - columns[-1])) <= 1
    assert (pixels[:, ~dark] == 1).all()


def test_what_is_transparent_is_white():
    clear = Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 0, 0))
    assert colour(read(encoded(clear, "PNG"))) == [255, 255, 255]
    half = Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 0, 128))
    assert colour(read(encoded(half, "PNG"))) == [255, 127, 127]
    assert colour(read(encoded(Image.new("LA", (WIDTH, HEIGHT), (0, 0)), "PNG"))) == [255, 255, 255]
    palette = Image.new("P", (WIDTH, HEIGHT), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    assert colour(read(encoded(palette, "PNG"))) == [255, 0, 0]
    assert colour(read(encoded(palette, "PNG", transparency=1))) == [255, 255, 255]
    assert colour(read(encoded(palette, "GIF", transparency=1))) == [255, 255, 255]
    keyed = encoded(Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert colour(read(keyed)) == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_the_camera_says(orientation):
    image = noise(3, WIDTH, WIDTH, "RGB").resize((WIDTH, WIDTH))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert (read(content, WIDTH, WIDTH) == read(np.asarray(upright.convert("RGB")), WIDTH, WIDTH)).all()
    if orientation == 6:  # by hand: turned by 90 degrees
        by_hand = np.rot90(np.asarray(image), -1)
        assert (read(content, WIDTH, WIDTH) == read(np.ascontiguousarray(by_hand), WIDTH, WIDTH)).all()


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [(kind, *pair) for kind in ("PNG", "TIFF") for pair in ((0, 0), (65535, 255), (32768, 128))] + [("PNG", 255, 1)],
)
def test_sixteen_bits_are_scaled_and_not_cut_off(kind, value, expected):
    image = Image.fromarray(np.full((HEIGHT, WIDTH), value, np.uint16))
    assert colour(read(encoded(image, kind))) == [expected] * 3


@pytest.mark.parametrize(("values", "expected"), [([0, 0.5, 1], 128), ([0, 51, 255], 51), ([0, 32768, 65535], 128)])
def test_numbers_without_a_range_are_taken_by_their_size(values, expected):
    array = np.full((HEIGHT, WIDTH), values[1], np.float32)
    array[0, 0], array[-1, -1] = values[0], values[2]
    assert colour(read(encoded(Image.fromarray(array), "TIFF"))) == [expected] * 3
    array[0, 1] = np.nan
    assert colour(read(encoded(Image.fromarray(array), "TIFF"))) == [expected] * 3


def test_the_first_picture_of_an_animation_is_read():
    frames = [Image.new("RGB", (WIDTH, HEIGHT), shade) for shade in ("red", "blue")]
    assert colour(read(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))) == [255, 0, 0]


def test_a_large_photograph_is_decoded_at_a_fraction_of_its_size():
    content = encoded(Image.new("RGB", (4000, 3000), (200, 100, 50)), "JPEG")
    pixels = read(content)
    assert np.abs(np.array(colour(pixels)) - [200, 100, 50]).max() <= 2


def test_a_picture_that_would_fill_the_memory_is_refused():
    for side in (10_000, 100_000):
        header = b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
        content = header + zlib.crc32(header[12:]).to_bytes(4, "big") + b"\x00\x00\x00\x00IDAT" + b"\x35\xaf\x06\x1e"
        with pytest.raises(RFError, match=r"the picture has more than \d+ pixels.*Make it smaller"):
            read(content)


def test_threads_read_pictures_side_by_side_and_leave_the_warnings_of_the_process_alone(monkeypatch):
    content, before = encoded(noise(1, HEIGHT, WIDTH, "RGB"), "PNG"), list(warnings.filters)
    together = threading.Barrier(3)

    def meet(*arguments):
        together.wait(timeout=10)
        assert warnings.filters == before
        return flatten(*arguments)

    monkeypatch.setattr(load, "flatten", meet)
    with ThreadPoolExecutor(3) as threads:
        for pixels in threads.map(lambda _: load.load_pixels(content, HEIGHT, WIDTH), range(3)):
            assert pixels.shape == (3, HEIGHT, WIDTH)


def test_many_pixels_are_no_reason_to_warn(monkeypatch):
    content = encoded(noise(1, 30, 30, "RGB"), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with warnings.catch_warnings(record=True) as warned, pytest.raises(RFError, match="has more than 500 pixels"):
        warnings.simplefilter("always")
        read(content)
    assert not warned


def test_a_picture_is_too_large_whatever_is_done_with_warnings(monkeypatch):
    content = encoded(noise(1, 30, 30, "RGB"), "PNG")
    with monkeypatch.context() as patch, pytest.raises(RFError, match="the picture has more than 500 pixels"):
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
        patch.setattr(warnings, "warn", lambda *arguments: None)  # as if another thread had switched them off
        read(content)


def test_odd_metadata_is_no_reason_to_refuse_or_to_warn():
    cut_off = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x09\x00\x12\x01"  # nine entries, and the first one ends here
    content = encoded(noise(1, HEIGHT, WIDTH, "RGB"), "JPEG", exif=cut_off)
    with pytest.warns(UserWarning), Image.open(io.BytesIO(content)) as image:
        ImageOps.exif_transpose(image)
    read(content)  # pytest makes an error of every warning


@given(st.binary(max_size=200))
def test_bytes_that_are_no_picture_are_refused(content):
    with pytest.raises(RFError, match=r"^the picture .*(known kind|damaged|more than)"):
        read(content)


@settings(max_examples=150)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_a_damaged_file_is_read_or_refused_and_never_crashes(kind, data):
    content = bytearray(encoded(noise(1, 9, 13, KINDS[kind][0]), kind))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(content))
    except RFError as error:
        assert str(error).startswith("the picture ")


def test_files_are_named(tmp_path: Path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (5, 5), "red").save(path)
    assert colour(read(path)) == colour(read(str(path))) == [255, 0, 0]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RFError, match=r"picture\.png is damaged and cannot be read .*Save it again"):
        read(path)
    path.write_text("no picture")
    with pytest.raises(RFError, match=r"picture\.png is no picture of a known kind\. Give a PNG"):
        read(path)
    with pytest.raises(RFError, match=r"none\.png does not exist"):
        read(tmp_path / "none.png")
    with pytest.raises(RFError, match=r"is a folder\. Give the path"):
        read(tmp_path)
    if os.geteuid():
        path.chmod(0)
        with pytest.raises(RFError, match="may not be read"):
            read(path)


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_an_array_that_is_no_picture_is_refused(array):
    with pytest.raises(RFError, match=r"must be uint8 of shape \[height, width, 3\]"):
        read(array)
