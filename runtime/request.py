"""One picture that is asked for: the checked request, its random numbers, and the event at its end.

Knows nothing of graphs and caches, and nothing of which requests are drawn together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime import noise
from runtime.bundle.manifest import Manifest
from runtime.errors import RFError
from runtime.events import PictureEvent, to_picture
from runtime.options import DrawingPlan, GenerationOptions
from runtime.plans import plan_drawing
from runtime.signature import Precision
from runtime.text.tokenizer import PromptTokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A picture to draw; every value is fit for the model."""

    index: int  # of the prompt among those that were given together
    prompt: str
    ids: list[int]
    seed: int
    plan: DrawingPlan
    forced: npt.NDArray[np.int64] | None  # [N] tokens to use instead of drawing; -1 is drawn

    @property
    def times(self) -> npt.NDArray[np.float32]:
        """Of the Euler steps: [num_steps + 1], from 0 to 1."""
        return np.array(self.plan.times, np.float32)

    def fill_gumbel(self, step: int, out: npt.NDArray[np.float32]) -> None:
        """Write the noise of a representation token into [K]."""
        out[:] = noise.gumbel(self.seed, step, len(out))

    def first_pixels(self) -> npt.NDArray[np.float32]:
        """The noise that denoising starts from: [3, height, width]."""
        values = noise.normal(self.seed, (3, self.plan.height, self.plan.width))
        return values if self.plan.noise_scale == 1 else values * np.float32(self.plan.noise_scale)

    def finish(
        self,
        pixels: npt.NDArray[np.float32],  # [3, height, width]
        rep_ids: npt.NDArray[np.int64],  # [N]
        precision: Precision,
    ) -> PictureEvent:
        """The picture.

        Raises:
            RFError: It is not finite.
        """
        if not np.isfinite(pixels).all():
            raise RFError(
                f"The numbers overflowed in {precision}: the picture is not finite. "
                "Use precision fp32, or a smaller guidance scale.",
                "overflow",
            )
        return PictureEvent(self.index, self.prompt, self.seed, to_picture(pixels), pixels.copy(), rep_ids.copy())


def fill_gumbel(requests: Sequence[Request], request: int, token: int, out: npt.NDArray[np.float32]) -> None:
    """Write the noise of a token of one of the requests into [K]: bound to them, what a stage calls."""
    requests[request].fill_gumbel(token, out)


def check_requests(
    prompts: Sequence[str],
    seed: int,
    options: GenerationOptions | None,
    rep_ids: npt.ArrayLike | None,  # [R, N]
    manifest: Manifest,
    tokenizer: PromptTokenizer,
    cache_slots: int | None = None,
    window: int = 1,
) -> list[Request]:
    """Check what a caller asks for.

    Args:
        prompts: One text per picture.
        seed: Prompt i uses seed + i.
        options: How to draw all of them; None stands for the bundle's defaults.
        rep_ids: Representation tokens to use instead of drawing them; -1, at the same places of all rows, is drawn.
        manifest: What the model can do.
        tokenizer: Turns the prompts into ids.
        cache_slots: Length of the cache, where the graphs have a fixed one.
        window: Representation tokens of a pass, where neither the options nor their plan say it.

    Raises:
        RFError: A prompt or an option that the model cannot take.
    """
    if isinstance(prompts, str) or not prompts:
        raise RFError('Give the prompts as a list of at least one text: generate(["a red car"]).')
    if not 0 <= seed <= noise.MAX_SEED - len(prompts) + 1:
        raise RFError(f"seed must be 0 to 2**64 - {len(prompts)} for {len(prompts)} prompts, got {seed}.")
    plan = plan_drawing(options or GenerationOptions(), manifest, window)
    max_tokens = _max_prompt_tokens(plan, manifest.model.max_positions, cache_slots)
    ids = [tokenizer.encode(prompt, max_tokens) for prompt in prompts]
    forced = None if rep_ids is None else _check_rep_ids(rep_ids, (len(prompts), plan.num_rep_tokens), manifest)
    return make_requests(ids, seed, plan, forced, prompts)


def make_requests(
    ids: Sequence[list[int]],
    seed: int,
    plan: DrawingPlan,
    forced: npt.NDArray[np.int64] | None = None,  # [R, N]
    prompts: Sequence[str] | None = None,
) -> list[Request]:
    """Requests for prompts of token ids; nothing is checked."""
    return [
        Request(
            index=index,
            prompt="" if prompts is None else prompts[index],
            ids=list(each),
            seed=seed + index,
            plan=plan,
            forced=None if forced is None else forced[index],
        )
        for index, each in enumerate(ids)
    ]


def _max_prompt_tokens(plan: DrawingPlan, max_positions: int, cache_slots: int | None) -> int:
    """Tokens that a prompt may have; raises RFError where the picture alone is too large for the cache."""
    # Positions: the text, the start token, N tokens, and one that all pixel patches share.
    positions = max_positions - plan.num_rep_tokens - 2
    if cache_slots is None:
        return positions
    if cache_slots <= plan.num_rep_tokens:
        told = (
            f"These graphs have {cache_slots} cache slots, and a picture of {plan.height} x {plan.width} takes "
            f"{plan.num_rep_tokens + 1}. Draw a smaller one"
        )
        raise RFError(f"{told}, or export with more --cache-slots.", elsewhere=f"{told}.")
    return min(positions, cache_slots - plan.num_rep_tokens - 1)


def _check_rep_ids(rep_ids: npt.ArrayLike, shape: tuple[int, int], manifest: Manifest) -> npt.NDArray[np.int64]:
    try:
        values, limit = np.array(rep_ids), manifest.model.rep_vocab_size
    except ValueError:  # lists of different lengths
        raise RFError(f"rep_ids must be whole numbers of shape {shape}, got lists of different lengths.") from None
    if values.shape != shape or values.dtype.kind not in "iu":
        raise RFError(f"rep_ids must be whole numbers of shape {shape}, got {values.dtype} {values.shape}.")
    if values.min() < -1 or values.max() >= limit:
        raise RFError(f"rep_ids must be 0 to {limit - 1}, or -1 to draw one, got {values.min()} to {values.max()}.")
    if ((values < 0) != (values[:1] < 0)).any():
        raise RFError("rep_ids must be -1 at the same places for all prompts. Draw these prompts one by one.")
    return values.astype(np.int64)
