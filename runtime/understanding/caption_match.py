"""Does a model see in its picture what it was asked to draw? Knows nothing of models: two texts are compared.

A word counts as often as it is there. CaptionMatch in all words says that both directions of one model agree with each
other, not that the picture is right: `rf-export eval` asks an independent checker.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class CaptionMatch:
    """What was asked for, what was seen, and how far they agree."""

    prompt: str
    caption: str
    is_exact: bool  # the same words in the same order
    score: float  # F1 of the words: 1 where they are the same in any order, 0 where none is

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self)


def agreement(prompt: str, caption: str) -> CaptionMatch:
    """Compare a caption with its prompt; case and punctuation do not matter."""
    asked, seen = _words(prompt), _words(caption)
    common = (Counter(asked) & Counter(seen)).total()
    score = 2 * common / (len(asked) + len(seen)) if asked or seen else 1.0
    return CaptionMatch(prompt, caption, asked == seen, score)


def format_agreements(agreements: Sequence[CaptionMatch]) -> list[str]:
    """Lines for people: each picture, and the sum of all."""
    lines = [
        f"{each.prompt!r} is seen as {each.caption!r}: {'the same' if each.is_exact else f'score {each.score:.2f}'}"
        for each in agreements
    ]
    if len(agreements) > 1:
        mean = sum(each.score for each in agreements) / len(agreements)
        exact = sum(each.is_exact for each in agreements)
        lines.append(f"agreement: {exact} of {len(agreements)} the same, mean score {mean:.2f}")
    return lines


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
