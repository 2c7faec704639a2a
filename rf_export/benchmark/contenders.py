"""Who competes: the interfaces of whatever draws and answers, and the references that all are held against.

Knows nothing of engines and of measuring, and needs neither onnx nor onnxruntime.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rf_export.benchmark.workload import DrawingWork, ReadingWork
from rf_export.eager import EagerQuestion, EagerRequest, EagerResult, answer, generate
from rf_export.model import RFModel

Stage = Literal["rep_step", "denoise_step", "picture"]
STAGES: tuple[Stage, ...] = ("rep_step", "denoise_step", "picture")
ReadingStage = Literal["encode_image", "first_word", "next_word", "second_question"]
READING_STAGES: tuple[ReadingStage, ...] = ("encode_image", "first_word", "next_word", "second_question")


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


class Reader(Protocol):
    """A contender: answers about one picture that may be repeated after `prepare`."""

    def prepare(self) -> None:
        """Read the picture and the first question."""

    def encode(self) -> NDArray[Any]:
        """The tokens of the picture, `[F, d]`."""

    def first_word(self) -> int:
        """Encode the picture, read it and the first question: the first word of the answer."""

    def second_question(self) -> int:
        """Read the second question after the picture that was read before: the first word of the answer."""

    def words(self, forced: Sequence[int] | None = None) -> list[int]:
        """The answer to the first question, word by word. It goes on with `forced` where that is given."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A name in the tables, with what runs each stage (baselines may need different layouts)."""

    name: str
    tokens: Drawer
    pixels: Drawer
    readers: Mapping[ReadingStage, Reader] = field(default_factory=dict)

    def prepare(self) -> dict[Drawer, NDArray[np.int64]]:
        """Fill the caches of all stages; what each drawer drew."""
        drawn = {}
        for drawer in (self.tokens, self.pixels):
            if drawer not in drawn:
                drawer.prefill()
                drawn[drawer] = drawer.draw_tokens()
        for reader in dict.fromkeys(self.readers.values()):
            reader.prepare()
        return drawn

    def picture(self, num_steps: int) -> int:
        """Everything, from the prompt to the picture."""
        self.tokens.prefill()
        self.tokens.draw_tokens()
        self.pixels.denoise(num_steps)
        return 1


def draw_reference(model: RFModel, work: DrawingWork, num_steps: int) -> EagerResult:
    """The picture after `num_steps` Euler steps, by the independent eager loop, on the model's device."""
    plan, device = work.plan, model.text_embedding.device
    request = EagerRequest(
        prompt_ids=torch.from_numpy(work.prompt_ids).to(device),
        gumbel=torch.from_numpy(work.gumbel).to(device),
        noise=torch.from_numpy(work.noise).to(device),
        timesteps=torch.from_numpy(work.times[: num_steps + 1]).to(device),
        rep_guidance_scale=plan.rep_guidance_scale,
        pix_guidance_scale=plan.pix_guidance_scale,
        guided=plan.guided,
        temperature=plan.temperature,
        top_k=plan.top_k,
    )
    with device:
        return generate(model, request)


@dataclass(frozen=True, kw_only=True)
class ReadReference:
    """What the independent eager loop sees in the picture, and what it answers."""

    features: NDArray[np.float32]  # [F, d]
    words: list[int]  # to the first question
    second_word: int  # the first one to the second question


def read_reference(model: RFModel, work: ReadingWork) -> ReadReference:
    """The answers of `rf_export.eager`, greedy and in the model's dtype."""
    first, second = (
        answer(
            model,
            EagerQuestion(images=[torch.from_numpy(work.pixels)], ids=torch.from_numpy(ids), max_tokens=num_words),
        )
        for ids, num_words in ((work.first, work.num_words), (work.second, 1))
    )
    return ReadReference(features=first.features.numpy(), words=first.ids, second_word=second.ids[0])


def reading_runs(readers: Mapping[ReadingStage, Reader]) -> dict[str, Callable[[], int]]:
    """What is timed of each stage: functions that return the number of steps."""

    def once(run: Callable[[], object]) -> Callable[[], int]:
        return lambda: (run(), 1)[1]

    return {
        "encode_image": once(readers["encode_image"].encode),
        "first_word": once(readers["first_word"].first_word),
        "next_word": lambda: len(readers["next_word"].words()),
        "second_question": once(readers["second_question"].second_question),
    }
