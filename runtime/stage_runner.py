"""Who runs the three stages of a drawing: the interface, and the loops that work with every session.

Knows nothing of texts and of libraries. A backend that keeps its memory on a device takes over whole stages, so that
nothing goes back and forth between two steps; all others use `HostStages`, one session call after another.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.backends import Session
from runtime.cache import KVCache
from runtime.events import StepEvent, TokenEvent
from runtime.options import DrawingPlan
from runtime.signature import Dialect, GraphName, ModelSpec, Precision
from runtime.stages import denoise, draw_tokens, prefill
from runtime.text_row import HostTextRow

FillNoise: TypeAlias = Callable[[int, npt.NDArray[np.float32]], None]  # step, [R, K] to be written


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What has to be known of a drawing before it begins.

    Attributes:
        model: The model.
        precision: Of its graphs.
        dialect: Of its graphs.
        num_requests: Pictures R that are drawn together.
        prompt_length: Tokens of the longest prompt.
        num_rep_tokens: Representation tokens N of a picture.
        num_slots: Slots of the cache: what the drawing takes, or what modern graphs are fixed to.
        previews: Report every token and step. Without, a backend may run a stage in one go.
    """

    model: ModelSpec
    precision: Precision
    dialect: Dialect = "classic"
    num_requests: int
    prompt_length: int
    num_rep_tokens: int
    num_slots: int
    previews: bool


class StageRunner(Protocol):
    """Runs the stages of one drawing, in this order, and owns its cache."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read the prompts: [R] of any lengths, also 0."""

    def draw_tokens(
        self, plan: DrawingPlan, fill_noise: FillNoise, forced: npt.NDArray[np.int64] | None
    ) -> Generator[TokenEvent, None, npt.NDArray[np.int64]]:
        """Draw the representation tokens; see `runtime.stages.draw_tokens`.

        Returns:
            [R, N] the tokens as the graph drew them.
        """

    def denoise(
        self,
        plan: DrawingPlan,
        times: npt.NDArray[np.float32],  # [num_steps + 1]
        x_t: npt.NDArray[np.float32],  # [R, 3, height, width] the noise
    ) -> Generator[StepEvent, None, npt.NDArray[np.float32]]:
        """Turn noise into pictures; see `runtime.stages.denoise`.

        Returns:
            [R, 3, height, width] the pictures.
        """

    def close(self) -> None:
        """Give back what the drawing used; may be called at any time, and twice."""


class HostStages:
    """The stages as loops over sessions, with all buffers in the host's memory; see `StageRunner`.

    Attributes:
        cache: Of all requests.
        row_starts: [R] the first slot of each prompt.
    """

    def __init__(self, sessions: Mapping[GraphName, Session], drawing: Drawing) -> None:
        self._sessions, self._drawing = sessions, drawing
        self.cache = KVCache(
            drawing.model, drawing.precision, 2 * drawing.num_requests, drawing.num_slots, dialect=drawing.dialect
        )
        self.row_starts = np.zeros(drawing.num_requests, np.int64)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read the prompts."""
        self.row_starts = prefill(self._sessions["text_decoder"], prompts, self.cache)

    def draw_tokens(
        self, plan: DrawingPlan, fill_noise: FillNoise, forced: npt.NDArray[np.int64] | None
    ) -> Generator[TokenEvent, None, npt.NDArray[np.int64]]:
        """Draw the representation tokens; again from the prompt, where it is repeated."""
        self.cache.length = self._drawing.prompt_length
        session, start = self._sessions["rep_decoder"], self._drawing.model.rep_start_id
        tokens = []
        for event in draw_tokens(session, plan, self.cache, self.row_starts, start, fill_noise, forced):
            tokens.append(event.rep_ids)
            if self._drawing.previews:
                yield event
        return np.stack(tokens, axis=1)

    def denoise(
        self, plan: DrawingPlan, times: npt.NDArray[np.float32], x_t: npt.NDArray[np.float32]
    ) -> Generator[StepEvent, None, npt.NDArray[np.float32]]:
        """Turn noise into pictures."""
        for event in denoise(self._sessions["denoiser"], plan, self.cache, self.row_starts, times, x_t):
            if self._drawing.previews:
                yield event
        return x_t

    def close(self) -> None:
        """Nothing has to be given back."""


class HostRunner:
    """Drawings and conversations with all memory on the host; see `runtime.backends.Runner`."""

    def stages(self, sessions: Mapping[GraphName, Session], drawing: Drawing) -> HostStages:
        """The loops of the host."""
        return HostStages(sessions, drawing)

    def text_row(self, session: Session, model: ModelSpec, precision: Precision, dialect: Dialect) -> HostTextRow:
        """Keys and values in the host's memory."""
        return HostTextRow(session, model, precision, dialect)
