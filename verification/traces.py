"""What both sides put out on the way to a picture or an answer, so that it can be compared. Knows no side.

Legend: N representation tokens, K representation vocabulary, T prompt tokens, L layers, H key/value heads, D head
size, F image tokens, V text vocabulary, d width of the decoder.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from runtime.signature import GraphName
from verification.cases import AnswerCase, DrawCase

Floats = npt.NDArray[np.floating[Any]]
Taps = dict[str, Floats]  # name of a tensor inside of a graph -> what it held


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawing:
    """One request, as one side drew it."""

    logits: Floats  # [N, K] guided
    rep_ids: npt.NDArray[np.int64]  # [N] as this side chose them
    cache: Floats | None  # [2 L, H, T + N + 1, D]; None: not to be seen
    uncond_cache: Floats | None  # the same of the row without the text, of N tokens or more; None where it has none too
    times: Floats  # [steps + 1]
    x_preds: Floats  # [steps, 3, H, W]
    x_nexts: Floats  # [steps, 3, H, W]
    pixels: Floats  # [3, H, W]


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """An answer of one side."""

    features: Floats  # [F, d]
    ids: list[int]  # as this side chose them
    logits: Floats  # [tokens, V] before penalty and temperature


class Reference(Protocol):
    """The side that is right by definition. It draws every request alone."""

    name: str  # for people and for the verdict, such as "eager PyTorch 2.13.0"

    def draw(self, case: DrawCase) -> list[Drawing]:
        """Every request of a case, with its own tokens."""

    def answer(self, case: AnswerCase) -> Answer:
        """The answer, with its own tokens."""

    def tap_drawing(self, case: DrawCase, graph: GraphName, step: int, names: Collection[str]) -> Taps:
        """What tensors held in the given step of a stage, of a case with one request; see graphs/taps.py."""

    def tap_answer(self, case: AnswerCase, graph: GraphName, step: int, names: Collection[str]) -> Taps:
        """The same of an answer; for the image encoder, `step` counts the pictures."""


class Remembering:
    """A reference that draws every case once."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._drawings: dict[str, list[Drawing]] = {}
        self._answers: dict[str, Answer] = {}

    def draw(self, case: DrawCase) -> list[Drawing]:
        """As the reference does."""
        if case.name not in self._drawings:
            self._drawings[case.name] = self.reference.draw(case)
        return self._drawings[case.name]

    def answer(self, case: AnswerCase) -> Answer:
        """As the reference does."""
        if case.name not in self._answers:
            self._answers[case.name] = self.reference.answer(case)
        return self._answers[case.name]
