"""Prompts in a text file, one per line. Knows nothing of what is done with them."""

from pathlib import Path
from typing import Final

from runtime.bundle.strict_json import read_limited
from runtime.errors import RFError

MAX_PROMPTS_BYTES: Final = 64 << 20
_REMEDY: Final = "Give a text file with one prompt per line."


def read_prompts(path: Path) -> list[str]:
    """The lines of a file of prompts, without empty ones and comments; raises RFError."""
    try:
        lines = read_limited(path, MAX_PROMPTS_BYTES).decode("utf-8-sig").splitlines()
    except RFError as error:
        raise RFError(f"{error} {_REMEDY}") from error
    except UnicodeDecodeError as error:
        raise RFError(f"{path} is no text in UTF-8 (byte {error.start}). {_REMEDY}") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
