"""The three stages of a drawing: read the prompts, draw representation tokens, denoise.

Knows nothing of texts, seeds and files: token ids and noise in, token ids and pixels out. A stage binds its
buffers once; a step writes a few numbers into them, runs the graph and, in the first two stages, finishes the
write of the new cache rows.

Legend: R requests, L layers, H key/value heads, S new tokens, D head size, K representation vocabulary.
Rows 0..R-1 of the cache are conditional, rows R..2R-1 unconditional: these see no text in the
representation stage, and neither text nor representation tokens in the denoiser.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.host.cache import KVCache
from runtime.backends.host.text import HostTextRow
from runtime.backends.interface import DrawingShape, FillNoise, Session, keep_drawn
from runtime.events import StepEvent, TokenEvent
from runtime.options import DrawingPlan
from runtime.signature import GraphName, ModelSpec, TensorSpec, Variant


def prefill(
    session: Session,
    prompts: Sequence[Sequence[int]],  # [R] of any lengths, also 0
    cache: KVCache,
) -> npt.NDArray[np.int64]:
    """Read the prompts into the conditional rows of an empty cache, padded on the left to the longest one.

    Returns:
        [R] the first slot of each prompt; the number of slots in use for an empty one.
    """
    length = max(map(len, prompts))
    row_starts = np.array([length - len(ids) for ids in prompts], np.int64)
    cache.length = 0
    if not length:
        return row_starts
    rows = np.flatnonzero(row_starts < length) if cache.takes_any_rows else np.arange(len(prompts))
    input_ids = np.zeros((len(rows), length), np.int64)
    for line, row in enumerate(rows):
        input_ids[line, row_starts[row] :] = prompts[int(row)]
    write = cache.write(len(rows), length, rows=rows if cache.takes_any_rows else None, is_empty=True)
    run = session.bind(
        {
            "input_ids": input_ids,
            "row_starts": row_starts[rows],
            "past_length": np.zeros(1, np.int64),
            **unsampled_inputs(len(rows), *text_widths(session), cache.values.dtype),
            **write.inputs,
        },
        write.outputs,
    )
    run()
    write.finish()
    for row in rows:
        cache.hide(int(row), int(row_starts[row]))  # what a graph computes for the padding stays out of the cache
    return row_starts


def text_widths(session: Session) -> tuple[int, int]:
    """Size V of the vocabulary and width d of the decoder, as text_decoder tells them."""
    return _width(session.signature.input("gumbel")), _width(session.signature.input("image_features"))


def unsampled_inputs(
    num_rows: int, vocab_size: int, hidden_size: int, kv: npt.DTypeLike
) -> dict[str, npt.NDArray[Any]]:
    """What else text_decoder reads, for a text without images whose next token nobody wants."""
    ones = np.ones(num_rows, np.float32)
    return {
        "image_features": np.zeros((1, hidden_size), kv),
        "answer_ids": np.full((num_rows, 1), vocab_size, np.int64),
        "gumbel": np.zeros((num_rows, vocab_size), np.float32),
        "temperature": ones,
        "top_k": np.ones(num_rows, np.int64),
        "top_p": ones,
        "repetition_penalty": ones,
    }


class TokenStep:
    """One step of the representation stage of R requests, as often as it is called; each has its own plan.

    Attributes:
        gumbel: [R, K] noise of the step, zero at first.
        next_rep_ids: [R] the tokens that a call drew.
        logits: [R, K] guided, before temperature.
    """

    def __init__(
        self,
        session: Session,
        plans: Sequence[DrawingPlan],
        cache: KVCache,
        row_starts: npt.NDArray[np.int64],  # [2R]
    ) -> None:
        self._plans, self._cache = plans, cache
        self.gumbel = np.zeros((len(plans), _width(session.signature.output("logits"))), np.float32)
        self.next_rep_ids = np.zeros(len(plans), np.int64)
        self.logits = np.zeros_like(self.gumbel)
        self._rep_ids = np.zeros(len(plans), np.int64)
        self._positions = np.zeros((len(plans), 2), np.int64)
        self._past_length = np.zeros(1, np.int64)
        self._write = cache.write(2 * len(plans), 1)
        self._run = session.bind(
            {
                "rep_ids": self._rep_ids,
                "grid_positions": self._positions,
                "row_starts": row_starts,
                "past_length": self._past_length,
                "gumbel": self.gumbel,
                "guidance_scale": np.array([plan.rep_guidance_scale for plan in plans], np.float32),
                "temperature": np.array([plan.temperature for plan in plans], np.float32),
                "top_k": np.array([plan.top_k for plan in plans], np.int64),
                **self._write.inputs,
            },
            {"next_rep_ids": self.next_rep_ids, "logits": self.logits, **self._write.outputs},
        )

    def feed(self, request: int, step: int, rep_id: int) -> None:
        """Set the token that a request goes on from: in step 0 the start token, then token step - 1."""
        self._rep_ids[request] = rep_id
        self._positions[request] = divmod(max(step - 1, 0), self._plans[request].grid[1])

    def __call__(self) -> None:
        """Run the graph once; the token is in the cache then."""
        self._past_length[0] = self._cache.length
        self._run()
        self._write.finish()


class PixelStep:
    """One Euler step of R requests, as often as it is called.

    Attributes:
        x_t: [R, 3, height, width] what the step starts from; a call overwrites it by its result.
        t: [R] the time of each request.
        t_next: [R] the time that it steps to.
        x_pred: [R, 3, height, width] the estimate of the finished picture.
    """

    def __init__(
        self,
        session: Session,
        plans: Sequence[DrawingPlan],
        cache: KVCache,
        row_starts: npt.NDArray[np.int64],  # [R] of the conditional rows
        x_t: npt.NDArray[np.float32],
    ) -> None:
        self.x_t = x_t
        self.t = np.zeros(len(plans), np.float32)
        self.t_next = np.zeros(len(plans), np.float32)
        self.x_pred = np.empty_like(x_t)
        self._x_next = np.empty_like(x_t)
        self._run = session.bind(
            {
                "x_t": x_t,
                "t": self.t,
                "t_next": self.t_next,
                "guidance_scale": np.array([plan.pix_guidance_scale for plan in plans], np.float32),
                "row_starts": np.concatenate([row_starts, np.full_like(row_starts, cache.length)]),
                "past_length": np.array([cache.length], np.int64),
                **cache.named("past_key_values"),
            },
            {"x_next": self._x_next, "x_pred": self.x_pred},
        )

    def __call__(self) -> None:
        """Run the graph once."""
        self._run()
        self.x_t[:] = self._x_next


class HostStages:
    """The stages as loops over sessions, with all buffers in the host's memory; see `StageRunner`.

    Attributes:
        cache: Keys and values of all requests.
        row_starts: [R] the first slot of each prompt.
    """

    def __init__(self, sessions: Mapping[GraphName, Session], drawing: DrawingShape) -> None:
        self._sessions, self._drawing = sessions, drawing
        num_rows = 2 * drawing.num_requests
        self.cache = KVCache(drawing.model, drawing.variant, num_rows, drawing.num_slots)
        self.row_starts = np.zeros(drawing.num_requests, np.int64)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read the prompts."""
        self.row_starts = prefill(self._sessions["text_decoder"], prompts, self.cache)

    def draw_tokens(
        self, plan: DrawingPlan, fill_noise: FillNoise, forced: npt.NDArray[np.int64] | None
    ) -> Generator[TokenEvent, None, npt.NDArray[np.int64]]:
        """Draw the representation tokens; again from the prompt, where it is repeated."""
        self.cache.length = self._drawing.prompt_length
        num_requests, num_steps = len(self.row_starts), plan.num_rep_tokens
        starts = np.concatenate([self.row_starts, np.full_like(self.row_starts, self.cache.length)])
        run = TokenStep(self._sessions["rep_decoder"], [plan] * num_requests, self.cache, starts)
        last = np.full(num_requests, self._drawing.model.rep_start_id, np.int64)
        tokens = []
        for step in range(num_steps + 1):
            for request, rep_id in enumerate(last):
                run.feed(request, step, int(rep_id))
            if step < num_steps and not plan.greedy:
                fill_noise(step, run.gumbel)
            run()
            if step == num_steps:  # that run only filled the cache
                break
            last = keep_drawn(run.next_rep_ids, None if forced is None else forced[:, step])
            tokens.append(run.next_rep_ids.copy())
            if self._drawing.previews:
                yield TokenEvent(step, num_steps, tokens[-1], run.logits.copy())
        return np.stack(tokens, axis=1)

    def denoise(
        self, plan: DrawingPlan, times: npt.NDArray[np.float32], x_t: npt.NDArray[np.float32]
    ) -> Generator[StepEvent, None, npt.NDArray[np.float32]]:
        """Turn noise into pictures; the noise is overwritten."""
        num_requests, num_steps = len(self.row_starts), len(times) - 1
        run = PixelStep(self._sessions["denoiser"], [plan] * num_requests, self.cache, self.row_starts, x_t)
        for step in range(num_steps):
            run.t[:], run.t_next[:] = times[step], times[step + 1]
            run()
            if self._drawing.previews:
                t, t_next = float(times[step]), float(times[step + 1])
                yield StepEvent(step, num_steps, t, t_next, x_t.copy(), run.x_pred.copy())
        return x_t

    def close(self) -> None:
        """Nothing has to be given back."""


class HostRunner:
    """Drawings and conversations with all memory on the host; see `runtime.backends.interface.Runner`."""

    def stages(self, sessions: Mapping[GraphName, Session], drawing: DrawingShape) -> HostStages:
        """The loops of the host."""
        return HostStages(sessions, drawing)

    def text_row(self, session: Session, model: ModelSpec, variant: Variant) -> HostTextRow:
        """Keys and values in the host's memory."""
        return HostTextRow(session, model, variant)


def _width(spec: TensorSpec) -> int:
    """Size of the last axis."""
    size = spec.shape[-1]
    assert isinstance(size, int)
    return size
