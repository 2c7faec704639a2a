"""Do two forms of one model, such as two precisions, answer alike? Every token is compared after the same history.

Either one of them goes on with the other's tokens, or both go their own way and are compared up to the first token that
differs, that one included. A token that differs is a near tie where the reference found its own choice less than twice
as likely as the other: such a choice says little, and rounding turns it either way. Knows nothing of graphs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.events import AnswerEvent, WordEvent
from runtime.understanding.conversation import Conversation
from verification.measures.metrics import wilson_interval

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
        hint = "" if self.can_pass(limit) else "; these are too few to tell, give more pictures"
        return f"answers: {found}, expected at least {100 * limit:.1f}% for sure{hint}"

    def can_pass(self, limit: float) -> bool:
        """Whether so many tokens would do if all were alike."""
        return wilson_interval(self.tokens, self.tokens)[0] >= limit

    def shortfall(self, limit: float) -> float:
        """0 where all tokens are alike, above 1 where `limit` is missed; 0 where no difference could tell."""
        best, low = (wilson_interval(alike, self.tokens)[0] for alike in (self.tokens, self.tokens_alike))
        return (best - low) / (best - limit) if best > limit else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON object: counts, and the intervals of the shares."""
        return {
            **asdict(self),
            "tokens_alike": self.tokens_alike,
            "answers_equal_interval": wilson_interval(self.answers_equal, self.answers),
            "tokens_equal_interval": wilson_interval(self.tokens_equal, self.tokens),
            "tokens_alike_interval": wilson_interval(self.tokens_alike, self.tokens),
        }

    def __str__(self) -> str:
        text = f"answers {_share(self.answers_equal, self.answers)}, tokens {_share(self.tokens_equal, self.tokens)}"
        different = self.tokens - self.tokens_equal
        return f"{text}, {self.near_ties} of {different} differences near ties" if different else text


def read_answer(conversation: Conversation, question: str = "", token_ids: Sequence[int] | None = None) -> Reading:
    """Ask, and forget the answer.

    Args:
        conversation: what was shown before.
        question: empty for a caption.
        token_ids: the answer to go on with; the reading tells what would have been said in each place.
    """
    events = list(conversation.ask(question, history="forget", token_ids=token_ids))
    told, words = events[-1], [event for event in events if isinstance(event, WordEvent)]
    assert isinstance(told, AnswerEvent)
    return Reading(told.text, [word.token_id for word in words], [word.logits for word in words])


def compare_answers(pairs: Iterable[tuple[Reading, Reading]], *, same_history: bool = False) -> TokenAgreement:
    """Compare (the reference's, the other's) answers to the same questions.

    Args:
        pairs: the readings.
        same_history: the other went on with the tokens of the reference, so that all of them are compared.
    """
    answers = answers_equal = tokens = 0
    odds = []
    for reference, other in pairs:
        equal = [a == b for a, b in zip(reference.token_ids, other.token_ids, strict=False)]
        answers, answers_equal = answers + 1, answers_equal + all(equal)
        if not same_history and not all(equal):
            equal = equal[: equal.index(False) + 1]
        tokens += len(equal)
        for n in (n for n, is_equal in enumerate(equal) if not is_equal):
            logits = reference.logits[n].astype(np.float64)
            odds.append(math.exp(min(logits[reference.token_ids[n]] - logits[other.token_ids[n]], 700.0)))
    ties = sum(each < NEAR_TIE for each in odds)
    return TokenAgreement(answers, answers_equal, tokens, tokens - len(odds), ties, max(odds, default=1.0))


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
