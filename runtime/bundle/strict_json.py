"""Checked reading of JSON objects: every key is known, present and of its type.

Knows nothing of what the keys mean. It is there so that a damaged or foreign file is refused with a message
that says where, and never surfaces as a KeyError in the middle of a run.
"""

import hashlib
import json
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from runtime.errors import RFError

MAX_JSON_BYTES: Final = 16 << 20  # a manifest has less than 1 MiB; parsed, JSON takes up to 30 times its size
MAX_JSON_DEPTH: Final = 50
_SEAL: Final = "checksum"
_LARGEST: Final = sys.float_info.max


class Section:
    """A JSON object of which every key has to be taken exactly once.

    Raises:
        RFError: From every method, naming the file, the key and what was expected.
    """

    def __init__(self, content: Any, where: str) -> None:
        self.where = where
        if not isinstance(content, dict):
            raise RFError(f"{where}: expected an object, found {_kind(content)}.")
        self._content: dict[str, Any] = content
        self._left = dict(content)

    def names(self) -> list[str]:
        """The keys that nobody took yet."""
        return list(self._left)

    def take(self, key: str) -> Any:
        """The value of a required key, unchecked."""
        if key not in self._left:
            raise RFError(f"{self.where}: {key!r} is missing.")
        return self._left.pop(key)

    def string(self, key: str, choices: tuple[str, ...] = ()) -> str:
        """A text; one of `choices` where these are given."""
        value = self.take(key)
        if not isinstance(value, str) or (choices and value not in choices):
            expected = " or ".join(map(repr, choices)) if choices else "a text"
            raise RFError(f"{self.where}: {key!r} must be {expected}, found {_kind(value)}.")
        return value

    def integer(self, key: str, minimum: int) -> int:
        """A whole number that is not smaller than `minimum`."""
        value = self.take(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise RFError(f"{self.where}: {key!r} must be a whole number >= {minimum}, found {_kind(value)}.")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self.take(key)
        # A whole number of JSON may be beyond every float.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
            raise RFError(f"{self.where}: {key!r} must be a finite number, found {_kind(value)}.")
        return float(value)

    def array(self, key: str) -> list[Any]:
        """A list, its items unchecked."""
        value = self.take(key)
        if not isinstance(value, list):
            raise RFError(f"{self.where}: {key!r} must be a list, found {_kind(value)}.")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object, its keys and values unchecked."""
        value = self.take(key)
        if not isinstance(value, dict):
            raise RFError(f"{self.where}: {key!r} must be an object, found {_kind(value)}.")
        return value

    def strings(self, key: str) -> dict[str, str]:
        """An object whose values are texts."""
        value = self.mapping(key)
        for name, text in value.items():
            if not isinstance(text, str):
                raise RFError(f"{self.where}: {key}.{name} must be a text, found {_kind(text)}.")
        return value

    def section(self, key: str) -> "Section":
        """An object to be read in the same way."""
        return Section(self.take(key), f"{self.where}, {key}")

    def sections(self, key: str) -> Iterator["Section"]:
        """A list of objects to be read in the same way."""
        for index, item in enumerate(self.array(key)):
            yield Section(item, f"{self.where}, {key}[{index}]")

    def check_seal(self) -> None:
        """Refuse an object that was changed since `seal`; files of before there was one are taken as they are."""
        if _SEAL not in self._left:
            return
        if self._left.pop(_SEAL) != _checksum({key: value for key, value in self._content.items() if key != _SEAL}):
            raise RFError(
                f"{self.where} differs from what was written (checksum): it is damaged or was changed. Copy it again, "
                f"make it again, or remove the key {_SEAL!r} if you changed it on purpose."
            )

    def done(self) -> None:
        """Refuse the keys that nobody took."""
        if self._left:
            raise RFError(f"{self.where}: unknown {', '.join(map(repr, sorted(self._left)))}.")


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a file that is small, if it is what it should be; the size is looked at before anything is read.

    Raises:
        RFError: It has more than `limit` bytes, is no file, or cannot be read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device never ends
            raise RFError(f"{path} is not a file.")
        if found.st_size > limit:
            raise RFError(f"{path} has {found.st_size} bytes, and at most {limit} are read. It is no such file.")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RFError(f"{path} does not exist.") from None
    except OSError as error:
        raise RFError(f"{path} cannot be read: {error.strerror}.") from error


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """The content of a JSON file; raises RFError where there is none, or it is damaged or beyond the limits."""
    try:
        content = json.loads(read_limited(path, limit).decode("utf-8"), object_pairs_hook=_object)
        _check_depth(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise RFError(f"{path} is not valid JSON ({error}): it is damaged or was cut off.") from error
    return content


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of itself, so that `Section.check_seal` finds a changed number in it."""
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


def _kind(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
