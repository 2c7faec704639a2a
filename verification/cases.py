"""What is drawn and asked to compare two sides: token ids, sizes, seeds and options. Knows nothing of who draws.

Ids are random, and words mean nothing here. The lengths of prompts, batches and pictures go from the shortest to what a
budget allows. Axes: R requests, N representation tokens, V text vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime import noise
from runtime.options import AnswerPlan, GenerationOptions, Plan
from runtime.signature import ModelSpec

Profile: TypeAlias = Literal["quick", "full"]

SEED: Final = 20260529
LARGE_MODEL: Final = 200_000_000  # parameters; above, pictures are small and steps few, to end in minutes
WINDOW: Final = 4  # representation tokens of a pass, where passes of several are compared
GUIDED, UNGUIDED = "pair", "unguided"  # the two cases whose difference is the effect of guidance
_MAX_PROMPT: Final = 96  # tokens of the longest prompt
_MAX_TOKENS: Final = 100  # representation tokens of the largest picture
_MAX_SIDE: Final = 8  # cells of the longest side of a narrow picture
_ANSWER_TOKENS: Final = 12


@dataclass(frozen=True, kw_only=True)
class DrawCase:
    """Pictures that are drawn together; request i has seed + i."""

    name: str
    prompts: tuple[tuple[int, ...], ...]  # [R] of any lengths, also 0
    seed: int = SEED
    options: GenerationOptions = field(default_factory=GenerationOptions)

    def alone(self, request: int) -> "DrawCase":
        """One of the requests by itself."""
        return replace(self, prompts=(self.prompts[request],), seed=self.seed + request)


@dataclass(frozen=True, kw_only=True)
class AnswerCase:
    """A question about pictures of random pixels; a temperature of 0 is greedy."""

    name: str
    sizes: tuple[tuple[int, int], ...]  # height and width of each picture
    question: tuple[int, ...]
    max_tokens: int
    seed: int = SEED
    temperature: float = 0.0
    top_k: int = 1
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def pictures(self) -> list[npt.NDArray[np.float32]]:
        """`[3, H, W]` each."""
        rng = np.random.default_rng(self.seed)
        return [rng.uniform(-1, 1, (3, *size)).astype(np.float32) for size in self.sizes]

    def gumbel(self, step: int, vocab_size: int) -> npt.NDArray[np.float32]:
        """The noise that a token is drawn with, `[V]`."""
        return noise.gumbel(self.seed, step, vocab_size, noise.TEXT_STAGE)

    def plan(self) -> AnswerPlan:
        """For the runtime."""
        greedy = self.temperature == 0
        return AnswerPlan(
            max_tokens=self.max_tokens,
            temperature=1.0 if greedy else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            greedy=greedy,
        )


@dataclass(frozen=True, kw_only=True)
class Cases:
    """All that is compared."""

    draws: tuple[DrawCase, ...]
    answers: tuple[AnswerCase, ...]


def choose_cases(
    model: ModelSpec,
    slots: int | None,
    profile: Profile = "full",
    *,
    seed: int = 0,
    num_random: int = 2,
    tuned: Plan | None = None,
) -> Cases:
    """Cases that a model, with caches of so many slots, takes.

    Args:
        model: The model.
        slots: Length of the cache of those graphs that have a fixed one, the shortest; None without such.
        profile: "quick" draws two prompts as `full` does and asks two questions, and leaves out the rest.
        seed: Of the random cases.
        num_random: How many random drawings there are, beside the fixed ones.
        tuned: The plan of the bundle, where it has one.
    """
    rng = np.random.default_rng(SEED)
    limits = _Limits(model, slots)
    prompts = limits.prompts(rng, (7, 3), limits.default)
    draws = [
        DrawCase(name=GUIDED, prompts=prompts, options=limits.default),
        DrawCase(
            name=UNGUIDED,
            prompts=prompts[:1],
            options=replace(limits.default, num_steps=1, rep_guidance_scale=1.0, pix_guidance_scale=1.0),
        ),
        DrawCase(
            name="several tokens at once",
            prompts=prompts[1:],
            options=replace(limits.default, num_steps=1, window=min(WINDOW, limits.num_tokens(limits.default) + 1)),
        ),
    ]
    if tuned is not None:
        draws.append(DrawCase(name="tuned plan", prompts=prompts[:1], options=GenerationOptions(plan=tuned)))
    answers = _questions(limits, rng)
    if profile == "full":
        draws += _more_drawings(limits, rng)
        answers += _more_questions(limits, rng)
        draws += [_random_drawing(limits, seed, number) for number in range(num_random)]
    return Cases(draws=tuple(draws), answers=tuple(answers))


class _Limits:
    """What fits into a model."""

    def __init__(self, model: ModelSpec, slots: int | None) -> None:
        self.model = model
        self._slots = slots or model.max_positions
        large = model.num_parameters > LARGE_MODEL
        small = GenerationOptions(height=2 * model.cell, width=min(3, model.max_grid) * model.cell, num_steps=4)
        self.default = small if large and model.max_grid > 1 else GenerationOptions()
        self.max_tokens = 16 if large else _MAX_TOKENS

    def num_tokens(self, options: GenerationOptions) -> int:
        """Representation tokens of a picture."""
        model = self.model
        rows, columns = model.rep_grid(options.height or model.default_height, options.width or model.default_width)
        return rows * columns

    def room(self, options: GenerationOptions) -> int:
        """Tokens of the longest prompt beside such a picture."""
        needed = self.num_tokens(options)
        return min(self.model.max_positions - needed - 2, self._slots - needed - 1)

    def prompts(
        self, rng: np.random.Generator, lengths: Sequence[int], options: GenerationOptions
    ) -> tuple[tuple[int, ...], ...]:
        """Random ids, cut to what fits."""
        room = self.room(options)
        return tuple(self.ids(rng, min(length, room)) for length in lengths)

    def ids(self, rng: np.random.Generator, length: int) -> tuple[int, ...]:
        """Random ids of texts."""
        return tuple(rng.integers(0, self.model.vocab_size, length).tolist())

    def size(self, rows: int, columns: int) -> GenerationOptions | None:
        """A picture of so many cells, or None where it does not fit."""
        cell, largest = self.model.cell, self.model.max_grid
        options = GenerationOptions(height=cell * min(rows, largest), width=cell * min(columns, largest))
        return options if self.room(options) >= 1 else None


def _more_drawings(limits: _Limits, rng: np.random.Generator) -> list[DrawCase]:
    default = limits.default
    side = int(limits.max_tokens**0.5)
    sizes = {"one cell": (1, 1), "tall": (_MAX_SIDE, 1), "wide": (1, _MAX_SIDE), "large": (side, side)}
    few = replace(default, num_steps=3)
    cases = [
        ("alone", (5,), default),
        ("shortest and longest", (_MAX_PROMPT, 1, 0), replace(default, num_steps=4)),
        ("no text", (0,), few),
        ("greedy", (4, 6), replace(few, temperature=0.0)),
        ("two of the tokens", (6, 2), replace(few, top_k=min(2, limits.model.max_top_k), temperature=2.0)),
        ("one step", (3,), replace(default, num_steps=1)),
        ("guided in the middle", (5, 3), replace(few, num_steps=4, shift=2.0, guided=(0.05, 0.5))),
        ("uneven times", (2,), replace(default, num_steps=None, times=(0.0, 0.5, 0.6, 1.0), rep_guidance_scale=1.0)),
        ("without guidance", (4,), replace(few, rep_guidance_scale=0.0, pix_guidance_scale=0.0)),
    ]
    for name, cells in sizes.items():
        picture = limits.size(*cells)
        if picture is not None:
            cases.append((name, (5, 2) if name == "one cell" else (5,), replace(picture, num_steps=2)))
    return [
        DrawCase(name=name, prompts=limits.prompts(rng, lengths, options), seed=SEED + 10 * (i + 1), options=options)
        for i, (name, lengths, options) in enumerate(cases)
    ]


def _random_drawing(limits: _Limits, seed: int, number: int) -> DrawCase:
    rng = np.random.default_rng((seed, number))
    side = min(limits.model.max_grid, int(limits.max_tokens**0.5))
    picture = limits.size(*rng.integers(1, side + 1, 2).tolist()) or limits.default
    options = replace(
        picture,
        num_steps=int(rng.integers(2, 9)),
        rep_guidance_scale=float(rng.uniform(0, 4)),
        pix_guidance_scale=float(rng.uniform(0, 4)),
        temperature=float(rng.uniform(0.5, 1.5)),
        top_k=int(rng.integers(1, min(64, limits.model.max_top_k) + 1)),
    )
    lengths = rng.integers(0, _MAX_PROMPT // 4, rng.integers(1, 4)).tolist()
    prompts = limits.prompts(rng, lengths, options)
    return DrawCase(name=f"random {seed}.{number}", prompts=prompts, seed=int(rng.integers(2**40)), options=options)


def _questions(limits: _Limits, rng: np.random.Generator) -> list[AnswerCase]:
    model = limits.model
    sizes = ((model.cell, model.cell), (min(model.default_height, 8 * model.cell), model.default_width))
    greedy = _question(limits, rng, "two pictures, greedy", sizes, 4)
    return [greedy, _sampled(greedy, model, "two pictures, sampled")]


def _more_questions(limits: _Limits, rng: np.random.Generator) -> list[AnswerCase]:
    cell = limits.model.cell
    long = _question(limits, rng, "longest text, no picture", (), _MAX_PROMPT)
    return [
        _question(limits, rng, "one token, no picture", (), 1),
        _sampled(long, limits.model, "longest text, no picture"),
        _question(limits, rng, "one picture, one token", ((cell, 2 * cell if limits.model.max_grid > 1 else cell),), 1),
    ]


def _question(
    limits: _Limits, rng: np.random.Generator, name: str, sizes: tuple[tuple[int, int], ...], length: int
) -> AnswerCase:
    cell = limits.model.cell
    num_images = sum(height // cell * (width // cell) for height, width in sizes)
    room = min(limits._slots, limits.model.max_positions) + 1 - num_images
    question = limits.ids(rng, max(1, min(length, room - 2)))
    tokens = max(1, min(_ANSWER_TOKENS, room - len(question)))
    return AnswerCase(name=name, sizes=sizes, question=question, max_tokens=tokens)


def _sampled(case: AnswerCase, model: ModelSpec, name: str) -> AnswerCase:
    # So hot that every rule that is left out shows within a few tokens.
    top_k = min(6, model.max_text_top_k)
    return replace(case, name=name, temperature=1.5, top_k=top_k, top_p=0.7, repetition_penalty=1.3)
