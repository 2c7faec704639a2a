"""How a picture is drawn and a question answered: what the caller may choose, and the plan that comes of it.

Knows nothing of models: a value that no model takes is refused here, before anything runs. What a model takes, and what
it draws by default: plans.py.
"""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from runtime.errors import RFError

MAX_STEPS: Final = 1000
MAX_SHIFT: Final = 1000
MAX_WINDOW: Final = 65_536  # representation tokens
MAX_PENALTY: Final = 1000
MAX_TEMPERATURE: Final = 1_000_000  # all tokens are as likely long before
MAX_GUIDANCE: Final = 1000  # beyond any use, and far from the limits of float32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much work goes into a picture; None stands for what the bundle says.

    A guidance scale of 1 follows the prompt as it is, 0 ignores it, more follows it more strictly. Where it is 1, and
    outside of `guided`, a picture costs half.

    Attributes:
        num_steps: Euler steps of the denoiser.
        shift: How much earlier, in noise, the steps go; see `runtime.schedule`.
        times: The times between which the steps go, from 0 (noise) to 1 (the picture), in place of both.
        guided: From which time to before which one the denoiser is guided.
        rep_guidance_scale: Guidance of the representation tokens.
        pix_guidance_scale: Guidance of the pixels.
        window: Representation tokens that a pass takes; the tokens are the same with any. 1 is one by one.

    Raises:
        RFError: A value that no model takes.
    """

    num_steps: int | None = None
    shift: float | None = None
    times: tuple[float, ...] | None = None
    guided: tuple[float, float] | None = None
    rep_guidance_scale: float | None = None
    pix_guidance_scale: float | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.num_steps is not None and not 1 <= self.num_steps <= MAX_STEPS:
            raise RFError(f"num_steps must be 1 to {MAX_STEPS}, got {self.num_steps}.")
        if self.shift is not None and not 0 < self.shift <= MAX_SHIFT:
            raise RFError(f"shift must be above 0 and at most {MAX_SHIFT}, got {self.shift}.")
        if self.times is not None:
            if self.num_steps is not None or self.shift is not None:
                raise RFError("times say all of the steps: give no num_steps and no shift beside them.")
            require_times(self.times)
        if self.guided is not None and not (len(self.guided) == 2 and 0 <= self.guided[0] <= self.guided[1] <= 1):
            raise RFError(f"guided must be two times between 0 and 1, the smaller one first, got {_told(self.guided)}.")
        if self.window is not None and not 1 <= self.window <= MAX_WINDOW:
            raise RFError(f"window must be 1 to {MAX_WINDOW}, got {self.window}.")
        for name in ("rep_guidance_scale", "pix_guidance_scale"):
            value = getattr(self, name)
            if value is not None and not abs(value) <= MAX_GUIDANCE:
                raise RFError(f"{name} must be -{MAX_GUIDANCE} to {MAX_GUIDANCE}, got {value}.")


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(Plan):
    """What the caller chooses; None stands for what `plan` says, and then for the bundle's default.

    Attributes:
        height: In pixels.
        width: In pixels.
        temperature: Of the representation tokens; 0 takes the most likely one every time.
        top_k: Among so many of the likeliest tokens each is drawn.
        plan: "paper" for the defaults of the checkpoint, "tuned" for what `rf-export tune` found, or a plan.

    Raises:
        RFError: A value that no model takes.
    """

    height: int | None = None
    width: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    plan: Plan | Literal["paper", "tuned"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None and self.top_k < 1:
            raise RFError(f"top_k must be >= 1, got {self.top_k}.")
        if self.temperature is not None and not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise RFError(f"temperature must be >= 0 and at most {MAX_TEMPERATURE}, got {self.temperature}.")
        if not (self.plan is None or isinstance(self.plan, Plan) or self.plan in ("paper", "tuned")):
            raise RFError(f'plan must be "paper", "tuned" or a Plan, got {self.plan!r}.')


@dataclass(frozen=True, kw_only=True)
class DrawingPlan:
    """Every value that a drawing needs, fit for the model."""

    height: int
    width: int
    grid: tuple[int, int]  # rows and columns of representation tokens
    times: tuple[float, ...]  # of the Euler steps, float32 numbers from 0 to 1
    guided: tuple[float, float]  # from which time to before which one the denoiser is guided
    rep_guidance_scale: float
    pix_guidance_scale: float
    temperature: float  # > 0
    top_k: int
    greedy: bool  # no noise: the most likely token every time
    window: int  # tokens of a pass
    noise_scale: float  # standard deviation of the noise that denoising starts from

    @property
    def num_rep_tokens(self) -> int:
        """Representation tokens N of a picture."""
        return self.grid[0] * self.grid[1]

    @property
    def num_steps(self) -> int:
        """Euler steps."""
        return len(self.times) - 1

    @property
    def guides_tokens(self) -> bool:
        """Whether representation tokens have an unconditional row."""
        return self.rep_guidance_scale != 1

    @property
    def num_guided_steps(self) -> int:
        """Steps that have an unconditional row."""
        return sum(map(self.is_guided, self.times[:-1]))

    def is_guided(self, t: float) -> bool:
        """Whether the step from that time on has an unconditional row."""
        return self.pix_guidance_scale != 1 and self.guided[0] <= t < self.guided[1]


def require_times(times: Sequence[float]) -> None:
    """Refuse times that are no steps from noise to picture; raises RFError."""
    rounded = [struct.unpack("f", struct.pack("f", t))[0] if abs(t) < 2 else t for t in times]  # as graphs get them
    if not 2 <= len(rounded) <= MAX_STEPS + 1 or rounded[0] != 0 or rounded[-1] != 1:
        raise RFError(f"times must begin with 0 and end with 1, of {MAX_STEPS} steps at most, got {_told(times)}.")
    if not all(t < t_next for t, t_next in itertools.pairwise(rounded)):
        raise RFError(f"times must increase from one to the next, got {_told(times)}.")


def _told(values: Sequence[float]) -> str:
    text = ", ".join(f"{value:g}" for value in values[:8])
    return f"{text}, ... ({len(values)} numbers)" if len(values) > 8 else text or "nothing"


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
