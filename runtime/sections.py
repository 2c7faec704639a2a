"""Checked reading of JSON objects: every key is known, present and of its type.

Knows nothing of what the keys mean. It is there so that a damaged or foreign file is refused with a message
that says where, and never surfaces as a KeyError in the middle of a run.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.errors import RFError


class Section:
    """A JSON object of which every key has to be taken exactly once.

    Raises:
        RFError: From every method, naming the file, the key and what was expected.
    """

    def __init__(self, content: Any, where: str) -> None:
        self.where = where
        if not isinstance(content, dict):
            raise RFError(f"{where}: expected an object, found {_kind(content)}.")
        self._left: dict[str, Any] = dict(content)

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
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
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

    def done(self) -> None:
        """Refuse the keys that nobody took."""
        if self._left:
            raise RFError(f"{self.where}: unknown {', '.join(map(repr, sorted(self._left)))}.")


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises RFError where there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RFError(f"{path} does not exist.") from None
    except OSError as error:
        raise RFError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise RFError(f"{path} is not valid JSON ({error}): it is damaged or was cut off.") from error


def _kind(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
