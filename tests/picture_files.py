"""Picture files that no library writes: any depth, order and damage; and what a model sees of a file."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from runtime.pictures.load import load_pixels

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
_SHORT, _LONG, _FLOAT = 3, 4, 11


def levels(content, shape):
    """A file as [H, W, 3] from 0 to 255, as a model sees it."""
    pixels = load_pixels(content, *shape[:2])
    return np.rint((pixels.transpose(1, 2, 0) + 1) * 127.5).astype(int)


def chunk(kind, body, *, sound=True):
    checksum = zlib.crc32(kind + body) ^ (not sound)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(values, depth, colour, before=(), after=()):
    """`values` [H, W] or [H, W, channels]; `before` and `after` are whole chunks around the pixels."""
    values = np.asarray(values)
    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    rows = rows.astype(">u2").view(np.uint8) if depth == 16 else _bits(rows, depth)
    packed = zlib.compress(b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in rows))
    half = len(packed) // 2
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
            *before,
            chunk(b"IDAT", packed[:half]),
            chunk(b"IDAT", packed[half:]),
            *after,
            chunk(b"IEND", b""),
        )
    )


def tiff(values, bits, *, kind=1, photometric=1, order="<", big=False, tags=(), drop=()):
    """`values` [H, W] or [H, W, channels] of any type; `tags` are (tag, type, numbers or bytes)."""
    values = np.asarray(values)
    height, width, channels = (*values.shape, 1)[:3]
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if bits in (1, 2, 4, 12):
        pixels = _bits(values.reshape(height, -1), bits).tobytes()
    start = 16 if big else 8
    entries = [
        (256, _LONG, (width,)),
        (257, _LONG, (height,)),
        (258, _SHORT, (bits,) * channels),
        (262, _SHORT, (photometric,)),
        (273, _LONG, (start,)),
        (277, _SHORT, (channels,)),
        (278, _LONG, (height,)),
        (279, _LONG, (len(pixels),)),
        (339, _SHORT, (kind,) * channels),
        *tags,
    ]
    entries = sorted((entry for entry in entries if entry[0] not in drop), key=lambda entry: entry[0])
    number, width_of_field = ("Q", 8) if big else ("I", 4)
    at = start + len(pixels) + len(pixels) % 2
    room = at + (8 + 20 * len(entries) + 8 if big else 2 + 12 * len(entries) + 4)
    rows, rest = b"", b""
    for tag, type_, content in entries:
        body = content if isinstance(content, bytes) else _numbers(order, type_, content)
        count = len(content)
        field = body.ljust(width_of_field, b"\0")
        if len(body) > width_of_field:
            field = struct.pack(order + number, room + len(rest))
            rest += body + b"\0" * (len(body) % 2)
        rows += struct.pack(f"{order}HH{number}", tag, type_, count) + field
    magic = {"<": b"II", ">": b"MM"}[order]
    head = magic + (struct.pack(f"{order}HHHQ", 43, 8, 0, at) if big else struct.pack(f"{order}HI", 42, at))
    count = struct.pack(order + ("Q" if big else "H"), len(entries))
    return head + pixels + b"\0" * (len(pixels) % 2) + count + rows + bytes(width_of_field) + rest


def _bits(rows, depth):
    """Each row packed into bytes."""
    bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(len(rows), -1).astype(np.uint8), axis=1)


def _numbers(order, type_, content):
    return struct.pack(f"{order}{len(content)}{ {1: 'B', 3: 'H', 4: 'I', 9: 'i', 11: 'f', 12: 'd'}[type_] }", *content)


def gif(pixels, profile=b""):
    """`pixels` [H, W, 3] of at most 256 colours."""
    colours, indices = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(indices.reshape(pixels.shape[:2]).astype(np.uint8), "P")
    image.putpalette(colours.astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "GIF", optimize=False)
    content = file.getvalue()
    start = 13 + 3 * (2 << (content[10] & 7))  # behind the palette
    parts = [profile[at : at + 255] for at in range(0, len(profile), 255)]
    blocks = b"".join(bytes((len(part),)) + part for part in parts)
    extension = b"\x21\xff\x0bICCRGBG1012" + blocks + b"\0" if profile else b""
    return content[:start] + extension + content[start:]


def bmp(pixels, profile=b""):
    """`pixels` [H, W, 3], with a header of the fifth version."""
    height, width = pixels.shape[:2]
    rows = [row[:, ::-1].astype(np.uint8).tobytes() + bytes(-3 * width % 4) for row in pixels[::-1]]
    packed = b"".join(rows)
    space = b"DEBM" if profile else b"BGRs"
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 24, 0, len(packed), 2835, 2835, 0, 0)
    header += bytes(16) + space + bytes(48) + struct.pack("<IIII", 4, 124 + len(packed), len(profile), 0)
    start = 14 + len(header)
    return struct.pack("<2sIII", b"BM", start + len(packed) + len(profile), 0, start) + header + packed + profile


def exif(orientation, order="<", more=()):
    """With `more` entries, (tag, type, count, field) each, before the orientation."""
    entries = [*more, (0x0112, 3, 1, struct.pack(order + "H", orientation) + b"\0\0")]
    rows = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    return head + struct.pack(order + "H", len(entries)) + rows + bytes(4)


def jpeg_segment(marker, body):
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def icc(space, tags):
    """A profile of an output device for `space`, with Lab between; `tags` are (name, content)."""
    table, content = struct.pack(">I", len(tags)), b""
    for name, body in tags:
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(content), len(body))
        content += body + b"\0" * (-len(body) % 4)
    head = struct.pack(">4xI", 0x02100000) + b"prtr" + space.ljust(4) + b"Lab " + bytes(12) + b"acsp"
    head = head + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    size = 128 + len(table) + len(content)
    return struct.pack(">I", size) + head + bytes(124 - len(head)) + table + content


def cmyk_icc(lab):
    """`lab` [2, 2, 2, 2, 3]: CIE Lab of no and of full ink, by cyan, magenta, yellow and black."""
    lab = np.asarray(lab, float)
    codes = np.stack([lab[..., 0] * 2.55, lab[..., 1] + 128, lab[..., 2] + 128], -1)
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    body = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + ramp * 4 + np.rint(codes).astype(np.uint8).tobytes()
    white = b"XYZ " + struct.pack(">I3i", 0, 63190, 65536, 54061)
    return icc(b"CMYK", [(b"wtpt", white), (b"A2B0", body + ramp * 3)])
