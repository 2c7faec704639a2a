"""The words that a bundle's prompts may have, for people and as JSON. Knows nothing of running graphs."""

import textwrap
from pathlib import Path
from typing import Any, Final

from runtime.bundle.folder import open_bundle
from runtime.loading import open_tokenizer

_SHOWN: Final = 500  # words of a large vocabulary


def describe_vocabulary(path: str | Path) -> dict[str, Any]:
    """The vocabulary of a bundle, JSON-ready: words, pieces of words and control tokens, each in the order of ids.

    Raises:
        RFError: It is no bundle, or its tokenizer is damaged.
    """
    bundle = open_bundle(path)
    bundle.verify([bundle.manifest.tokenizer.file])
    return {"bundle": str(path), **open_tokenizer(bundle).vocabulary._asdict()}


def format_vocabulary(description: dict[str, Any]) -> str:
    """The text that `rf-export inspect --vocabulary` prints.

    All words of a small vocabulary in the order of the alphabet; the first ones, mostly the commonest, of a large one.
    """
    words, pieces, control = (description[name] for name in ("words", "pieces", "control"))
    lines = [f"{len(words)} words, {len(pieces)} pieces of words, {len(control)} control tokens"]
    if len(words) <= _SHOWN:
        lines += ["", *_folded(sorted(words))]
    else:
        lines += ["", *_folded(words[:_SHOWN]), f"... and {len(words) - _SHOWN} more; all of them with --json"]
    if pieces:
        lines += ["", "Other words are made of pieces, if these spell them: a prompt that they do not is refused."]
    if control:
        more = " ..." if len(control) > _SHOWN // 10 else ""
        lines += ["", *_folded(["control:", *control[: _SHOWN // 10]])]
        lines[-1] += more
    return "\n".join(lines)


def _folded(words: list[str]) -> list[str]:
    """Words in lines, those that would not show spelt out."""
    shown = [word if word.isprintable() and word.strip() else repr(word) for word in words]
    return textwrap.wrap(" ".join(shown), 100, break_long_words=False, break_on_hyphens=False)
