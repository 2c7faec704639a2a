"""What a backend is: sessions that run graphs, drawings and conversations that run sessions.

Knows nothing of any library, of texts and of files. Who implements it lies below: `host` with all memory on the CPU,
`cuda` with memory that stays on a device, so that nothing goes back and forth between two steps.

Legend: R requests, K representation vocabulary, V text vocabulary, S new tokens.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from runtime.events import StepEvent, TokenEvent
from runtime.options import DrawingPlan
from runtime.signature import GraphName, GraphSignature, ModelSpec, Variant

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
FillNoise: TypeAlias = Callable[[int, int, npt.NDArray[np.float32]], None]  # request, token, [K] to be written


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    """What compiled graphs belong to: a backend, its exact version, and the features of a device."""

    backend: str
    version: str
    device: str


class Session(Protocol):
    """A loaded graph or engine. Several threads may run one session, each with buffers of its own."""

    @property
    def signature(self) -> GraphSignature:
        """Inputs and outputs, as the graph itself tells them."""

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once; the outputs are new arrays."""

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare many runs on the same memory.

        Args:
            inputs: Contiguous arrays, read anew by every run, so that the caller changes them in place.
            outputs: Contiguous arrays of the outputs that are wanted, overwritten by every run.

        Returns:
            A function that runs the graph once. It keeps the arrays alive.
        """


@dataclass(frozen=True, kw_only=True)
class DrawingShape:
    """What has to be known of a drawing before it begins.

    Attributes:
        model: The model.
        variant: Its graphs.
        num_requests: Pictures R that are drawn together.
        prompt_length: Tokens of the longest prompt.
        num_rep_tokens: Representation tokens N of a picture.
        num_slots: Slots of the cache: what the drawing takes, or what modern graphs are fixed to.
        previews: Report every token and step. Without, a backend may run a stage in one go.
    """

    model: ModelSpec
    variant: Variant
    num_requests: int
    prompt_length: int
    num_rep_tokens: int
    num_slots: int
    previews: bool


class StageRunner(Protocol):
    """Runs the stages of one drawing, in this order, and owns its cache."""

    @property
    def num_passes(self) -> int:
        """Runs of rep_decoder that the tokens took."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read the prompts: [R] of any lengths, also 0."""

    def draw_tokens(
        self, plan: DrawingPlan, fill_noise: FillNoise, forced: npt.NDArray[np.int64] | None
    ) -> Generator[TokenEvent, None, npt.NDArray[np.int64]]:
        """Draw the representation tokens, in windows of the plan; at its end the last one is in the cache too.

        Args:
            plan: How to draw.
            fill_noise: Writes the Gumbel noise of a request's token.
            forced: [R, N] tokens to go on with instead of those that are drawn; -1 for the drawn one.

        Returns:
            [R, N] the tokens as the graph drew them.
        """

    def denoise(
        self,
        plan: DrawingPlan,
        times: npt.NDArray[np.float32],  # [num_steps + 1] from 0 to 1, as `runtime.schedule.timesteps` gives them
        x_t: npt.NDArray[np.float32],  # [R, 3, height, width] the noise
    ) -> Generator[StepEvent, None, npt.NDArray[np.float32]]:
        """Turn noise into pictures by Euler steps.

        Returns:
            [R, 3, height, width] the pictures.
        """

    def close(self) -> None:
        """Give back what the drawing used; may be called at any time, and twice."""


class TextRow(Protocol):
    """Keys and values of the tokens that were read; grows as it is needed. The memory belongs to this row alone."""

    @property
    def model(self) -> ModelSpec:
        """The model that reads."""

    @property
    def length(self) -> int:
        """Tokens that were read."""

    @property
    def kv(self) -> npt.DTypeLike:
        """The dtype of keys, values and image features."""

    def reserve(self, num_tokens: int) -> None:
        """Make room for so many more tokens; raises RFError where the model or its graphs have none."""

    def rewind(self, length: int) -> None:
        """Forget everything but the first tokens. Forgotten slots are zeroed: hidden ones have to be finite."""

    def bind(
        self, input_ids: npt.NDArray[np.int64], inputs: dict[str, Any], outputs: dict[str, Any]
    ) -> Callable[[], None]:
        """Prepare runs that read `input_ids [1, S]` into the row; valid until the next `reserve`.

        Args:
            input_ids: May change between runs, as all inputs may.
            inputs: The other inputs of text_decoder but those of the cache.
            outputs: Arrays for `next_ids` and `logits`, overwritten by every run.
        """


class Runner(Protocol):
    """Runs drawings and conversations with loaded graphs, wherever their memory is."""

    def stages(self, sessions: Mapping[GraphName, Session], drawing: DrawingShape) -> StageRunner:
        """Begin a drawing.

        Args:
            sessions: All graphs of a bundle, opened by this backend.
            drawing: Its sizes.
        """

    def text_row(self, session: Session, model: ModelSpec, variant: Variant) -> TextRow:
        """Begin a conversation: an empty row for what text_decoder reads."""


class Backend(Runner, Protocol):
    """Opens graphs, and runs drawings and conversations with them."""

    @property
    def needs_engine(self) -> bool:
        """Whether it runs compiled graphs only."""

    def target(self) -> Target:
        """What an engine has to be built for, to run here."""

    def open(self, path: Path, *, num_threads: int | None, compiled: bool) -> Session:
        """Load an ONNX graph, or a compiled one.

        Args:
            path: The file.
            num_threads: Threads of a run; None leaves it to the backend.
            compiled: The file is part of an engine, so that there is nothing left to optimise.

        Raises:
            RFError: The backend cannot load it.
        """


def keep_drawn(drawn: npt.NDArray[np.int64], forced: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """The tokens to go on with: the forced ones, and those that were drawn where these are -1 or None."""
    return drawn.copy() if forced is None else np.where(forced < 0, drawn, forced)
