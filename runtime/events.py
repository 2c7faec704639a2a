"""What work reports while it runs: how far it is, and what a drawing or an answer has come to. Knows nothing of how.

Every array is the receiver's own: it stays as it is when the drawing goes on.
Legend: R requests (prompts), N representation tokens, K representation vocabulary, H and W pixels, V text
vocabulary.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Progress: TypeAlias = Callable[[str, int, int], None]  # what is done next, steps done, steps in all
_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class TokenEvent:
    """A representation token of every picture was drawn."""

    step: int  # 0 to num_steps - 1
    num_steps: int  # N
    rep_ids: npt.NDArray[np.int64]  # [R] as the graph drew them, also where other ones are forced
    logits: npt.NDArray[np.float32]  # [R, K] guided, before temperature


@dataclass(frozen=True, eq=False)
class StepEvent:
    """A denoising step of every picture was made; `x_pred` is a preview of the finished picture."""

    step: int  # 0 to num_steps - 1
    num_steps: int
    t: float
    t_next: float
    x_next: npt.NDArray[np.float32]  # [R, 3, H, W]
    x_pred: npt.NDArray[np.float32]  # [R, 3, H, W]


@dataclass(frozen=True, eq=False)
class PictureEvent:
    """A picture is finished."""

    index: int  # of the prompt
    prompt: str
    seed: int
    picture: npt.NDArray[np.uint8]  # [H, W, 3]
    pixels: npt.NDArray[np.float32]  # [3, H, W], -1 to 1 but not clipped
    rep_ids: npt.NDArray[np.int64]  # [N]


@dataclass(frozen=True, eq=False)
class WordEvent:
    """A token of an answer was drawn, the one that ends it too."""

    step: int  # 0 to max_tokens - 1
    max_tokens: int
    token_id: int
    text: str  # what it adds to the answer; empty for the end, and for a part of a character
    logits: npt.NDArray[np.float32]  # [V] before penalty and temperature


@dataclass(frozen=True)
class AnswerEvent:
    """An answer is complete."""

    question: str
    text: str
    token_ids: list[int]  # the one that ends it too
    seed: int
    ended_by: Literal["stop", "length"]  # the model, or max_tokens


Event: TypeAlias = TokenEvent | StepEvent | PictureEvent


def result_of(stage: Generator[object, None, _Value]) -> _Value:
    """What a stage returns, its events passed over."""
    while True:
        try:
            next(stage)
        except StopIteration as end:
            value: _Value = end.value
            return value


def to_picture(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Pixels [3, H, W] from -1 to 1 as a picture [H, W, 3] from 0 to 255, rounded to the nearest."""
    scaled = np.clip((pixels + 1.0) * 127.5, 0.0, 255.0)
    return np.ascontiguousarray(np.rint(scaled).astype(np.uint8).transpose(1, 2, 0))
