"""Draw prompts with the eager model, with the runtime's noise and timesteps."""

from collections.abc import Sequence

import numpy as np
import torch

from rf_export.eager import EagerRequest, EagerResult, generate
from rf_export.model import RFModel
from runtime.events import to_picture
from runtime.noise import gumbel, normal
from runtime.schedule import timesteps

SHEET_PROMPTS = (
    "a red car",
    "a blue fish",
    "a green tree",
    "a purple umbrella",
    "two yellow stars",
    "three red hearts",
    "four blue balloons",
    "two green guitars",
    "a pink cat left of a blue house",
    "a yellow key above a green apple",
    "a red mushroom and a purple cup",
    "a blue bell right of a pink heart",
)


def eager_request(model: RFModel, prompt_ids: Sequence[int], seed: int, *, with_rep: bool = True) -> EagerRequest:
    """A request with the checkpoint's sampling defaults and the runtime's noise for this seed."""
    config = model.config
    height, width = config.default_height, config.default_width
    rows, columns = config.rep_grid(height, width)
    sampling = config.sampling
    noise = [gumbel(seed, n, config.rep_vocab_size) for n in range(rows * columns)]
    times = timesteps(
        sampling.num_steps, 4 * rows * columns, shift=sampling.shift, shift_base_patches=sampling.shift_base_patches
    )
    if sampling.times is not None:
        times = np.array(sampling.times, np.float32)
    return EagerRequest(
        prompt_ids=torch.tensor(list(prompt_ids), dtype=torch.int64),
        gumbel=torch.from_numpy(np.stack(noise)) if with_rep else None,
        noise=sampling.noise_scale * torch.from_numpy(normal(seed, (3, height, width))),
        timesteps=torch.from_numpy(times),
        rep_guidance_scale=sampling.rep_guidance_scale,
        pix_guidance_scale=sampling.pix_guidance_scale,
        guided=sampling.guided,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
    )


def draw_eager(
    model: RFModel, prompt_ids: Sequence[int], seed: int, *, with_rep: bool = True
) -> tuple[np.ndarray, EagerResult]:
    """A picture `uint8 [H, W, 3]` of a prompt, and the steps that led there."""
    result = generate(model, eager_request(model, prompt_ids, seed, with_rep=with_rep))
    return to_picture(result.pixels.numpy()), result
