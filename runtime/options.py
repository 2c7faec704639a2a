"""How a picture is drawn: what the caller may choose, and what comes of it for a given model.

Knows nothing of graphs and prompts. A value that is out of range is refused here, before anything runs.
"""

import math
from dataclasses import dataclass
from typing import Final

from runtime.errors import RFError
from runtime.manifest import Manifest

MAX_STEPS: Final = 1000
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
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RFError(f"temperature must be >= 0, got {self.temperature}.")
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


def plan_drawing(options: GenerationOptions, manifest: Manifest) -> DrawingPlan:
    """Fill in the bundle's defaults and check against the model.

    Raises:
        RFError: The model cannot draw this.
    """
    model, defaults = manifest.model, manifest.sampling
    height = model.default_height if options.height is None else options.height
    width = model.default_width if options.width is None else options.width
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
    greedy = temperature == 0
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
