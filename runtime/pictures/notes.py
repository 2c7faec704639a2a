"""What a picture file says beside its pixels, and the file without it. Knows nothing of models, and decodes no pixels.

Cameras, scanners and editors add EXIF, comments, colour profiles, thumbnails and private notes, odd ones and huge ones.
What tells how the pixels are meant is read here: the way up, the colours, what is transparent, what is black and white.
The decoder then gets a file that holds the pixels alone, so nothing else in it can make it fail. A note that is damaged
is as good as none.
"""

import re
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from runtime.pictures import png
from runtime.pictures.colour import SRGB, gamma_profile, video_profile
from runtime.pictures.grey import FLOAT, SIGNED, UNSIGNED, Samples


@dataclass(frozen=True, kw_only=True)
class Notes:
    """How the pixels of a file are meant."""

    orientation: int = 1  # of EXIF: 1 is upright
    profiles: tuple[bytes, ...] = ()  # ICC; the first sound one counts, and SRGB ends the search
    samples: Samples | None = None  # of a TIFF file
    extra: int = 0  # of TIFF: what follows the colours of a pixel; 1 and 2 are opacity
    transparent: tuple[int, ...] = ()  # the one transparent colour of a PNG file, a number per channel
    alphas: bytes = b""  # the opacity of every colour of the palette of a PNG file
    depth: int = 8  # bits of a channel of a PNG file


Read: TypeAlias = "tuple[bytes, Notes]"  # a file without what is not its pixels, and what was there

_TYPES: Final = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_SIZES: Final = {2: 1, 5: 8, 7: 1, 10: 8} | {kind: struct.calcsize(code) for kind, code in _TYPES.items()}
_SHORT, _LONG, _DOUBLE = 3, 4, 12
_ORIENTATION: Final = 274
_PROFILE: Final = 34675
_XMP: Final = 700
_EXTRA: Final = 338
# What a decoder needs of TIFF: sizes, places and packing of the pixels, and their meaning.
_NEEDED: Final = frozenset(
    (*range(256, 260), 262, 266, 273, *range(277, 280), 284, 292, 293, 317, 320, *range(322, 326), 332, 334, 338, 339)
) | {347, *range(512, 516), *range(517, 522), *range(529, 533), 50674}
_COLOURS: Final = {0: 1, 1: 1, 2: 3, 5: 4}  # channels by their meaning: grey (white or black is 0), RGB, CMYK
_LOSSLESS: Final = (1, 5, 8, 32773, 32946)  # kinds of packing: none, LZW, deflate, PackBits
_STRAIGHT_OPACITY: Final = 2
_LISTS: Final = frozenset((258, 273, 279, 320, 324, 325, 338, 339, 347, 519, 520, 521, 529, 530, 532, 50674))


def read_notes(content: bytes) -> Read:
    """Take a picture file apart; raises ValueError where what is transparent is damaged."""
    for start, take_apart in _KINDS.items():
        if re.match(start, content, re.DOTALL):
            return take_apart(content)
    return content, Notes()


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """Which way up a picture is meant, by its EXIF or else by its XMP: 1 to 8, and 1 where neither says it."""
    said = _Directory(re.sub(rb"\A(?:Exif\0\0)+", b"", exif)).numbers(_ORIENTATION)
    if said and said[0] in range(1, 9):
        return int(said[0])
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)
    return int(found[1]) if found else 1


def _png(content: bytes) -> Read:
    notes: dict[bytes, bytes] = {}
    texts: dict[str, str] = {}
    kept: dict[bytes, list[bytes | memoryview]] = {b"IHDR": [], b"PLTE": [], b"IDAT": []}
    found = list(png.chunks(content))
    for chunk in found:
        if chunk.kind == b"IDAT" or (chunk.kind in kept and not kept[chunk.kind]):
            kept[chunk.kind].append(chunk.whole)
        elif chunk.kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf", b"tRNS") and chunk.is_sound:
            notes.setdefault(chunk.kind, chunk.body)
        elif chunk.kind == b"tRNS":
            raise ValueError("its transparent colours are damaged")
        elif chunk.kind in (b"tEXt", b"zTXt", b"iTXt") and png.keyword(chunk) in _PNG_TEXTS:
            with suppress(ValueError):
                texts.setdefault(png.keyword(chunk), png.text(chunk))
    exif = notes.get(b"eXIf", b"")
    with suppress(ValueError):  # as ImageMagick wrote it before there was a chunk for it
        exif = exif or bytes.fromhex("".join(texts.get("Raw profile type exif", "").split("\n")[3:]))
    depth, colour = kept[b"IHDR"][0][16:18] if kept[b"IHDR"] and len(kept[b"IHDR"][0]) == 25 else (8, 2)
    said = notes.get(b"tRNS", b"")
    channels = {0: 1, 2: 3}.get(colour, 0)
    if said and len(said) < 2 * channels:
        raise ValueError("its transparent colours are damaged")
    # A file that is cut off in its pixels is one for the decoder to refuse.
    end = content[len(png.SIGNATURE) + sum(len(chunk.whole) for chunk in found) :]
    pixels = [png.SIGNATURE, *kept[b"IHDR"], *kept[b"PLTE"], *kept[b"IDAT"], end if end[4:8] == b"IDAT" else _IEND]
    return b"".join(pixels), Notes(
        orientation=orientation(exif, texts.get("XML:com.adobe.xmp", "").encode()),
        profiles=_png_colours(notes),
        transparent=struct.unpack_from(f">{channels}H", said) if said else (),
        alphas=said if colour == 3 else b"",
        depth=depth,
    )


_PNG_TEXTS: Final = ("XML:com.adobe.xmp", "Raw profile type exif")
_IEND: Final = b"\0\0\0\0IEND\xaeB`\x82"


def _png_colours(notes: dict[bytes, bytes]) -> tuple[bytes, ...]:
    """The colours of a PNG file, what counts most first (PNG 3, 4.3)."""
    profiles: list[bytes | None] = []
    cicp, packed = notes.get(b"cICP", b""), notes.get(b"iCCP", b"").partition(b"\0")[2]
    if len(cicp) == 4 and not cicp[2]:
        profiles.append(video_profile(cicp[0], cicp[1], is_full_range=cicp[3] != 0))
    if packed[:1] == b"\0":
        with suppress(ValueError):
            profiles.append(png.unpacked(packed[1:]))
    if b"sRGB" in notes:
        profiles.append(SRGB)
    gamma, points = notes.get(b"gAMA", b""), notes.get(b"cHRM", b"")
    if len(gamma) == 4 or len(points) == 32:
        places = [value / 100_000 for value in struct.unpack(">8I", points)] if len(points) == 32 else None
        profiles.append(gamma_profile(int.from_bytes(gamma, "big") / 100_000 if len(gamma) == 4 else None, places))
    return tuple(profile for profile in profiles if profile is not None)


def _jpeg(content: bytes) -> Read:
    exif, xmp, kept, at = b"", b"", [content[:2]], 2
    profile: dict[int, bytes] = {}  # parts by their number
    while content[at : at + 1] == b"\xff" and at + 4 <= len(content):
        marker, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == 0xDA or marker in range(0xD0, 0xDA) or end < at + 4 or end > len(content):
            break
        body = content[at + 4 : end]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/"):
            xmp = xmp or body
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            profile.setdefault(body[12], body[14:])
        # JFIF and Adobe tell the decoder which colours its numbers are.
        is_needed = (marker == 0xE0 and body.startswith(b"JFIF\0")) or (marker == 0xEE and body.startswith(b"Adobe"))
        if not (marker in range(0xE0, 0xF0) or marker == 0xFE) or (is_needed and len(body) >= 12):
            kept.append(content[at:end])
        at = end
    joined = b"".join(profile[number] for number in sorted(profile))
    return b"".join([*kept, memoryview(content)[at:]]), Notes(
        orientation=orientation(exif, xmp), profiles=(joined,) if joined else ()
    )


def _tiff(content: bytes) -> Read:
    directory = _Directory(content)
    bits, kinds = directory.numbers(258) or (1,), directory.numbers(339) or (1,)
    is_inverted = (directory.numbers(262) or (0,))[0] == 0  # WhiteIsZero, which decoders forget for wide numbers
    low, high, most = (directory.numbers(tag) for tag in (340, 341, 281))
    is_packed = bits[0] < 8  # the decoder spreads them over 8
    samples = Samples(
        bits=max(int(bits[0]), 8),
        kind=int(kinds[0]),
        is_inverted=is_inverted,
        low=low[0] if low and not is_packed else None,
        high=high[0] if high and not is_packed else None,
        # Not meant for this, but where it is a number of bits, it tells how many are used.
        largest=most[0] if most and bits[0] >= 16 and (int(most[0]) + 1).bit_count() == 1 else None,
    )
    changed = {262: 1} if is_inverted else {}
    if wide := _as_wide_grey(directory, samples):
        samples = replace(
            samples,
            colours=_COLOURS[directory.numbers(262)[0]],
            channels=(directory.numbers(277) or (1,))[0],
            is_differences=directory.numbers(317)[:1] == (2,),
        )
        changed = wide
    profile = directory.content(_PROFILE)
    return directory.with_only(_NEEDED - {_EXTRA} if wide else _NEEDED, changed), Notes(
        orientation=orientation(content, directory.content(_XMP)),
        profiles=(profile,) if profile else (),
        samples=samples,
        extra=(directory.numbers(_EXTRA) or (_STRAIGHT_OPACITY,))[0],
    )


def _as_wide_grey(directory: "_Directory", samples: Samples) -> dict[int, int]:
    """What makes a decoder take several wide numbers a pixel for several pixels of grey; nothing where it need not.

    Decoders know few such files, and take the upper 8 bits of those they know. The numbers lie in one row all the same.
    """

    def said(tag: int, default: int) -> int:
        return int((directory.numbers(tag) or (default,))[0])

    colours, channels, predictor = _COLOURS.get(said(262, 0)), said(277, 1), said(317, 1)
    is_even = len({*directory.numbers(258)}) == 1 and len({*directory.numbers(339)}) <= 1
    if not (
        colours
        and is_even
        and colours <= channels <= 16
        and (channels > 1 or (samples.bits == 32 and samples.kind == UNSIGNED))
        and (samples.bits, samples.kind) in ((16, UNSIGNED), (16, SIGNED), (32, UNSIGNED), (32, SIGNED), (32, FLOAT))
        and said(284, 1) == 1  # not one colour after the other
        and said(259, 1) in _LOSSLESS
        and (predictor == 1 or (predictor == 2 and samples.kind != FLOAT and not directory.numbers(322)))
    ):
        return {}
    widths = {tag: said(tag, 0) * channels for tag in (256, 322) if directory.numbers(tag)}
    kind = {16: UNSIGNED, 32: SIGNED}[samples.bits] if samples.kind != FLOAT else FLOAT  # which every decoder knows
    return {**widths, 258: samples.bits, 262: 1, 277: 1, 317: 1, 339: kind}


def _gif(content: bytes) -> Read:
    """Its profile lies in blocks of up to 255 bytes, before the pixels."""
    at, parts = content.find(_GIF_PROFILE), []
    at = at + len(_GIF_PROFILE) if at >= 0 else len(content)
    while at < len(content) and content[at]:
        parts.append(content[at + 1 : at + 1 + content[at]])
        at += 1 + content[at]
    return content, Notes(profiles=(b"".join(parts),) if parts else ())


_GIF_PROFILE: Final = b"\x21\xff\x0bICCRGBG1012"


def _bmp(content: bytes) -> Read:
    """Its fifth header tells where a profile lies, counted from behind the 14 bytes of the file."""
    if len(content) < 14 + 124 or content[70:74] != b"DEBM":  # PROFILE_EMBEDDED
        return content, Notes()
    start, size = struct.unpack_from("<II", content, 14 + 112)
    return content, Notes(profiles=(content[14 + start : 14 + start + size],))


def _avif(content: bytes) -> Read:
    """Its EXIF tells nothing: the way up has properties of its own, which the decoder reads."""
    found = re.search(rb"colrnclx\0(.)\0(.)", content, re.DOTALL)
    profile = video_profile(found[1][0], found[2][0]) if found else None
    pixels = re.sub(rb"(infe\x02.{7})Exif", rb"\1none", content, count=8, flags=re.DOTALL)
    return pixels, Notes(profiles=() if profile is None else (profile,))


def _jpeg2000(content: bytes) -> Read:
    at = content.find(b"colr\x02", 0, 1 << 16)
    profile = content[at + 7 : at - 4 + int.from_bytes(content[at - 4 : at], "big")] if at > 0 else b""
    return content, Notes(profiles=(profile,) if profile else ())


_KINDS: Final[dict[bytes, Callable[[bytes], Read]]] = {
    rb"\x89PNG\r\n\x1a\n": _png,
    rb"\xff\xd8\xff": _jpeg,
    rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]": _tiff,
    rb"GIF8": _gif,
    rb"BM.{12}\x7c\0\0\0": _bmp,
    rb"....ftyp": _avif,
    rb"\0\0\0\x0cjP  ": _jpeg2000,
}


class _Directory:
    """The first directory of a TIFF file, or of EXIF, which has the same form; empty where it is damaged."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._order = ">" if content[:2] == b"MM" else "<"
        self._is_big = content[2:4] in (b"+\0", b"\0+")
        self._number = "Q" if self._is_big else "I"
        self._entries: dict[int, tuple[int, int, bytes]] = {}  # tag: type, count, its last field
        if content[:2] in (b"II", b"MM"):
            with suppress(struct.error, OverflowError):  # cut off: what was read counts
                self._read()

    def _read(self) -> None:
        (at,) = self._unpack(self._number, 8 if self._is_big else 4)
        (num_entries,) = self._unpack("Q" if self._is_big else "H", at)
        at += 8 if self._is_big else 2
        room = len(self._content)
        for number in range(min(num_entries, 1 << 16)):
            tag, kind, count, field = self._unpack("HHQ8s" if self._is_big else "HHI4s", at + number * self._width)
            size = count * _SIZES.get(kind, 0)
            start = struct.unpack(self._order + self._number, field)[0] if size > len(field) else 0
            if not size or start + size > len(self._content) or size > room or tag in self._entries:
                continue
            room -= size  # of all together: a decoder distrusts files in which they overlap
            self._entries[tag] = kind, count, field

    @property
    def _width(self) -> int:
        return 20 if self._is_big else 12

    def _unpack(self, form: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(self._order + form, self._content, at)

    def content(self, tag: int) -> bytes:
        """What a tag holds, or nothing."""
        kind, count, field = self._entries.get(tag, (1, 0, b""))
        size = count * _SIZES[kind]
        if size <= len(field):
            return field[:size]
        (start,) = struct.unpack(self._order + self._number, field)
        return self._content[start : start + size]

    def numbers(self, tag: int, most: int = 16) -> tuple[Any, ...]:
        """The first numbers of a tag, or none."""
        kind, count, _ = self._entries.get(tag, (1, 0, b""))
        if kind not in _TYPES:
            return ()
        return struct.unpack_from(f"{self._order}{min(count, most)}{_TYPES[kind]}", self.content(tag))

    def with_only(self, tags: frozenset[int], changed: dict[int, int]) -> bytes:
        """The file with a directory of these tags alone at its end, and some changed to a number; never a BigTIFF."""
        if not self._entries:
            return self._content
        entries = {}
        for tag, (kind, count, _) in self._entries.items():
            if tag in tags:
                count = count if tag in _LISTS else 1
                content = self.content(tag)[: count * _SIZES[kind]]
                if _SIZES[kind] == 8 and kind in _TYPES and kind != _DOUBLE:
                    kind, content = _LONG, struct.pack(f"{self._order}{count}I", *self.numbers(tag, count))
                entries[tag] = kind, count, content
        entries |= {tag: (_LONG, 1, struct.pack(f"{self._order}I", value)) for tag, value in changed.items()}
        start = len(self._content) + len(self._content) % 2
        room = start + 2 + 12 * len(entries) + 4
        rows, rest = b"", b""
        for tag, (kind, count, content) in sorted(entries.items()):
            field = content.ljust(4, b"\0")
            if len(content) > 4:
                field = struct.pack(self._order + "I", room + len(rest))
                rest += content + b"\0" * (len(content) % 2)
            rows += struct.pack(self._order + "HHI", tag, kind, count) + field
        head = self._content[:2] + struct.pack(self._order + "HI", 42, start)
        padding = b"\0" * (start - len(self._content))
        directory = struct.pack(self._order + "H", len(entries)) + rows + bytes(4) + rest
        return b"".join((head, memoryview(self._content)[8:], padding, directory))
