"""What is measured: one picture of one prompt, the same for every contender.

Made once from a bundle's manifest, so that engine, eager PyTorch and torch.compile get the same tokens, noise and
timesteps. Axes: N representation tokens, K representation vocabulary, P cache slots.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime import noise
from runtime.manifest import Manifest
from runtime.options import DrawingPlan, GenerationOptions, plan_drawing
from runtime.schedule import timesteps

SEED = 20260529


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One request: a conditional and an unconditional row."""

    plan: DrawingPlan
    prompt_ids: NDArray[np.int64]  # [T]
    rep_start_id: int
    gumbel: NDArray[np.float32]  # [N, K]
    noise: NDArray[np.float32]  # [3, H, W]
    times: NDArray[np.float32]  # [num_steps + 1]

    @classmethod
    def of(cls, manifest: Manifest, num_prompt_tokens: int, options: GenerationOptions) -> "Workload":
        """A made-up prompt of the given length; raises RFError for options that the model cannot take."""
        plan = plan_drawing(options, manifest)
        model, sampling = manifest.model, manifest.sampling
        rng = np.random.default_rng(SEED)
        rows = [noise.gumbel(SEED, n, model.rep_vocab_size) for n in range(plan.num_rep_tokens)]
        return cls(
            plan=plan,
            prompt_ids=rng.integers(0, model.vocab_size, num_prompt_tokens),
            rep_start_id=model.rep_start_id,
            gumbel=np.stack(rows),
            noise=noise.normal(SEED, (3, plan.height, plan.width)),
            times=timesteps(
                plan.num_steps, 4 * plan.num_rep_tokens, shift=sampling.shift,
                shift_base_patches=sampling.shift_base_patches,
            ),
        )  # fmt: skip

    @property
    def num_slots(self) -> int:
        """Cache slots P: the prompt, the start token and N tokens."""
        return len(self.prompt_ids) + self.plan.num_rep_tokens + 1

    @property
    def num_decoder_runs(self) -> int:
        """Runs of the representation decoder: the last one only fills the cache."""
        return self.plan.num_rep_tokens + 1
