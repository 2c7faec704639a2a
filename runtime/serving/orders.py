"""What is asked of a drawer, and what comes back: plain values that may travel to another process.

Knows nothing of HTTP and of pipelines. A picture comes back as the content of a PNG file, which keeps how it was made.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from runtime.options import AnswerOptions, GenerationOptions
from runtime.pictures.token_file import RepGrid


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture that is asked for.

    Attributes:
        prompt: The text.
        seed: Of its random numbers.
        options: How to draw.
        tokens: Those of another picture to draw from; None draws them.
        edits: Changes of the tokens, in the language of `generate --edit`, without files.
        num_previews: Previews on the way, or as many as there are steps.
        tells_steps: Whether each token and step is told, too.
    """

    prompt: str
    seed: int = 0
    options: GenerationOptions = field(default_factory=GenerationOptions)
    tokens: RepGrid | None = None
    edits: tuple[str, ...] = ()
    num_previews: int = 0
    tells_steps: bool = False


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about pictures, which are the content of files; an empty one asks for a caption."""

    pictures: tuple[bytes, ...]
    text: str = ""
    seed: int = 0
    options: AnswerOptions = field(default_factory=AnswerOptions)


@dataclass(frozen=True)
class Accepted:
    """The first event of all: what was asked for is sound, and has a place."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A token was drawn, or a step of the pixels was made."""

    stage: Literal["tokens", "pixels"]
    step: int  # 1 to num_steps
    num_steps: int
    rep_id: int | None = None  # the token, drawn or given


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What the picture looks like so far."""

    index: int  # 0 to num_previews - 1
    step: int  # 1 to num_steps
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished picture."""

    png: bytes
    prompt: str
    seed: int
    height: int
    width: int
    tokens: dict[str, Any]  # the document of runtime/pictures/token_file.py
    num_text_tokens: int


@dataclass(frozen=True)
class Word:
    """What a token adds to an answer."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A complete answer."""

    text: str
    ended_by: Literal["stop", "length"]
    num_prompt_tokens: int
    num_tokens: int


DrawingEvent: TypeAlias = Accepted | Progress | Preview | Picture
AnswerEvent: TypeAlias = Accepted | Word | Answer


def preview_steps(num_previews: int, num_steps: int) -> list[int]:
    """After which steps, counted from 1, a preview is made: the first one early, the others evenly up to the end."""
    if num_previews >= num_steps:
        return list(range(1, num_steps + 1))
    first = min(2, num_steps - num_previews)
    return [first + index * (num_steps - first) // num_previews for index in range(num_previews)]
