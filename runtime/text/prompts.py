"""Prompts in a text file, one per line. Knows nothing of what is done with them."""

from pathlib import Path
from typing import Final

from runtime.bundle.strict_json import read_limited
from runtime.errors import RFError

MAX_PROMPTS_BYTES: Final = 64 << 20


def read_prompts(path: Path) -> list[str]:
    """The lines of a file of prompts, without empty ones and comments; raises RFError."""
    try:
        lines = read_limited(path, MAX_PROMPTS_BYTES).decode("utf-8-sig").splitlines()
    except (RFError, UnicodeDecodeError) as error:
        raise RFError(f"{path} cannot be read ({error}). Give a text file with one prompt per line.") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
