"""Texts that tell whether somebody's tokenizer reads as the bundle's does, with their ids, or that they are refused.

A bundle carries them in `check_texts.json`, so that a host with a reader of its own replays them when it opens the
bundle. Made of the vocabulary's own words, and of what readers get wrong: normal forms, blanks, digits, signs, emoji,
other scripts, and words that nobody knows. Knows nothing of models.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from runtime.errors import RFError
from runtime.text.tokenizer import PromptTokenizer

CHECK_TEXTS: Final = "check_texts.json"
NUM_TEXTS: Final = 64
_MOST_TOKENS: Final = 1 << 20  # no text is too long here
_TRAPS: Final = (
    *("", "  \t\n", "a", "A red car", "two  blue   fish", " a red car", "a red car ", "a\tred\ncar", "red\r\n\r\ncar"),
    *("I'm sure they'll don't", "WE'RE 'S 'ſ", "(red) [car] {fish}", "red, car; fish: ok?!", "...--__==>> </s> <pad>"),
    *("0", "7 12 345 6789", "3.14159 1,000,000 1e-5", "x2y3", "٣٤ ½ Ⅷ ²"),
    *("caf\u00e9", "cafe\u0301", "\u1e69 s\u0323\u0307", "\u212b ngstr\u00f6m", "\ufb01sh \uff46\uff49\uff53\uff48"),
    *("Stra\u00dfe STRASSE \u0130stanbul", "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2", "\u0938\u094d\u0924\u0947"),
    *(
        "\u8d64\u3044\u8eca",
        "\u7ea2\u8272\u7684\u6c7d\u8f66",
        "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
        "\u0442\u0440\u0438",
    ),
    *("\U0001f697", "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f1eb\U0001f1f7"),
    *("a\u00a0b\u2003c\u3000d\u2028e\u0085f", "zero\u200bwidth\ufeff", "\u2014\u201cquoted\u201d\u2026"),
    *("xyzzyplugh", "pneumonoultramicroscopicsilicovolcanoconiosis", "abcdefghij" * 12, "https://example.org/a_b?c=1"),
)


def check_texts(tokenizer: PromptTokenizer) -> list[dict[str, Any]]:
    """Each a `text` and its `ids`; none where a host has to refuse it."""
    made = itertools.islice(_sentences(tokenizer), NUM_TEXTS - len(_TRAPS))
    return [{"text": text, "ids": _ids(tokenizer, text)} for text in (*_TRAPS, *made)]


def format_check_texts(tokenizer: PromptTokenizer) -> str:
    """The content of `check_texts.json`: ASCII, a text a line."""
    lines = ",\n".join(json.dumps(each) for each in check_texts(tokenizer))
    return f'{{"texts": [\n{lines}\n]}}\n'


def _ids(tokenizer: PromptTokenizer, text: str) -> list[int] | None:
    try:
        return tokenizer.encode(text, _MOST_TOKENS, "text")
    except RFError:
        return None


def _sentences(tokenizer: PromptTokenizer) -> Iterator[str]:
    """Texts of the vocabulary's words, from all over it, each spelt in another way; they never end."""
    words = [word for word in tokenizer.vocabulary.words if word.isalpha()] or ["a"]
    whole: list[Callable[[str], str]] = [str, str.upper, str.title, "{}.".format]
    halves: list[Callable[[str, str], str]] = ["{}, {}".format, "{}\n{}".format, "{}{}".format, "{} 12 {}".format]
    step = max(1, len(words) // 61)
    for number in itertools.count():
        some = [words[(number * 7 + place) * step % len(words)] for place in range(1 + number % 6)]
        half = len(some) // 2
        which = number % len(whole)
        yield whole[which](" ".join(some))
        yield halves[which](" ".join(some[:half]) or some[0], " ".join(some[half:]))
