"""How a picture is drawn and a question answered: what the caller may choose, and the plan that comes of it.

Knows nothing of models: a value that no model takes is refused here, before anything runs. What a model takes, and what
it draws by default: plans.py.
"""

from dataclasses import dataclass
from typing import Final

from runtime.errors import RFError

MAX_STEPS: Final = 1000
MAX_PENALTY: Final = 1000
MAX_TEMPERATURE: Final = 1_000_000  # all tokens are as likely long before
MAX_GUIDANCE: Final = 1000  # beyond any use, and far from the limits of float32


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
