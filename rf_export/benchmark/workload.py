"""What is measured: one picture of one prompt, and two questions about one picture, the same for every contender.

Made once from a bundle's manifest, so that engine, eager PyTorch and torch.compile get the same tokens, noise and
timesteps. Axes: N representation tokens, K representation vocabulary, P cache slots, F image tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import noise
from runtime.bundle.manifest import Manifest
from runtime.options import DrawingPlan, GenerationOptions
from runtime.plans import plan_drawing

SEED = 20260529


@dataclass(frozen=True, kw_only=True)
class DrawingWork:
    """One request: a conditional and an unconditional row."""

    options: GenerationOptions
    plan: DrawingPlan  # what comes of them, token by token
    prompt_ids: NDArray[np.int64]  # [T]
    rep_start_id: int
    gumbel: NDArray[np.float32]  # [N, K]
    noise: NDArray[np.float32]  # [3, H, W]
    times: NDArray[np.float32]  # [num_steps + 1]

    @classmethod
    def of(cls, manifest: Manifest, num_prompt_tokens: int, options: GenerationOptions) -> "DrawingWork":
        """A made-up prompt of the given length; raises RFError for options that the model cannot take."""
        plan = plan_drawing(options, manifest)
        model = manifest.model
        rng = np.random.default_rng(SEED)
        rows = [noise.gumbel(SEED, n, model.rep_vocab_size) for n in range(plan.num_rep_tokens)]
        return cls(
            options=options,
            plan=plan,
            prompt_ids=rng.integers(0, model.vocab_size, num_prompt_tokens),
            rep_start_id=model.rep_start_id,
            gumbel=np.stack(rows),
            noise=noise.normal(SEED, (3, plan.height, plan.width)) * np.float32(plan.noise_scale),
            times=np.array(plan.times, np.float32),
        )

    @property
    def num_patches(self) -> int:
        """Patches of the picture: one representation token stands for 2 x 2."""
        return 4 * self.plan.num_rep_tokens

    @property
    def num_slots(self) -> int:
        """Cache slots P: the prompt, the start token and N tokens."""
        return len(self.prompt_ids) + self.plan.num_rep_tokens + 1

    @property
    def num_decoder_runs(self) -> int:
        """Runs of the representation decoder: the last one only fills the cache."""
        return self.plan.num_rep_tokens + 1

    @property
    def num_trial_steps(self) -> int:
        """Denoising steps of a trial and of a timed turn: the first ones, which are guided in most plans."""
        return min(2, self.plan.num_steps)

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "height": self.plan.height,
            "width": self.plan.width,
            "rep_tokens": self.plan.num_rep_tokens,
            "patches": self.num_patches,
            "prompt_tokens": len(self.prompt_ids),
            "cache_slots": self.num_slots,
            "num_steps": self.plan.num_steps,
            "guided_steps": self.plan.num_guided_steps,
            "times": list(self.plan.times),
        }


@dataclass(frozen=True, kw_only=True)
class ReadingWork:
    """A picture of noise, two questions about it of equal length, and how many words are answered."""

    pixels: NDArray[np.float32]  # [3, H, W] in [-1, 1]
    num_image_tokens: int  # F
    first: NDArray[np.int64]  # [T]
    second: NDArray[np.int64]  # [T]
    num_words: int

    @classmethod
    def of(cls, manifest: Manifest, num_question_tokens: int = 12, num_words: int = 24) -> "ReadingWork":
        """Made-up questions, in the model's default size of pictures; raises ValueError where there is no room."""
        model = manifest.model
        height, width = model.default_height, model.default_width
        rows, columns = model.rep_grid(height, width)
        if rows * columns + num_question_tokens + num_words > model.max_positions:
            raise ValueError(f"a picture, a question and {num_words} words take more than {model.max_positions} tokens")
        rng = np.random.default_rng(SEED)
        return cls(
            pixels=np.clip(noise.normal(SEED, (3, height, width)), -1, 1),
            num_image_tokens=rows * columns,
            first=rng.integers(0, model.vocab_size, num_question_tokens),
            second=rng.integers(0, model.vocab_size, num_question_tokens),
            num_words=num_words,
        )

    @property
    def num_slots(self) -> int:
        """Cache slots: the picture, a question, the answer."""
        return self.num_image_tokens + len(self.first) + self.num_words
