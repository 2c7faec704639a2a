"""How a picture is drawn and a question answered: what the caller may choose, and what comes of it for a given model.

Knows nothing of graphs and prompts. A value that is out of range is refused here, before anything runs.
"""

from dataclasses import dataclass
from typing import Final

from runtime.bundle.manifest import Manifest
from runtime.errors import RFError

MAX_STEPS: Final = 1000
MAX_PENALTY: Final = 1000
MAX_TEMPERATURE: Final = 1_000_000  # all tokens are as likely long before
MAX_GUIDANCE: Final = 1000  # beyond any use, and far from the limits of float32
# Of temperature and top_p: below, the most likely token is drawn for sure, and float32 overflows or rounds to 0.
SMALLEST: Final = 1e-20


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """What the caller chooses; None stands for the bundle's default.

    height and width are in pixels. A guidance scale of 1 follows the prompt as it is, 0 ignores it, more
    follows it more strictly. A temperature of 0 takes the most likely token every time.

    Raises:
        RFError: A value that no model takes.
    """

    height: int | None = None
    width: int | None = None
    num_steps: int | None = None
    rep_guidance_scale: float | None = None
    pix_guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.num_steps is not None and not 1 <= self.num_steps <= MAX_STEPS:
            raise RFError(f"num_steps must be 1 to {MAX_STEPS}, got {self.num_steps}.")
        if self.top_k is not None and self.top_k < 1:
            raise RFError(f"top_k must be >= 1, got {self.top_k}.")
        if self.temperature is not None and not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise RFError(f"temperature must be >= 0 and at most {MAX_TEMPERATURE}, got {self.temperature}.")
        for name in ("rep_guidance_scale", "pix_guidance_scale"):
            value = getattr(self, name)
            if value is not None and not abs(value) <= MAX_GUIDANCE:
                raise RFError(f"{name} must be -{MAX_GUIDANCE} to {MAX_GUIDANCE}, got {value}.")


@dataclass(frozen=True, kw_only=True)
class DrawingPlan:
    """Every value that a drawing needs, fit for the model."""

    height: int
    width: int
    grid: tuple[int, int]  # rows and columns of representation tokens
    num_steps: int
    rep_guidance_scale: float
    pix_guidance_scale: float
    temperature: float  # > 0
    top_k: int
    greedy: bool  # no noise: the most likely token every time

    @property
    def num_rep_tokens(self) -> int:
        """Representation tokens N of a picture."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What the caller chooses of an answer; None stands for the bundle's default, and for as many as there are.

    A temperature of 0 takes the most likely token every time. top_k draws among the k most likely ones, top_p among the
    fewest that together have that probability. A repetition_penalty above 1 makes tokens of the answer less likely.

    Raises:
        RFError: A value that no model takes.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RFError(f"{name} must be >= 1, got {value}.")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise RFError(f"temperature must be >= 0 and at most {MAX_TEMPERATURE}, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise RFError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if not 0 < self.repetition_penalty <= MAX_PENALTY:
            raise RFError(
                f"repetition_penalty must be above 0 and at most {MAX_PENALTY}, got {self.repetition_penalty}."
            )


@dataclass(frozen=True, kw_only=True)
class AnswerPlan:
    """Every value that an answer needs, fit for the model."""

    max_tokens: int
    temperature: float  # > 0
    top_k: int
    top_p: float
    repetition_penalty: float
    greedy: bool  # no noise: the most likely token every time


def plan_answer(options: AnswerOptions, manifest: Manifest) -> AnswerPlan:
    """Fill in the bundle's defaults and check against the model.

    Raises:
        RFError: The model was not trained to answer, or not with such options.
    """
    if manifest.understanding is None:
        raise RFError(
            "This model answers no questions: its bundle says nothing of the ids around a question. If it was trained "
            'to, add a section "understanding" with start_id and stop_ids to config.json, and export it again.'
        )
    limit = manifest.model.max_text_top_k
    if options.top_k is not None and options.top_k > limit:
        raise RFError(f"top_k must be 1 to {limit} for this model, got {options.top_k}.")
    greedy = options.temperature < SMALLEST
    return AnswerPlan(
        max_tokens=options.max_tokens or manifest.understanding.max_tokens,
        temperature=1.0 if greedy else options.temperature,
        top_k=1 if greedy else options.top_k or limit,
        top_p=max(options.top_p, SMALLEST),  # the most likely token alone
        repetition_penalty=options.repetition_penalty,
        greedy=greedy,
    )


def plan_drawing(options: GenerationOptions, manifest: Manifest) -> DrawingPlan:
    """Fill in the bundle's defaults and check against the model.

    Raises:
        RFError: The model cannot draw this.
    """
    model, defaults = manifest.model, manifest.sampling
    height, width = model.size_or_default(options.height, options.width)
    try:
        grid = model.rep_grid(height, width)
    except ValueError as error:
        raise RFError(f"This model cannot draw {height} x {width} pixels: {error}.") from error
    if grid[0] * grid[1] + 2 > model.max_positions:  # the start token, N tokens, one for all pixel patches
        raise RFError(
            f"This model cannot draw {height} x {width} pixels: that takes {grid[0] * grid[1] + 2} positions "
            f"and the model has {model.max_positions}. Choose a smaller picture."
        )
    top_k = defaults.top_k if options.top_k is None else options.top_k
    if top_k > model.max_top_k:
        raise RFError(f"top_k must be 1 to {model.max_top_k} for this model, got {top_k}.")
    temperature = defaults.temperature if options.temperature is None else options.temperature
    greedy = temperature < SMALLEST
    return DrawingPlan(
        height=height,
        width=width,
        grid=grid,
        num_steps=defaults.num_steps if options.num_steps is None else options.num_steps,
        rep_guidance_scale=_chosen(options.rep_guidance_scale, defaults.rep_guidance_scale),
        pix_guidance_scale=_chosen(options.pix_guidance_scale, defaults.pix_guidance_scale),
        temperature=1.0 if greedy else temperature,
        top_k=1 if greedy else top_k,
        greedy=greedy,
    )


def _chosen(value: float | None, default: float) -> float:
    return default if value is None else value
