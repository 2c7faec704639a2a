"""What comes of a caller's options for a given model: defaults are filled in, and what the model cannot do is refused.

Knows nothing of graphs, prompts and files.
"""

from typing import Final

from runtime.bundle.manifest import Manifest
from runtime.errors import RFError
from runtime.options import AnswerOptions, AnswerPlan, DrawingPlan, GenerationOptions

# Of temperature and top_p: below, the most likely token is drawn for sure, and float32 overflows or rounds to 0.
SMALLEST: Final = 1e-20


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
