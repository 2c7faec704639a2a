"""What is drawn again and again: prompts with their seeds, in two halves that share no prompt. Knows no models."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.errors import RFError
from tuning.config import TuneConfig


@dataclass(frozen=True)
class Subject:
    """A picture to draw, whatever the plan."""

    index: int  # among all
    prompt: str
    seed: int


@dataclass(frozen=True)
class Halves:
    """The pictures that a plan is found with, and those that decide about it."""

    search: Sequence[Subject]
    held_out: Sequence[Subject]

    @property
    def all(self) -> list[Subject]:
        """Both."""
        return [*self.search, *self.held_out]


def split(prompts: Sequence[str], config: TuneConfig) -> Halves:
    """Every other prompt is held out; where the prompts are fewer than the pictures, they come again with other seeds.

    Raises:
        RFError: There are too few.
    """
    different = list(dict.fromkeys(" ".join(prompt.split()) for prompt in prompts if prompt.strip()))
    if len(different) < config.min_prompts:
        raise RFError(
            f"{len(different)} different prompts are too few to tune with, expected at least {config.min_prompts}. "
            "Give a file with one prompt per line, of the kind that the model will draw."
        )
    num_search = config.num_pictures // 2
    sizes = (num_search, config.num_pictures - num_search)
    halves = []
    for half, size in enumerate(sizes):
        own, start = different[half::2], half * num_search
        halves.append([Subject(start + i, own[i % len(own)], config.seed + start + i) for i in range(size)])
    return Halves(*halves)
