"""Whole pixels are read, whatever else is in their file: odd, huge or damaged."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import GREY, RGB, chunk, exif, jpeg_segment, levels, png, tiff
from PIL import Image, ImageOps, features

from runtime.pictures.colour import video_profile
from runtime.pictures.load import load_pixels
from runtime.pictures.notes import orientation, read_notes

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3))
MIB = 1 << 20
KINDS = ["PNG", "JPEG", "WEBP", "TIFF", *(["AVIF"] if features.check("avif") else [])]
# Places that notes of EXIF point to: before, inside and beyond the file.
FIELDS = st.tuples(
    st.integers(0, 65535), st.integers(0, 20), st.integers(0, 2**32 - 1), st.binary(min_size=4, max_size=4)
)


def encoded(kind, **options):
    file = io.BytesIO()
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}, "AVIF": {"quality": 100}}.get(kind, {})
    Image.fromarray(PIXELS.astype(np.uint8)).save(file, kind, **lossless, **options)
    return file.getvalue()


def with_exif(kind, plain, note):
    """A file with any bytes as EXIF."""
    if kind == "PNG":
        return plain[:33] + chunk(b"eXIf", note) + plain[33:]
    if kind == "JPEG":
        return plain[:2] + jpeg_segment(0xE1, b"Exif\0\0" + note) + plain[2:]
    if kind == "WEBP":
        width, height = PIXELS.shape[1], PIXELS.shape[0]
        extended = struct.pack("<4sIB3x", b"VP8X", 10, 8) + (width - 1).to_bytes(3, "little")
        extended += (height - 1).to_bytes(3, "little")
        body = (
            b"WEBP" + extended + plain[12:] + struct.pack("<4sI", b"EXIF", len(note)) + note + b"\0" * (len(note) % 2)
        )
        return b"RIFF" + struct.pack("<I", len(body)) + body
    raise ValueError(kind)


@settings(max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.binary(max_size=300) | st.lists(FIELDS, max_size=8), st.data())
def test_no_exif_makes_a_picture_unreadable(kind, note, data):
    plain = encoded(kind)
    if isinstance(note, list):
        note = [field for field in note if field[0] != 0x0112]
        note = exif(1, data.draw(st.sampled_from("<>")), note)[: data.draw(st.integers(0, 200))]
    found = levels(with_exif(kind, plain, note), PIXELS.shape)
    if orientation(note) == 1:
        assert (found == levels(plain, PIXELS.shape)).all()


@settings(max_examples=100)
@given(st.integers(1, 8), st.sampled_from("<>"), st.lists(FIELDS, max_size=6), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_the_way_up_is_found_among_odd_notes(way, order, more, kind):
    more = [field for field in more if field[0] != 0x0112]
    content = with_exif(kind, encoded(kind), exif(way, order, more))
    plain = Image.fromarray(levels(encoded(kind), PIXELS.shape).astype(np.uint8))
    plain.getexif()[0x0112] = way
    upright = np.asarray(ImageOps.exif_transpose(plain))
    assert (levels(content, upright.shape) == upright).all()


@given(st.binary(max_size=200))
def test_the_way_up_is_one_of_eight_whatever_the_bytes(note):
    for content in (note, b"II*\0\x08\0\0\0" + note, b"MM\0+\0\x08\0\0" + note, exif(6)[: len(note)] + note):
        assert orientation(content) in range(1, 9)


def test_the_way_up_is_told_by_xmp_or_an_old_text_too():
    turned = levels(with_exif("PNG", encoded("PNG"), exif(6)), (9, 6))
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    old = b"\nexif\n      26\n" + (b"Exif\0\0" + exif(6)).hex().encode() + b"\n"
    plain = encoded("PNG")
    for note in (
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(old)),
    ):
        assert (levels(plain[:33] + note + plain[33:], (9, 6)) == turned).all()
        assert (levels(plain[:-12] + note + plain[-12:], (9, 6)) == turned).all()
    jpeg = encoded("JPEG")
    segment = jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    turned = levels(with_exif("JPEG", jpeg, exif(6)), (9, 6))
    assert (levels(jpeg[:2] + segment + jpeg[2:], (9, 6)) == turned).all()


@pytest.mark.parametrize("way", range(1, 9))
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_is_turned_once(way, big):
    content = tiff(PIXELS.astype(np.uint8), 8, photometric=2, big=big, tags=[(274, 3, (way,))])
    plain = Image.fromarray(PIXELS.astype(np.uint8))
    plain.getexif()[0x0112] = way
    upright = np.asarray(ImageOps.exif_transpose(plain))
    assert (levels(content, upright.shape) == upright).all()


ODD_TAGS = st.tuples(
    st.integers(257, 65535).filter(lambda tag: tag not in {257, 258, 262, 266, 273, 274, 277, 278, 279, 284, 317, 339}),
    st.sampled_from([1, 3, 4, 9, 11, 12]),
    st.lists(st.integers(0, 127), max_size=5).map(tuple),
)


@settings(max_examples=150)
@given(st.lists(ODD_TAGS, max_size=8, unique_by=lambda entry: entry[0]), st.sampled_from("<>"), st.booleans())
def test_odd_tags_of_a_tiff_change_nothing(tags, order, big):
    tags = [tag for tag in tags if tag[0] not in (259, 320, 322, 323, 324, 325, 338)]
    content = tiff(PIXELS.astype(np.uint8), 8, photometric=2, order=order, big=big, tags=tags)
    assert (levels(content, PIXELS.shape) == PIXELS).all()


def test_tags_that_point_nowhere_change_nothing():
    for tag in (270, 282, 283, 700, 33432, 34377, 34665, 34675, 34853, 40965):
        for kind in (2, 4, 5, 7):
            content = tiff(PIXELS.astype(np.uint8), 8, photometric=2, tags=[(tag, 4, (0xFFFFFFF0,))])
            at = content.rindex(struct.pack("<HHI", tag, 4, 1))
            for count in (1, 3, 1 << 30):
                odd = content[: at + 2] + struct.pack("<HI", kind, count) + content[at + 8 :]
                assert (levels(odd, PIXELS.shape) == PIXELS).all()


@pytest.mark.skipif("AVIF" not in KINDS, reason="this Pillow reads no AVIF")
def test_no_exif_makes_an_avif_unreadable():
    plain = encoded("AVIF")
    content = bytearray(encoded("AVIF", exif=exif(1, more=[(0x010F, 2, 4, b"abc\0")])))
    at = content.rindex(b"II*\0")
    content[at : at + 24] = b"\xff" * 24
    assert (levels(bytes(content), PIXELS.shape) == levels(plain, PIXELS.shape)).all()


SIZES = [0, MIB - 1, MIB + 1, 5 * MIB]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"prVt"])
def test_a_png_may_hold_huge_notes(kind, size):
    note = b"x" * size
    body = {
        b"tEXt": b"Comment\0" + note,
        b"zTXt": b"Comment\0\0" + zlib.compress(note),
        b"iTXt": b"Comment\0\1\0\0\0" + zlib.compress(note),
        b"iCCP": b"own\0\0" + zlib.compress(note),
    }.get(kind, note)
    plain = png(PIXELS, 8, RGB)
    for at in (33, len(plain) - 12):
        assert (levels(plain[:at] + chunk(kind, body) + plain[at:], PIXELS.shape) == PIXELS).all()


def test_a_huge_profile_that_is_sound_is_used():
    from runtime.pictures.colour import gamma_profile

    profile = gamma_profile(1.0, None)
    large = struct.pack(">I", len(profile) + 3 * MIB) + profile[4:] + bytes(3 * MIB)
    found = [
        levels(png(PIXELS, 8, RGB, [chunk(b"iCCP", b"own\0\0" + zlib.compress(each))]), PIXELS.shape)
        for each in (profile, large)
    ]
    assert (found[0] == found[1]).all()
    assert (found[0] != PIXELS).any()


def test_many_mebibytes_of_notes_of_other_kinds_are_read():
    plain = encoded("JPEG")
    segments = b"".join(
        jpeg_segment(marker, b"x" * 65000) for marker in (0xFE, 0xE1, 0xE2, 0xED, 0xEF) for _ in range(8)
    )
    assert (levels(plain[:2] + segments + plain[2:], PIXELS.shape) == levels(plain, PIXELS.shape)).all()
    for kind in set(KINDS) - {"PNG", "JPEG"}:
        content = encoded(kind, icc_profile=b"x" * 3 * MIB)
        assert (levels(content, PIXELS.shape) == levels(encoded(kind), PIXELS.shape)).all()
    gif = io.BytesIO()
    image = Image.fromarray(PIXELS.astype(np.uint8)).quantize(200)
    image.save(gif, "GIF", comment=b"x" * 2 * MIB)
    assert (levels(gif.getvalue(), PIXELS.shape) == np.asarray(image.convert("RGB"))).all()


@settings(max_examples=100)
@given(
    st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"pHYs"])
    | st.sampled_from([b"tIME", b"bKGD", b"hIST", b"sBIT", b"sPLT", b"acTL", b"fcTL", b"fdAT", b"caNv"]),
    st.binary(max_size=60),
    st.booleans(),
    st.booleans(),
    st.sampled_from([RGB, GREY]),
)
def test_a_damaged_note_of_a_png_changes_nothing(kind, body, before, sound, colour):
    pixels = PIXELS if colour == RGB else PIXELS[..., 0]
    if sound and kind in (b"gAMA", b"cHRM", b"cICP"):
        body = body[:3]  # a whole one would mean something
    if kind == b"eXIf" and sound and orientation(body) != 1:
        body = b""
    note = chunk(kind, body, sound=sound)
    content = png(pixels, 8, colour, *([note], []) if before else ([], [note]))
    assert (levels(content, pixels.shape) == pixels.reshape(*pixels.shape[:2], -1)).all()


def test_what_is_cut_off_behind_the_pixels_changes_nothing():
    whole = png(PIXELS, 8, RGB, after=[chunk(b"tEXt", b"Comment\0" + b"x" * 99)])
    pixels_end = whole.rindex(b"tEXt") - 4
    for end in range(pixels_end, len(whole)):
        assert (levels(whole[:end], PIXELS.shape) == PIXELS).all()


@settings(max_examples=100)
@given(
    st.integers(0xE0, 0xEF) | st.just(0xFE), st.binary(max_size=40), st.sampled_from([b"", b"Photoshop 3.0\x008BIM"])
)
def test_no_private_segment_makes_a_jpeg_unreadable(marker, body, start):
    starts = {0xE1: b"Exif\0\0", 0xE2: b"ICC_PROFILE\0\1\1", 0xED: b"Photoshop 3.0\x008BIM"}
    plain = encoded("JPEG")
    load_pixels(plain[:2] + jpeg_segment(marker, body) + plain[2:], 6, 9)
    load_pixels(plain[:2] + jpeg_segment(marker, starts.get(marker, b"") + body) + plain[2:], 6, 9)
    load_pixels(plain[:2] + jpeg_segment(0xE2, b"MPF\0" + body) + plain[2:], 6, 9)


def test_inks_and_colours_of_a_jpeg_are_told_apart_by_what_is_kept():
    image = Image.new("CMYK", (9, 6), (10, 200, 30, 40))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=100)
    assert np.abs(levels(file.getvalue(), (6, 9)) - np.asarray(image.convert("RGB"))).max() <= 3
    rgb = Image.new("RGB", (9, 6), (10, 200, 30))
    file = io.BytesIO()
    rgb.save(file, "JPEG", quality=100, keep_rgb=True)  # told by the segment of Adobe alone
    assert np.abs(levels(file.getvalue(), (6, 9)) - np.asarray(rgb)).max() <= 3


@pytest.mark.parametrize("num", [1, 2, 3, 7])
def test_fill_bytes_before_a_segment_of_a_jpeg_are_passed_over(num):
    file = io.BytesIO()
    pixels = np.arange(6 * 9 * 3).reshape(6, 9, 3).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=100, subsampling=0)
    plain = file.getvalue()
    padded = plain[:2] + b"\xff" * num + jpeg_segment(0xE1, b"Exif\0\0" + exif(3)) + b"\xff" * num + plain[2:]
    assert (levels(padded, (6, 9)) == levels(plain, (6, 9))[::-1, ::-1]).all()


@pytest.mark.parametrize(("primaries", "transfer"), [(12, 13), (9, 16), (1, 8), (13, 12)])
def test_codes_of_an_avif_are_primaries_and_then_transfer(primaries, transfer):
    content = b"\0\0\0\x1cftypavif" + bytes(8) + b"colrnclx" + struct.pack(">HHHB", primaries, transfer, 1, 128)
    profile = video_profile(primaries, transfer)
    assert read_notes(content)[1].profiles == (() if profile is None else (profile,))
