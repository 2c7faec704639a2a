"""Checked reading of JSON documents: every key is known, present, of its type and in its range.

Knows nothing of what the keys mean: the `Record`s that a document is read into say it. It is there so that a damaged
or foreign file is refused with a sentence that says where, and never surfaces as a KeyError in the middle of a run.
"""

import hashlib
import json
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from runtime.errors import RFError

MAX_JSON_BYTES: Final = 16 << 20  # a manifest has less than 1 MiB; parsed, JSON takes up to 30 times its size
MAX_JSON_DEPTH: Final = 50
LFS_START: Final = b"version https://git-lfs.github.com/spec/"  # of the pointer files of git-lfs
_SEAL: Final = "checksum"
LARGEST: Final = sys.float_info.max
_NAMES: Final = {int: "a whole number", float: "a number", str: "a text", list: "a list", tuple: "a list"}

Finite = Annotated[float, Meta(ge=-LARGEST, le=LARGEST, description="a finite number")]
NotNegative = Annotated[int, Meta(ge=0, description="a whole number >= 0")]

_T = TypeVar("_T")
_R = TypeVar("_R", bound="Record")


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object of a document: the annotations have types and ranges, `__post_init__` has what belongs together."""

    def replace(self: _R, **changes: Any) -> _R:
        """The same with other values."""
        return msgspec.structs.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `read_as` reads it back."""
        plain = msgspec.to_builtins(self, enc_hook=lambda value: json.loads(json.dumps(value)))  # NumPy's numbers
        content: dict[str, Any] = json.loads(json.dumps(plain))
        return content


def read_as(kind: type[_T], content: Any, where: str, path: str = "") -> _T:
    """Check what `json.load` gave and make it one of `kind`, a `Record`.

    Raises:
        RFError: Says what is wrong in the file `where`, with the path of the key.
    """
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # half a surrogate pair
        for key, part, value in _parts(_bare(kind), content):  # msgspec tells neither a value nor the key of a table
            read_as(part, value, where, path + key)
        problem = _problem(kind, content, path.lstrip("."), str(error))
        raise RFError(f"{where}{problem}. Correct the file, or make it again.", "damaged") from None


def read_document(
    content: Any, where: str, form: str, version: int, remedy: str, oldest: int | None = None
) -> dict[str, Any]:
    """What a document of a format and version of ours holds besides these; its checksum fits where it has one.

    Raises:
        RFError: It is another one, or was changed; `remedy` is what to do again. Versions from `oldest` on are read.
    """
    if not isinstance(content, dict) or content.get("format") != form:
        other = shortened(content.get("format") if isinstance(content, dict) else content)
        raise RFError(
            f"{where} is no file of the format {form!r}, found {other}. Give a file that rf-export wrote.", "damaged"
        )
    found = content.get("format_version")
    if type(found) is not int or found < 1:
        raise RFError(
            f"{where}: 'format_version' must be a whole number >= 1, found {shortened(found)}. {remedy} again.",
            "damaged",
        )
    oldest = version if oldest is None else oldest
    if not oldest <= found <= version:
        reads = f"{oldest} to {version}" if oldest < version else version
        newer = f"Install a newer rf-export, or {remedy[0].lower()}{remedy[1:]}" if found > version else remedy
        raise RFError(
            f"{where} has format version {found}, and this rf-export reads {reads}. {newer} again.", "mismatch"
        )
    plain = {key: value for key, value in content.items() if key != _SEAL}
    if _SEAL in content and content[_SEAL] != _checksum(plain):  # there was none once
        raise RFError(
            f"{where} differs from what was written (checksum): it is damaged or was changed. Copy it again, "
            f"make it again, or remove the key {_SEAL!r} if you changed it on purpose.",
            "damaged",
        )
    del plain["format"], plain["format_version"]
    return plain


def expected(kind: Any) -> str:
    """What a value has to be, in words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return str(next(meta.description for meta in args[1:]))
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in (Union, UnionType):
        return " or ".join(expected(each) for each in args if each is not NoneType)
    return _NAMES.get(origin or kind, "an object")


def _bare(kind: Any) -> Any:
    while get_origin(kind) in (Annotated, Union, UnionType):
        kind = get_args(kind)[0]
    return kind


def _parts(kind: Any, content: Any) -> Iterator[tuple[str, Any, Any]]:
    """Key, type and value of what an object or a list holds."""
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(content, dict) and isinstance(kind, type(Record)):
        hints = get_type_hints(kind, include_extras=True)
        yield from ((f".{key}", hints[key], value) for key, value in content.items() if key in hints)
    elif isinstance(content, dict) and origin is dict:
        for key, value in content.items():
            yield from ((f".{key}", args[0], key), (f".{key}", args[1], value))
    elif isinstance(content, list) and origin in (list, tuple):
        yield from ((f"[{index}]", args[0], value) for index, value in enumerate(content))


def _problem(kind: Any, content: Any, path: str, text: str) -> str:
    if not (isinstance(content, dict) and isinstance(_bare(kind), type(Record))):
        return f"{f': {path!r}' if path else ''} must be {expected(kind)}, found {shortened(content)}"
    fields = msgspec.structs.fields(_bare(kind))
    start = f"{path}." * bool(path)
    missing = [f"{start}{field.name}" for field in fields if field.required and field.name not in content]
    unknown = [f"{start}{name}" for name in sorted(content.keys() - {field.name for field in fields})]
    if missing:
        return f": {', '.join(map(repr, missing))} {'is' if len(missing) == 1 else 'are'} missing"
    return f": unknown {', '.join(map(repr, unknown))}" if unknown else f": {f'{path}: ' if path else ''}{text}"


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a file that is small, if it is what it should be; the size is looked at before anything is read.

    Raises:
        RFError: It has more than `limit` bytes, is no file, or cannot be read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device never ends
            raise RFError(f"{path} is not a file.", "damaged")
        if found.st_size > limit:
            raise RFError(
                f"{path} has {found.st_size} bytes, and at most {limit} are read. It is no such file.", "damaged"
            )
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RFError(f"{path} does not exist.", "damaged") from None
    except OSError as error:
        raise RFError(f"{path} cannot be read: {error.strerror}.", "damaged") from error
    refuse_lfs_pointer(path, content)
    return content


def refuse_lfs_pointer(path: Path, start: bytes) -> None:
    """Raise RFError where a file begins as what git-lfs leaves in place of one that it has not downloaded yet."""
    if start.startswith(LFS_START):
        raise RFError(f"{path} is a pointer of git-lfs, not the file itself. Fetch it with: git lfs pull", "damaged")


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """The content of a JSON file; raises RFError where there is none, or it is damaged or beyond the limits."""
    return parse_json(read_limited(path, limit), str(path))


def parse_json(data: bytes, where: str) -> Any:
    """The content of a JSON text without double keys; raises RFError where it is damaged or nested too deeply."""
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_object)
        _check_depth(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise RFError(f"{where} is not valid JSON ({error}): it is damaged or was cut off.", "damaged") from error
    return content


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of itself, so that `read_document` finds a changed number in it."""
    return {**content, _SEAL: _checksum(content)}


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return content


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")


def shortened(value: Any) -> str:
    """A value in JSON, cut off where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
