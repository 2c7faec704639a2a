"""Who competes: the interface of whatever draws the workload's picture, and the reference that all are held against.

Knows nothing of engines and of measuring, and needs neither onnx nor onnxruntime.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rf_export.benchmark.workload import Workload
from rf_export.eager import EagerRequest, EagerResult, generate
from rf_export.model import RFModel

Stage = Literal["rep_step", "denoise_step", "picture"]
STAGES: tuple[Stage, ...] = ("rep_step", "denoise_step", "picture")


class Drawer(Protocol):
    """A contender: stages that may be repeated after `prefill`."""

    def prefill(self) -> None:
        """Read the prompt."""

    def draw_tokens(self, forced: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """The representation stage, `[N]`: what is drawn. It goes on with `forced` where that is given."""

    def turn_tokens(self) -> int:
        """As much of the representation stage as is worth timing; returns the number of runs."""

    def denoise(self, num_steps: int) -> NDArray[np.float32]:
        """The first steps of the pixel stage, `[3, H, W]`."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A name in the tables, with what runs each stage (baselines may need different layouts)."""

    name: str
    tokens: Drawer
    pixels: Drawer

    def prepare(self) -> None:
        """Fill the caches of both stages."""
        for drawer in dict.fromkeys((self.tokens, self.pixels)):
            drawer.prefill()
            drawer.draw_tokens()

    def picture(self, num_steps: int) -> int:
        """Everything, from the prompt to the picture."""
        self.tokens.prefill()
        self.tokens.draw_tokens()
        self.pixels.denoise(num_steps)
        return 1


def draw_reference(model: RFModel, work: Workload, num_steps: int) -> EagerResult:
    """The picture after `num_steps` Euler steps, by the independent eager loop, on the model's device."""
    plan, device = work.plan, model.text_embedding.device
    request = EagerRequest(
        prompt_ids=torch.from_numpy(work.prompt_ids).to(device), gumbel=torch.from_numpy(work.gumbel).to(device),
        noise=torch.from_numpy(work.noise).to(device),
        timesteps=torch.from_numpy(work.times[: num_steps + 1]).to(device),
        rep_guidance_scale=plan.rep_guidance_scale, pix_guidance_scale=plan.pix_guidance_scale,
        temperature=plan.temperature, top_k=plan.top_k,
    )  # fmt: skip
    with device:
        return generate(model, request)
