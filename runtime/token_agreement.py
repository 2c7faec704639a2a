"""Do two forms of one model, such as two precisions, answer alike? Every token is compared after the same history.

Up to the first token that differs, that one included, both answers go on from the same words; what comes after has
another history and is not compared. A token that differs is a near tie where the reference found its own choice less
than twice as likely as the other: such a choice says little, and rounding turns it either way. Knows nothing of graphs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.conversation import Conversation
from runtime.events import AnswerEvent, WordEvent
from runtime.figures import wilson_interval

NEAR_TIE: Final = 2.0  # odds


@dataclass(frozen=True, eq=False)
class Reading:
    """A greedy answer."""

    text: str
    token_ids: Sequence[int]  # the one that ends it too
    logits: Sequence[npt.NDArray[np.float32]]  # [V] per token


@dataclass(frozen=True)
class TokenAgreement:
    """How far answers agree, in counts; `str()` for people."""

    answers: int
    answers_equal: int
    tokens: int  # compared
    tokens_equal: int
    near_ties: int  # of those that differ
    worst_odds: float  # by which the reference preferred its own token where one differs; 1 where none does

    @property
    def tokens_alike(self) -> int:
        """Equal, or different at a near tie."""
        return self.tokens_equal + self.near_ties

    def failure(self, limit: float) -> str | None:
        """Why it is not shown, at 97.5%, that tokens are alike in a share of at least `limit`; None where it is.

        The lower end of the interval is judged, so that a handful of tokens cannot pass by chance.
        """
        low, high = wilson_interval(self.tokens_alike, self.tokens)
        if low >= limit:
            return None
        found = f"{self.tokens_alike} of {self.tokens} tokens are alike, {100 * low:.1f}% to {100 * high:.1f}%"
        few = wilson_interval(self.tokens, self.tokens)[0] < limit
        hint = "; these are too few to tell, give more pictures" if few else ""
        return f"answers: {found}, expected at least {100 * limit:.1f}% for sure{hint}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON object: counts, and the intervals of the shares."""
        return {
            **asdict(self),
            "answers_equal_interval": wilson_interval(self.answers_equal, self.answers),
            "tokens_equal_interval": wilson_interval(self.tokens_equal, self.tokens),
            "tokens_alike_interval": wilson_interval(self.tokens_alike, self.tokens),
        }

    def __str__(self) -> str:
        text = f"answers {_share(self.answers_equal, self.answers)}, tokens {_share(self.tokens_equal, self.tokens)}"
        different = self.tokens - self.tokens_equal
        return f"{text}, {self.near_ties} of {different} differences near ties" if different else text


def read_answer(conversation: Conversation, question: str = "") -> Reading:
    """Ask, and forget the answer; an empty question asks for a caption."""
    events = list(conversation.ask(question, history="forget"))
    told = events[-1]
    assert isinstance(told, AnswerEvent)
    return Reading(told.text, told.token_ids, [event.logits for event in events if isinstance(event, WordEvent)])


def compare_answers(pairs: Iterable[tuple[Reading, Reading]]) -> TokenAgreement:
    """Compare (the reference's, the other's) answers to the same questions."""
    answers = tokens = 0
    odds = []
    for reference, other in pairs:
        answers += 1
        equal = [a == b for a, b in zip(reference.token_ids, other.token_ids, strict=False)]
        if all(equal):
            tokens += len(equal)
            continue
        first = equal.index(False)
        tokens += first + 1
        logits = reference.logits[first].astype(np.float64)
        odds.append(math.exp(min(logits[reference.token_ids[first]] - logits[other.token_ids[first]], 700.0)))
    ties = sum(each < NEAR_TIE for each in odds)
    return TokenAgreement(answers, answers - len(odds), tokens, tokens - len(odds), ties, max(odds, default=1.0))


def merge(parts: Iterable[TokenAgreement]) -> TokenAgreement:
    """The counts of several together."""
    found = list(parts)
    worst = max((part.worst_odds for part in found), default=1.0)
    return TokenAgreement(
        sum(part.answers for part in found),
        sum(part.answers_equal for part in found),
        sum(part.tokens for part in found),
        sum(part.tokens_equal for part in found),
        sum(part.near_ties for part in found),
        worst,
    )


def _share(successes: int, num: int) -> str:
    low, high = wilson_interval(successes, num)
    return f"{successes}/{num} equal [{low:.2%}, {high:.2%}]"
