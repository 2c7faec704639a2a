"""A PNG file holds the picture exactly, and how it was made."""

import io
import json
import os
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_files import GREY, chunk, png

from runtime.errors import RFError
from runtime.events import to_picture
from runtime.pictures.load import load_pixels
from runtime.pictures.png import encode_png, read_parameters, save_png


def test_picture_and_parameters_survive(tmp_path):
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    parameters = {"prompt": 'ein "rotes" Auto 🚗\n', "seed": 2**64 - 1, "num_steps": 25, "scale": 0.1}
    save_png(tmp_path / "a.png", picture, parameters)
    assert read_parameters(tmp_path / "a.png") == parameters
    with Image.open(tmp_path / "a.png") as image:
        assert (np.asarray(image) == picture).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_numbers_of_numpy_are_kept_as_numbers(tmp_path):
    picture = np.zeros((2, 2, 3), np.uint8)
    save_png(tmp_path / "a.png", picture, {"seed": np.int64(4), "scale": np.float32(0.5), "sizes": [np.uint8(7)]})
    assert read_parameters(tmp_path / "a.png") == {"seed": 4, "scale": 0.5, "sizes": [7]}
    with pytest.raises(TypeError, match="must be plain values, got list_iterator"):
        save_png(tmp_path / "b.png", picture, {"sizes": iter([7])})
    assert not (tmp_path / "b.png").exists()


def test_reading_parameters_leaves_the_warnings_of_the_process_alone(tmp_path, monkeypatch):
    from PIL import Image

    save_png(tmp_path / "a.png", np.zeros((20, 20, 3), np.uint8), {"seed": 4})
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
        patch.setattr(warnings, "catch_warnings", None)
        assert read_parameters(tmp_path / "a.png") == {"seed": 4}
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
        with pytest.raises(RFError, match="is not a readable PNG file: it has more than 399 pixels"):
            read_parameters(tmp_path / "a.png")


def test_a_picture_of_somebody_else_has_no_parameters(tmp_path):
    from PIL import Image

    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    assert read_parameters(tmp_path / "a.png") == {}


def test_what_cannot_be_written_or_read_is_told(tmp_path):
    picture = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(RFError, match=r"a\.png was not written"):
        save_png(tmp_path / "missing" / "a.png", picture, {})
    (tmp_path / "b.png").write_text("not a picture")
    with pytest.raises(RFError, match="not a readable PNG"):
        read_parameters(tmp_path / "b.png")


def test_a_picture_is_written_to_an_open_file_too(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    save_png(tmp_path / "a.png", picture, {"seed": 4})
    memory = io.BytesIO()
    save_png(memory, picture, {"seed": 4})
    with (tmp_path / "b.png").open("wb") as file:
        save_png(file, picture, {"seed": 4})
        assert not file.closed
    assert memory.getvalue() == (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert read_parameters(tmp_path / "b.png") == {"seed": 4}


def test_a_page_shows_the_same_pixels():
    from PIL import Image

    picture = np.random.default_rng(1).integers(0, 256, (6, 4, 3), np.uint8)
    with Image.open(io.BytesIO(encode_png(picture))) as image:
        assert (np.asarray(image) == picture).all()
        assert not image.info


def test_a_file_gets_the_mode_of_any_new_file_or_of_the_one_that_it_replaces(tmp_path):
    picture, before = np.zeros((2, 2, 3), np.uint8), os.umask(0o027)
    try:
        save_png(tmp_path / "a.png", picture, {})
        assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640
        (tmp_path / "a.png").chmod(0o604)
        save_png(tmp_path / "a.png", picture, {})
        assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o604
    finally:
        os.umask(before)


TEXT = json.dumps({"prompt": 'ein "rotes" Auto', "seed": 7})
WRITTEN = {
    "plain": chunk(b"tEXt", b"rf-export\0" + TEXT.encode()),
    "packed": chunk(b"zTXt", b"rf-export\0\0" + zlib.compress(TEXT.encode())),
    "international": chunk(b"iTXt", b"rf-export\0\0\0de\0\xc3\xbc\0" + TEXT.encode()),
    "international, packed": chunk(b"iTXt", b"rf-export\0\1\0\0\0" + zlib.compress(TEXT.encode())),
}


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("place", ["before", "after"])
def test_parameters_are_found_wherever_and_however_a_tool_wrote_them(tmp_path, how, place):
    noise = [
        chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000),
        chunk(b"tEXt", b"no end"),
        chunk(b"zTXt", b"Comment\0\0no zlib"),
        chunk(b"iTXt", b"Comment\0\1\0\0\0\xff\xff"),
        chunk(b"tEXt", b"Comment\0damaged", sound=False),
        chunk(b"iCCP", b"\xff", sound=False),
    ]
    for texts in ([WRITTEN[how], *noise], [*noise, WRITTEN[how]]):
        (tmp_path / "a.png").write_bytes(png(np.zeros((2, 2), int), 8, GREY, **{place: texts}))
        assert read_parameters(tmp_path / "a.png") == json.loads(TEXT)


@pytest.mark.parametrize(
    "body", [b"rf-export\0{", b"rf-export\0\xff", b"rf-export\0", b"rf-export\0[1]", b"rf-export\0" + b"[" * 90_000]
)
def test_damaged_parameters_are_told(tmp_path, body):
    for texts in ([chunk(b"tEXt", body)], [chunk(b"tEXt", b"rf-export\0{}", sound=False)]):
        (tmp_path / "a.png").write_bytes(png(np.zeros((2, 2), int), 8, GREY, after=texts))
        with pytest.raises(RFError, match=r"has damaged parameters.*Draw the picture again"):
            read_parameters(tmp_path / "a.png")


def test_files_that_are_too_large_are_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(RFError, match="not a readable PNG file: it is larger than 1024 MiB"):
        read_parameters(tmp_path / "a.png")
    with pytest.raises(RFError, match="larger than 1024 MiB"):
        load_pixels(tmp_path / "a.png", 4, 4)


def test_pixels_are_rounded_to_the_nearest_value_and_clipped():
    levels = np.arange(256, dtype=np.float32)
    pixels = np.stack([(levels / 127.5 - 1)[None]] * 3)
    assert (to_picture(pixels)[0, :, 0] == levels).all()
    assert to_picture(np.array([[[-5.0]], [[0.001]], [[5.0]]], np.float32)).tolist() == [[[0, 128, 255]]]


@given(st.floats(-1, 1, width=32))
def test_rounding_is_off_by_half_a_level_at_most(value):
    picture = to_picture(np.full((3, 1, 1), value, np.float32))
    assert abs(picture[0, 0, 0] / 127.5 - 1 - value) <= 0.5 / 127.5 + 1e-6
