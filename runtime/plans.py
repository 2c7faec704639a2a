"""What comes of a caller's options for a given model: defaults are filled in, and what the model cannot do is refused.

Knows nothing of graphs, prompts and files.
"""

from typing import Final, TypeVar

import numpy as np

from runtime.bundle.manifest import Manifest, SamplingDefaults
from runtime.errors import RFError
from runtime.options import AnswerOptions, AnswerPlan, DrawingPlan, GenerationOptions, Plan
from runtime.schedule import timesteps

_T = TypeVar("_T")

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


def plan_drawing(options: GenerationOptions, manifest: Manifest, window: int = 1) -> DrawingPlan:
    """Fill in the bundle's defaults and check against the model.

    Args:
        options: What the caller chooses.
        manifest: What the model can do.
        window: Tokens of a pass where nobody says it.

    Raises:
        RFError: The model cannot draw this.
    """
    model, defaults, plan = manifest.model, manifest.sampling, named_plan(options, manifest)
    height, width = model.size_or_default(options.height, options.width)
    try:
        grid = model.rep_grid(height, width)
    except ValueError as error:
        raise RFError(f"This model cannot draw {height} x {width} pixels: {error}.") from error
    num_tokens = grid[0] * grid[1]
    if num_tokens + 2 > model.max_positions:  # the start token, N tokens, one for all pixel patches
        raise RFError(
            f"This model cannot draw {height} x {width} pixels: that takes {num_tokens + 2} positions "
            f"and the model has {model.max_positions}. Choose a smaller picture."
        )
    if options.window is not None and options.window > num_tokens + 1:
        raise RFError(
            f"window must be 1 to {num_tokens + 1} for {height} x {width} pixels, which have {num_tokens} tokens and a "
            f"start token, got {options.window}."
        )
    top_k = chosen(options.top_k, defaults.top_k)
    if top_k > model.max_top_k:
        raise RFError(f"top_k must be 1 to {model.max_top_k} for this model, got {top_k}.")
    temperature = chosen(options.temperature, defaults.temperature)
    greedy = temperature < SMALLEST
    return DrawingPlan(
        height=height,
        width=width,
        grid=grid,
        times=_times(options, plan, defaults, 4 * num_tokens),
        guided=chosen(options.guided, plan.guided, defaults.guided),
        rep_guidance_scale=chosen(options.rep_guidance_scale, plan.rep_guidance_scale, defaults.rep_guidance_scale),
        pix_guidance_scale=chosen(options.pix_guidance_scale, plan.pix_guidance_scale, defaults.pix_guidance_scale),
        temperature=1.0 if greedy else temperature,
        top_k=1 if greedy else top_k,
        greedy=greedy,
        window=min(chosen(options.window, plan.window, window), num_tokens + 1),
        noise_scale=defaults.noise_scale,
    )


def named_plan(options: GenerationOptions, manifest: Manifest) -> Plan:
    """The plan that the options name; an empty one stands for the bundle's defaults.

    Raises:
        RFError: The bundle has no tuned plan.
    """
    if isinstance(options.plan, Plan):
        return options.plan
    if options.plan != "tuned":
        return Plan()
    if manifest.tuned is None:
        raise RFError(
            "This bundle has no tuned plan. Make one with `rf-export tune`, or draw as the paper does: --plan paper.",
            elsewhere="This bundle has no tuned plan. Draw as the paper does: plan paper.",
        )
    return manifest.tuned.plan


def _times(options: Plan, plan: Plan, defaults: SamplingDefaults, num_patches: int) -> tuple[float, ...]:
    """Of the options, where they say anything about steps; else of the plan, where it does; else of the defaults."""
    for each in (options, plan, defaults):
        if each.times is not None:
            return tuple(np.array(each.times, np.float32).tolist())
        if each.num_steps is not None or each.shift is not None:
            break
    num_steps = chosen(options.num_steps, plan.num_steps, defaults.num_steps)
    shift = chosen(options.shift, plan.shift, defaults.shift)
    times = timesteps(num_steps, num_patches, shift=shift, shift_base_patches=defaults.shift_base_patches)
    return tuple(times.tolist())


def chosen(*values: _T | None) -> _T:
    """The first that is not None; the last one never is."""
    return next(value for value in values if value is not None)
