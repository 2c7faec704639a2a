"""The three stages of a drawing: read the prompts, draw representation tokens, denoise.

Knows nothing of texts, seeds and files: token ids and noise in, token ids and pixels out. A stage binds its
buffers once; a run writes a few numbers into them, runs the graph and, in the first two stages, keeps the new rows of
the cache. Prompts are padded on the right and every row starts at slot 0: what a request is computed from does not
depend on the others.

Legend: R requests, W tokens of a window, K representation vocabulary.
Rows 0 to R - 1 of the cache are those of the requests, with their text. Behind them are the unconditional rows of those
that are guided: they see no text in the representation stage; in the denoiser they see neither text nor
representation tokens, and have no cache.
"""

import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.host.cache import KVCache
from runtime.backends.host.text import HostTextRow
from runtime.backends.interface import DrawingShape, FillNoise, Session
from runtime.backends.windows import TokenWindow
from runtime.events import StepEvent, TokenEvent
from runtime.options import DrawingPlan
from runtime.signature import GraphName, ModelSpec, TensorSpec, Variant


def prefill(session: Session, prompts: Sequence[Sequence[int]], cache: KVCache) -> None:
    """Read the prompts, [R] of any lengths, also 0, into the first rows of an empty cache."""
    length = max(map(len, prompts))
    cache.lengths[:] = 0
    if not length:
        return
    rows = [row for row, ids in enumerate(prompts) if len(ids)] if cache.takes_any_rows else list(range(len(prompts)))
    input_ids = np.zeros((len(rows), length), np.int64)
    for line, row in enumerate(rows):
        input_ids[line, : len(prompts[row])] = prompts[row]
    write = cache.write(len(rows), length, is_empty=True)
    zeros = np.zeros(len(rows), np.int64)
    run = session.bind(
        {
            "input_ids": input_ids,
            "row_starts": zeros,
            "past_lengths": zeros,
            **unsampled_inputs(len(rows), *text_widths(session), cache.values.dtype),
            **write.inputs,
        },
        write.outputs,
    )
    run()
    for line, row in enumerate(rows):
        cache.keep(write, line, row, slice(0, len(prompts[row])), 0)
        if write.new is None:  # what the graph computed for the padding
            cache.forget(row, len(prompts[row]))


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


def rows_of(guided: Sequence[bool]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`row_requests` and `uncond_rows` of R requests: their own rows, then an unconditional one for each guided one."""
    requests = np.arange(len(guided))
    row_requests = np.concatenate([requests, np.flatnonzero(guided)])
    uncond_rows = requests.copy()
    uncond_rows[row_requests[len(guided) :]] = np.arange(len(guided), len(row_requests))
    return row_requests, uncond_rows


@dataclass(eq=False)
class TokenRow:
    """A request while its representation tokens are drawn.

    Attributes:
        plan: How.
        window: What is known of its tokens.
        text_length: Slots of its text, which come first.
        guided: Whether it has an unconditional row in the cache.
        fill_noise: Writes the Gumbel noise of a token into [K].
    """

    plan: DrawingPlan
    window: TokenWindow
    text_length: int
    guided: bool
    fill_noise: Callable[[int, npt.NDArray[np.float32]], None]


class TokenPass:
    """Passes of the representation stage over windows of R requests, of one size, each with its own plan and place.

    Attributes:
        logits: [R, W, K] guided, before temperature, of the windows that a call fed.
    """

    def __init__(self, session: Session, requests: Sequence[TokenRow], cache: KVCache) -> None:
        self._requests, self._cache = requests, cache
        (size,) = {request.window.size for request in requests}
        self._rows, uncond_rows = rows_of([request.guided for request in requests])
        self._guided = {int(row): line for line, row in enumerate(self._rows[len(requests) :], len(requests))}
        self._gumbel = np.zeros((len(requests), size, _width(session.signature.output("logits"))), np.float32)
        self._noise_from = [-size] * len(requests)  # the position of the first noise
        self._next_rep_ids = np.zeros((len(requests), size), np.int64)
        self.logits = np.zeros_like(self._gumbel)
        self._rep_ids = np.zeros((len(requests), size), np.int64)
        self._positions = np.zeros((len(requests), size, 2), np.int64)
        self._past_lengths = np.zeros(len(self._rows), np.int64)
        self._write = cache.write(len(self._rows), size)
        plans = [request.plan for request in requests]
        self._run = session.bind(
            {
                "rep_ids": self._rep_ids,
                "grid_positions": self._positions,
                "row_requests": self._rows,
                "uncond_rows": uncond_rows,
                "row_starts": np.zeros(len(self._rows), np.int64),
                "past_lengths": self._past_lengths,
                "gumbel": self._gumbel,
                "guidance_scale": np.array([plan.rep_guidance_scale for plan in plans], np.float32),
                "temperature": np.array([plan.temperature for plan in plans], np.float32),
                "top_k": np.array([plan.top_k for plan in plans], np.int64),
                **self._write.inputs,
            },
            {"next_rep_ids": self._next_rep_ids, "logits": self.logits, **self._write.outputs},
        )

    def __call__(self) -> list[range]:
        """Run the graph once, and keep what is right.

        Returns:
            The tokens that each request knows now and did not before.
        """
        starts = [request.window.start for request in self._requests]
        for line, request in enumerate(self._requests):
            request.window.fill(self._rep_ids[line], self._positions[line])
            self._fill_noise(line, request)
            self._past_lengths[line] = request.text_length + starts[line]
            if line in self._guided:
                self._past_lengths[self._guided[line]] = starts[line]
        self._run()
        return [self._settle(line, start) for line, start in enumerate(starts)]

    def _settle(self, line: int, start: int) -> range:
        request = self._requests[line]
        before = request.window.num_known
        first, end = request.window.settle(self._next_rep_ids[line])
        tokens = slice(first - start, end - start)
        self._cache.keep(self._write, line, line, tokens, request.text_length + first)
        if line in self._guided:
            self._cache.keep(self._write, self._guided[line], self._guided[line], tokens, first)
        return range(before, request.window.num_known)

    def _fill_noise(self, line: int, request: TokenRow) -> None:
        """Noise belongs to a token: what a window has in common with the last one is moved, the rest is made."""
        window, noise = request.window, self._gumbel[line]
        if request.plan.greedy:
            return
        moved = window.start - self._noise_from[line]
        if moved < window.size:
            noise[: window.size - moved] = noise[moved:]
        for place in range(max(window.size - moved, 0), window.size):
            if window.start + place < window.num_tokens:
                request.fill_noise(window.start + place, noise[place])
        self._noise_from[line] = window.start


class PixelStep:
    """One Euler step of R requests, as often as it is called.

    Attributes:
        x_t: [R, 3, height, width] what the step starts from; a call overwrites it by its result.
        t: [R] the time of each request.
        t_next: [R] the time that it steps to.
        x_pred: [R, 3, height, width] the estimate of the finished picture.
    """

    def __init__(
        self, session: Session, plans: Sequence[DrawingPlan], cache: KVCache, x_t: npt.NDArray[np.float32]
    ) -> None:
        """`cache` has the prefixes of the requests in its first rows."""
        self._session, self._cache, self._plans = session, cache, plans
        self.x_t = x_t
        self.t = np.zeros(len(plans), np.float32)
        self.t_next = np.zeros(len(plans), np.float32)
        self.x_pred = np.empty_like(x_t)
        self._x_next = np.empty_like(x_t)
        self._runs: dict[tuple[bool, ...], Callable[[], None]] = {}

    def __call__(self) -> None:
        """Run the graph once; those that are guided at their time have an unconditional row."""
        guided = tuple(plan.is_guided(float(t)) for plan, t in zip(self._plans, self.t, strict=True))
        if guided not in self._runs:
            self._runs[guided] = self._bind(guided)
        self._runs[guided]()
        self.x_t[:] = self._x_next

    def _bind(self, guided: tuple[bool, ...]) -> Callable[[], None]:
        row_requests, uncond_rows = rows_of(guided)
        num_requests = len(guided)
        return self._session.bind(
            {
                "x_t": self.x_t,
                "t": self.t,
                "t_next": self.t_next,
                "guidance_scale": np.array([plan.pix_guidance_scale for plan in self._plans], np.float32),
                "row_requests": row_requests,
                "uncond_rows": uncond_rows,
                "row_starts": np.zeros(num_requests, np.int64),
                "past_lengths": self._cache.lengths[:num_requests].copy(),
                **self._cache.read(num_requests),
            },
            {"x_next": self._x_next, "x_pred": self.x_pred},
        )


class HostStages:
    """The stages as loops over sessions, with all buffers in the host's memory; see `StageRunner`.

    Attributes:
        cache: Keys and values of all requests; unconditional rows behind the others.
        num_passes: Runs of rep_decoder that the tokens took.
    """

    def __init__(self, sessions: Mapping[GraphName, Session], drawing: DrawingShape) -> None:
        self._sessions, self._drawing = sessions, drawing
        self.cache = KVCache(drawing.model, drawing.variant, 2 * drawing.num_requests, drawing.num_slots)
        self._text_lengths: list[int] = []
        self.num_passes = 0

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read the prompts."""
        prefill(self._sessions["text_decoder"], prompts, self.cache)
        self._text_lengths = [len(ids) for ids in prompts]

    def draw_tokens(
        self, plan: DrawingPlan, fill_noise: FillNoise, forced: npt.NDArray[np.int64] | None
    ) -> Generator[TokenEvent, None, npt.NDArray[np.int64]]:
        """Draw the representation tokens; again from the prompt, where it is repeated."""
        previews = self._drawing.previews
        guided = plan.guides_tokens
        rows = []
        for line, length in enumerate(self._text_lengths):
            given = None if forced is None else forced[line]
            window = TokenWindow(plan.grid, self._drawing.model.rep_start_id, plan.window, given)
            rows.append(TokenRow(plan, window, length, guided, functools.partial(fill_noise, line)))
        run = TokenPass(self._sessions["rep_decoder"], rows, self.cache)
        logits = TokenLogits(plan.num_rep_tokens, len(rows)) if previews else None
        while not all(row.window.ended for row in rows):
            if guided and not any(row.window.draws for row in rows):  # nothing is left to guide
                guided = False
                rows = [replace(row, guided=False) for row in rows]
                run = TokenPass(self._sessions["rep_decoder"], rows, self.cache)
            starts = [row.window.start for row in rows]
            known = run()
            self.num_passes += 1
            if logits is not None:
                logits.add(starts, known, run.logits)
                for step in logits.complete():
                    drawn = np.array([row.window.drawn[step] for row in rows])
                    yield TokenEvent(step, plan.num_rep_tokens, drawn, logits.take(step))
        return np.stack([row.window.drawn for row in rows])

    def denoise(
        self, plan: DrawingPlan, times: npt.NDArray[np.float32], x_t: npt.NDArray[np.float32]
    ) -> Generator[StepEvent, None, npt.NDArray[np.float32]]:
        """Turn noise into pictures; the noise is overwritten."""
        num_steps = len(times) - 1
        run = PixelStep(self._sessions["denoiser"], [plan] * len(x_t), self.cache, x_t)
        for step in range(num_steps):
            run.t[:], run.t_next[:] = times[step], times[step + 1]
            run()
            if self._drawing.previews:
                t, t_next = float(times[step]), float(times[step + 1])
                yield StepEvent(step, num_steps, t, t_next, x_t.copy(), run.x_pred.copy())
        return x_t

    def close(self) -> None:
        """Nothing has to be given back."""


class TokenLogits:
    """Logits of tokens that some requests know before others, until all do."""

    def __init__(self, num_tokens: int, num_requests: int) -> None:
        self._found: list[list[npt.NDArray[np.float32] | None]] = [[None] * num_requests for _ in range(num_tokens)]
        self._next = 0

    def add(self, starts: Sequence[int], known: Sequence[range], logits: npt.NDArray[np.float32]) -> None:
        """Keep those of the tokens that a pass settled: `logits` [R, W, K] of windows from `starts` on."""
        for request, (start, tokens) in enumerate(zip(starts, known, strict=True)):
            for token in tokens:
                self._found[token][request] = logits[request, token - start].copy()

    def complete(self) -> Iterator[int]:
        """The tokens that all requests know now, and did not before."""
        while self._next < len(self._found) and all(row is not None for row in self._found[self._next]):
            self._next += 1
            yield self._next - 1

    def take(self, token: int) -> npt.NDArray[np.float32]:
        """[R, K]; they are dropped here."""
        rows, self._found[token] = self._found[token], []
        return np.stack([row for row in rows if row is not None])


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
