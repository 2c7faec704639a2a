"""The same colours reach the model, whatever space a file keeps them in; a broken profile is none."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_files import GREY, RGB, bmp, chunk, cmyk_icc, gif, icc, jpeg_segment, levels, png
from PIL import Image, ImageCms, features

from runtime.errors import RFError
from runtime.pictures.colour import gamma_profile, video_profile
from runtime.pictures.load import load_pixels

PROPHOTO = (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)
ADOBE = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
DISPLAY_P3 = (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


def xyz(places):
    white, *colours = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in zip(places[::2], places[1::2], strict=True))
    columns = np.stack(colours, 1)
    return columns * np.linalg.solve(columns, white), white


def encoded_in(places, gamma, srgb):
    """What a file of these colours holds to show `srgb` from 0 to 255, by the book."""
    signal = srgb / 255
    linear = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    matrix, white = xyz(places)
    own, own_white = xyz(SRGB)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapted = np.linalg.inv(bradford) @ np.diag(bradford @ white / (bradford @ own_white)) @ bradford
    other = linear @ (np.linalg.inv(matrix) @ adapted @ own).T
    return np.clip(other, 0, 1) ** gamma * 255


SPACES = {"Adobe RGB": (ADOBE, 256 / 563), "ProPhoto": (PROPHOTO, 1 / 1.8), "linear": (SRGB, 1.0), "old": (SRGB, 0.6)}


def inner_colours(seed):
    return np.random.default_rng(seed).integers(40, 216, (6, 7, 3))


def files_with(profile, pixels):
    """The picture in every kind of file that keeps a profile."""
    image = Image.fromarray(np.rint(pixels).astype(np.uint8))
    for kind, options in {
        "PNG": {},
        "TIFF": {},
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }.items():
        if kind != "AVIF" or features.check("avif"):
            file = io.BytesIO()
            image.save(file, kind, icc_profile=profile, **options)
            yield kind, file.getvalue()
    yield "GIF", gif(np.asarray(image), profile or b"")
    yield "BMP", bmp(np.asarray(image), profile or b"")


@pytest.mark.parametrize("space", SPACES)
def test_colours_of_a_profile_become_those_of_srgb(space):
    places, gamma = SPACES[space]
    srgb = inner_colours(3)
    profile = gamma_profile(gamma, places)
    for kind, content in files_with(profile, encoded_in(places, gamma, srgb)):
        close = np.abs(levels(content, srgb.shape) - srgb)
        assert np.percentile(close, 90) <= (8 if kind in ("JPEG", "AVIF") else 3), kind
        assert close.mean() < np.abs(encoded_in(places, gamma, srgb) - srgb).mean() / 3, kind


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("depth", [8, 16])
def test_gamma_and_primaries_of_a_png_are_heeded(space, depth):
    places, gamma = SPACES[space]
    srgb = inner_colours(4)
    values = np.rint(encoded_in(places, gamma, srgb) / 255 * ((1 << depth) - 1)).astype(int)
    before = [
        chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000))),
        chunk(b"cHRM", struct.pack(">8I", *(round(place * 100_000) for place in places))),
    ]
    assert np.abs(levels(png(values, depth, RGB, before), srgb.shape) - srgb).max() <= 5
    # What counts more: sRGB, and then a profile.
    plain = levels(png(values, depth, RGB), srgb.shape)
    assert (levels(png(values, depth, RGB, [*before, chunk(b"sRGB", b"\0")]), srgb.shape) == plain).all()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    packed = chunk(b"iCCP", b"own\0\0" + zlib.compress(profile))
    assert (levels(png(values, depth, RGB, [*before, packed]), srgb.shape) == plain).all()


def test_grey_has_a_gamma_too():
    shares = np.linspace(0, 1, 20).reshape(4, 5)
    before = [chunk(b"gAMA", struct.pack(">I", 100_000))]
    found = levels(png(np.rint(shares * 65535).astype(int), 16, GREY, before), (4, 5))[..., 0]
    expected = np.where(shares <= 0.0031308, 12.92 * shares, 1.055 * shares ** (1 / 2.4) - 0.055) * 255
    assert np.abs(found - expected)[shares > 0.1].max() <= 2


def test_what_means_srgb_leaves_every_pixel_as_it_is():
    pixels = np.random.default_rng(5).integers(0, 256, (16, 16, 3))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    sayings = [
        [chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(profile))],
        [chunk(b"gAMA", struct.pack(">I", 45455))],
        [chunk(b"cICP", bytes((1, 13, 0, 1)))],
        [
            chunk(b"gAMA", struct.pack(">I", 45455)),
            chunk(b"cHRM", struct.pack(">8I", *np.rint(np.array(SRGB) * 1e5).astype(int))),
        ],
    ]
    for before in sayings:
        assert (levels(png(pixels, 8, RGB, before), pixels.shape) == pixels).all()


def test_codes_of_video_are_heeded():
    srgb = inner_colours(6)
    signal = srgb / 255
    linear = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    own = np.linalg.inv(xyz(DISPLAY_P3)[0]) @ xyz(SRGB)[0]
    wide = np.clip(linear @ own.T, 0, 1)
    wide = np.where(wide <= 0.0031308, 12.92 * wide, 1.055 * wide ** (1 / 2.4) - 0.055)
    found = levels(png(np.rint(wide * 65535).astype(int), 16, RGB, [chunk(b"cICP", bytes((12, 13, 0, 1)))]), srgb.shape)
    assert np.abs(found - srgb).max() <= 3
    narrow = np.rint(16 + signal * 219).astype(int)
    found = levels(png(narrow, 8, RGB, [chunk(b"cICP", bytes((1, 13, 0, 0)))]), srgb.shape)
    assert np.abs(found - srgb).max() <= 3
    nits = np.clip(linear * 203 / 10_000, 0, 1) ** (1305 / 8192)
    pq = ((3424 / 4096 + 2413 / 128 * nits) / (1 + 2392 / 128 * nits)) ** (2523 / 32)
    found = levels(png(np.rint(pq * 65535).astype(int), 16, RGB, [chunk(b"cICP", bytes((1, 16, 0, 1)))]), srgb.shape)
    assert np.abs(found - srgb).max() <= 5
    assert video_profile(1, 18) is not None
    assert video_profile(3, 13) is None
    assert video_profile(1, 12) is None


def test_inks_have_a_profile():
    """Cyan of this printer is orange."""
    lab = np.zeros((2, 2, 2, 2, 3))
    lab[..., 0] = 100 * (1 - np.indices((2, 2, 2, 2)).max(0))
    lab[1, 0, 0, 0] = (65, 45, 60)
    image = Image.new("CMYK", (6, 4), (255, 0, 0, 0))
    for kind in ("JPEG", "TIFF"):
        file = io.BytesIO()
        image.save(file, kind, icc_profile=cmyk_icc(lab))
        red, green, blue = levels(file.getvalue(), (4, 6))[2, 3]
        assert red > 220
        assert 100 < green < 150
        assert blue < 80
        file = io.BytesIO()
        image.save(file, kind)
        assert levels(file.getvalue(), (4, 6))[2, 3, 0] < 10  # without one, cyan is cyan


BROKEN = [
    b"",
    b"no profile",
    bytes(200),
    b"\xff" * 3000,
    gamma_profile(1.0, ADOBE)[:200],
    cmyk_icc(np.zeros((2, 2, 2, 2, 3))),
]


@pytest.mark.parametrize("profile", BROKEN)
def test_a_profile_that_is_broken_or_of_other_channels_is_ignored(profile):
    pixels = np.random.default_rng(7).integers(0, 256, (6, 7, 3))
    plain = dict(files_with(None, pixels))
    for kind, content in files_with(profile, pixels):
        assert (levels(content, pixels.shape) == levels(plain[kind], pixels.shape)).all(), kind


@given(st.binary(max_size=300), st.integers(0, 400), st.sampled_from([b"gAMA", b"cHRM", b"cICP", b"iCCP", b"sRGB"]))
def test_no_saying_about_colours_makes_a_picture_unreadable(garbage, at, kind):
    profile = bytearray(gamma_profile(0.5, ADOBE))
    profile[at : at + len(garbage)] = garbage
    pixels = np.random.default_rng(8).integers(0, 256, (3, 4, 3))
    body = b"x\0\0" + zlib.compress(bytes(profile)) if kind == b"iCCP" else garbage
    load_pixels(png(pixels, 8, RGB, [chunk(kind, body)]), 3, 4)


def test_a_pillow_without_colour_profiles_is_refused_where_there_is_one(monkeypatch):
    monkeypatch.setattr(features, "check", lambda feature: False)
    content = dict(files_with(gamma_profile(1.0, ADOBE), np.zeros((3, 3, 3))))["PNG"]
    with pytest.raises(RFError, match=r"built without LittleCMS\. Install"):
        load_pixels(content, 3, 3)


def test_a_profile_in_many_parts_is_joined_in_their_order():
    profile = gamma_profile(0.5, PROPHOTO)
    parts = [profile[i : i + 1000] for i in range(0, len(profile), 1000)]
    segments = [
        jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes((i + 1, len(parts) + 3)) + part) for i, part in enumerate(parts)
    ]
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (200, 100, 50)).save(file, "JPEG", quality=100)
    content = file.getvalue()
    mixed = content[:2] + b"".join(reversed(segments)) + content[2:]
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (200, 100, 50)).save(file, "JPEG", quality=100, icc_profile=profile)
    assert (levels(mixed, (4, 6)) == levels(file.getvalue(), (4, 6))).all()
    assert (levels(mixed, (4, 6)) != levels(content, (4, 6))).any()


def test_lab_becomes_srgb_with_and_without_a_profile():
    srgb = Image.fromarray(inner_colours(9).astype(np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    lab = ImageCms.profileToProfile(srgb, ImageCms.createProfile("sRGB"), profile, outputMode="LAB")
    lab.info.clear()  # or else it is saved with its profile
    for options in ({}, {"icc_profile": profile.tobytes()}):
        file = io.BytesIO()
        lab.save(file, "TIFF", **options)
        differences = np.abs(levels(file.getvalue(), (6, 7)) - np.asarray(srgb))
        assert np.percentile(differences, 95) <= 3  # eight bits of Lab hold strong colours coarsely


# ITU-T H.273, table 2: white, then red, green and blue.
PLACES = {
    1: (0.3127, 0.3290, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),
    2: (0.3127, 0.3290, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (0.3127, 0.3290, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}


@pytest.mark.parametrize("code", range(24))
def test_every_code_of_primaries_stands_for_its_places_and_others_for_none(code):
    gammas = {4: 1 / 2.2, 5: 1 / 2.8, 8: 1.0, 17: 1 / 2.6}
    if code not in PLACES:
        assert video_profile(code, 8) is None
        return
    for transfer, gamma in gammas.items():
        if transfer != 4:  # near enough to sRGB that a gamma means that
            assert video_profile(code, transfer) == gamma_profile(gamma, PLACES[code])
    for transfer in (1, 6, 7, 13, 14, 15):
        is_srgb = PLACES[code] == PLACES[1]
        assert video_profile(code, transfer) == (b"" if is_srgb else gamma_profile(None, PLACES[code]))


def test_a_grey_profile_counts_in_colours_that_are_grey_and_in_no_others():
    white = b"XYZ " + struct.pack(">I3i", 0, 63190, 65536, 54061)
    curve = b"curv" + struct.pack(">IIH", 0, 1, 512)  # a gamma of 2
    profile = icc(b"GRAY", [(b"wtpt", white), (b"kTRC", curve)])
    grey = np.repeat(np.arange(40, 216, 8).reshape(2, 11, 1), 3, axis=2)
    before = [chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))]
    found = levels(png(grey, 8, RGB, before), grey.shape)
    assert (found < grey - 10).all()
    assert np.abs(found - levels(png(grey[..., 0], 8, GREY, before), grey.shape)).max() <= 1
    coloured = grey + np.array([0, 3, 0])
    assert (levels(png(coloured, 8, RGB, before), grey.shape) == coloured).all()
