"""Changes honest inputs, with knowledge of their format, so that damage gets past the first check of a reader.

Knows nothing of the readers. Every function takes bytes and a random generator and returns bytes: the same ones for the
same generator.
"""

import copy
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

Mutate = Callable[[bytes, Random], bytes]

HUGE = (2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400)
NUMBERS = (0, 1, -1, 2, 255, 256, 1024, 65535, 10**6, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), *HUGE)
TEXTS = (
    "",
    " ",
    "..",
    "../x",
    "/etc/passwd",
    "C:\\x",
    "a\x00b",
    "\ud800",
    "\udfff\ud800",
    "x" * 300,
    "x" * 70_000,
    "a/../../b",
    "./a",
    "a//b",
    "\u202egnp.exe",
    "a\nb",
    "tokenizer.json",
    "fp32",
    "0" * 64,
    "é",
    "🚗",
    "\ufeff",
)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "U64", "")
VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": 0}, *NUMBERS, *TEXTS)


def change_bytes(data: bytes, rng: Random) -> bytes:
    """Flipped, lost, doubled, cut and inserted bytes."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(content) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 64, 512))
        how = rng.randrange(7)
        if how == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif how == 1 and at < len(content):
            content[at] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
        elif how == 2:
            del content[at : at + length]
        elif how == 3:
            content[at:at] = rng.randbytes(length)
        elif how == 4:
            content[at:at] = content[at : at + length]
        elif how == 5:
            number = struct.pack(rng.choice("<>") + "Q", rng.choice(HUGE) % 2**64)[: rng.choice((2, 4, 8))]
            content[at : at + len(number)] = number
        elif how == 6 and rng.random() < 0.3:
            del content[at:]
    return bytes(content)


def change_json(data: bytes, rng: Random) -> bytes:
    """Values of other types, lost and doubled keys, deep nesting; the checksum is taken off, mostly."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return change_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = _change_somewhere(content, rng)
    if isinstance(content, dict) and rng.random() < 0.9:
        content.pop("checksum", None)
    try:
        text = json.dumps(content, ensure_ascii=rng.random() < 0.8)
    except RecursionError:
        return b"[" * 20_000
    if rng.random() < 0.05:
        text = text.replace("{", '{"twice": 1, "twice": 2, ', 1)
    encoded = text.encode("utf-8", "surrogatepass")
    return change_bytes(encoded, rng) if rng.random() < 0.1 else encoded


def _places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in items for place in _places(value, (*path, key)))]


def _value(rng: Random) -> Any:
    if rng.random() < 0.05:
        value: Any = 0
        for _ in range(rng.choice((20, 60, 400, 900))):
            value = [value] if rng.random() < 0.5 else {"x": value}
        return value
    if rng.random() < 0.05:
        value = copy.deepcopy(rng.choice(VALUES))
        return [value] * (rng.choice((1, 10, 10_000)) if not isinstance(value, str) or len(value) < 10 else 3)
    return copy.deepcopy(rng.choice(VALUES))  # what is in an input may be changed further


def _change_somewhere(content: Any, rng: Random) -> Any:
    try:
        place = rng.choice(_places(content))
    except RecursionError:
        return content
    if not place:
        return _value(rng) if rng.random() < 0.1 else content
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    key, how = place[-1], rng.randrange(8)
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        parent[rng.choice(TEXTS)] = parent.pop(key)
    elif how == 2 and isinstance(parent, list):
        parent += [parent[key]] * rng.choice((1, 3, 100))
    elif how == 3 and isinstance(parent, dict):
        parent[rng.choice(TEXTS)] = _value(rng)
    elif how == 4 and isinstance(parent[key], str) and parent[key]:
        text = list(parent[key])
        text[rng.randrange(len(text))] = rng.choice(("\x00", "/", "..", "\ud800", " ", "x"))
        parent[key] = "".join(text)
    elif how == 5 and type(parent[key]) in (int, float):
        near = abs(parent[key]) < 1e15 and rng.random() < 0.5
        parent[key] = parent[key] + rng.choice((-1, 1, 0.5, 10**9)) if near else rng.choice(NUMBERS)
    else:
        parent[key] = _value(rng)
    return content


def change_lines(data: bytes, rng: Random) -> bytes:
    """One of several lines of JSON."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = change_json(lines[at], rng)
    return b"\n".join(lines)


def change_text(data: bytes, rng: Random) -> bytes:
    """Words of every script, no words at all, and very many."""
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return change_bytes(data, rng)
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(text) + 1)
        piece = rng.choice((*TEXTS, chr(rng.randrange(0xD800)), chr(rng.randrange(0x10000, 0x110000)), "\u0301" * 50))
        piece *= rng.choice((1, 1, 1, 100, 2000)) if len(piece) < 100 else 1
        text = text[:at] + piece + text[at + rng.choice((0, 0, 1, 5)) :]
    return text.encode("utf-8", "surrogatepass")


def change_safetensors(data: bytes, rng: Random) -> bytes:
    """Another header that fits its length, a length that fits nothing, other data."""
    if len(data) < 8 or rng.random() < 0.1:
        return change_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    how = rng.random()
    if how < 0.15:
        wrong = rng.choice((0, 1, 10**8, 2**40, 2**63, 2**64 - 1, len(data), length - 1, length + 1))
        return struct.pack("<Q", max(wrong, 0)) + data[8:]
    if how < 0.3:
        return data[: 8 + length] + change_bytes(rest, rng)
    header = _change_header(header, rng) if how < 0.7 else change_json(header, rng)
    return struct.pack("<Q", len(header)) + header + rest


def _change_header(header: bytes, rng: Random) -> bytes:
    try:
        content = json.loads(header)
        name = rng.choice([name for name in content if name != "__metadata__"])
        entry = content[name]
        how = rng.randrange(4)
        if how == 0:
            entry["dtype"] = rng.choice(DTYPES)
        elif how == 1:
            sizes = (0, 1, 2**32, 2**63, *entry["shape"])
            entry["shape"] = [rng.choice(sizes) for _ in range(rng.choice((0, 1, 2, 70)))]
        elif how == 2:
            entry["data_offsets"] = sorted(rng.choice((0, 4, 2**40, *entry["data_offsets"])) for _ in range(2))
        else:  # the place of another tensor
            entry["data_offsets"] = content[rng.choice([other for other in content if other != "__metadata__"])][
                "data_offsets"
            ]
        return json.dumps(content).encode()
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return change_json(header, rng)


def change_png(data: bytes, rng: Random) -> bytes:
    """Chunks lost, doubled, changed and added, with checksums that fit."""
    chunks = list(_chunks(data))
    if not chunks or rng.random() < 0.15:
        return change_bytes(data, rng)
    at = rng.randrange(len(chunks))
    kind, body = chunks[at]
    how = rng.randrange(6)
    if how == 0:
        del chunks[at]
    elif how == 1:
        chunks.insert(rng.randrange(len(chunks)), chunks[at])
    elif how == 2:
        chunks[at] = (kind, change_bytes(body, rng))
    elif how == 3:
        width, height = (rng.choice((0, 1, 7, 2**14, 2**16, 2**31 - 1, 2**32 - 1)) for _ in range(2))
        depth, colour = rng.choice((1, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 9))
        chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, rng.randrange(2)))
    else:
        chunks.insert(rng.randrange(1, len(chunks) + 1), _text_chunk(rng))
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _chunks(data: bytes) -> Any:
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _text_chunk(rng: Random) -> tuple[bytes, bytes]:
    text = rng.choice((b"", b"{", b"[]", b"1", b"\xff", b"[" * 5000, b'{"a": 1, "a": 2}', b"0" * 9000, b"x" * 10**6))
    if rng.random() < 0.3:
        return b"tEXt", b"rf-export\0" + text
    packed = zlib.compress(b"{" + b" " * rng.choice((10, 10**5, 10**8)) + b"}", 1) if rng.random() < 0.3 else text
    if rng.random() < 0.5:
        return b"zTXt", b"rf-export\0\0" + packed
    return b"iTXt", b"rf-export\0" + bytes([rng.randrange(2), 0]) + b"\0\0" + packed


def change_npz(data: bytes, rng: Random) -> bytes:
    """Other arrays in an archive that is sound, compressed bombs, and a hash that fits all the same."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = {name: file.read(name) for name in file.namelist()}
    except Exception:
        return change_bytes(data, rng)
    if not members or rng.random() < 0.25:
        return change_bytes(data, rng)
    name = rng.choice(sorted(members))
    how = rng.randrange(7)
    if how == 0:
        members[rng.choice(TEXTS)[:200].encode("ascii", "replace").decode()] = members.pop(name)
    elif how == 1:
        members[name] = _change_npy_header(members[name], rng)
    elif how == 2:
        members["meta.npy"] = _change_meta(members.get("meta.npy", b""), rng)
    elif how == 3:
        members[name] = change_bytes(members[name], rng)
    elif how == 4:
        del members[name]
    if rng.random() < 0.7:
        members = _rehash(members)
    compression = zipfile.ZIP_DEFLATED if how == 5 else zipfile.ZIP_STORED
    if how == 5:
        members[name] += bytes(rng.choice((10, 10**6, 10**8)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=1) as file:
        for each, content in members.items():
            file.writestr(zipfile.ZipInfo(each), content, compression)
    return buffer.getvalue()


def _change_npy_header(data: bytes, rng: Random) -> bytes:
    shapes = ("()", "(0,)", "(10**9,)", "(1000000000000,)", "(4611686018427387904, 4)", "(-1,)", "(2, 3)", "(1")
    shape = rng.choice(shapes)
    dtype = rng.choice(("<f4", "<f8", "|O", "<i8", "|V100", "<U1000000000", "<M8[s]", "xx", "|u1"))
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * rng.choice((0, 10, 70_000))
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + data[128:]


def _change_meta(data: bytes, rng: Random) -> bytes:
    text = change_json(data[128:] or b"{}", rng)
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(text)},), }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + text


def _rehash(members: dict[str, bytes]) -> dict[str, bytes]:
    """Let `meta` fit the arrays again, as calibration/recordings.py hashes them, where they are still arrays."""
    import numpy as np

    try:
        digest = hashlib.sha256()
        for name, content in sorted(members.items()):
            if name != "meta.npy":
                array = np.load(io.BytesIO(content), allow_pickle=False)
                digest.update(f"{name.removesuffix('.npy')} {array.dtype.str} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        meta = json.loads(np.load(io.BytesIO(members["meta.npy"])).tobytes())
        meta["sha256"] = digest.hexdigest()
        buffer = io.BytesIO()
        np.save(buffer, np.frombuffer(json.dumps(meta).encode(), np.uint8))
    except Exception:
        return members
    return {**members, "meta.npy": buffer.getvalue()}
