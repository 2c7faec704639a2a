"""The three stages of a drawing: read the prompts, draw representation tokens, denoise.

Knows nothing of texts, seeds and files: token ids and noise in, token ids and pixels out. A stage binds its
buffers once; a step writes a few numbers into them, runs the graph and, in the first two stages, finishes the
write of the new cache rows.

Legend: R requests, L layers, H key/value heads, S new tokens, D head size, K representation vocabulary.
Rows 0..R-1 of the cache are conditional, rows R..2R-1 unconditional: these see no text in the
representation stage, and neither text nor representation tokens in the denoiser.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from runtime.backends import Session
from runtime.cache import KVCache
from runtime.events import StepEvent, TokenEvent
from runtime.options import DrawingPlan


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
    if not length:
        return row_starts
    input_ids = np.zeros((len(prompts), length), np.int64)
    for row, ids in enumerate(prompts):
        input_ids[row, row_starts[row] :] = ids
    write = cache.write(len(prompts), length, is_empty=True)
    run = session.bind(
        {
            "input_ids": input_ids,
            "row_starts": row_starts,
            "past_length": np.zeros(1, np.int64),
            **write.inputs,
        },
        write.outputs,
    )
    run()
    write.finish()
    for row, start in enumerate(row_starts):
        cache.hide(row, start)  # what a graph computes for the padding stays out of the cache
    return row_starts


def draw_tokens(
    session: Session,
    plan: DrawingPlan,
    cache: KVCache,
    row_starts: npt.NDArray[np.int64],  # [R] of the conditional rows
    rep_start_id: int,
    fill_noise: Callable[[int, npt.NDArray[np.float32]], None],
    forced: npt.NDArray[np.int64] | None = None,  # [R, N]
) -> Iterator[TokenEvent]:
    """Draw the representation tokens one by one; at its end the last one is in the cache too.

    Args:
        session: The graph rep_decoder.
        plan: How to draw.
        cache: Holds the prompts, and takes the tokens.
        row_starts: From `prefill`.
        rep_start_id: The id that is fed first.
        fill_noise: Writes the Gumbel noise of a step into [R, K].
        forced: Tokens to go on with instead of those that are drawn.

    Yields:
        One event per token.
    """
    num_requests = len(row_starts)
    rep_ids = np.full(num_requests, rep_start_id, np.int64)
    next_rep_ids = np.zeros(num_requests, np.int64)
    logits = np.zeros((num_requests, _vocabulary(session)), np.float32)
    positions = np.zeros((num_requests, 2), np.int64)
    past_length = np.zeros(1, np.int64)
    gumbel = np.zeros_like(logits)
    write = cache.write(2 * num_requests, 1)
    run = session.bind(
        {
            "rep_ids": rep_ids,
            "grid_positions": positions,
            "row_starts": np.concatenate([row_starts, np.full_like(row_starts, cache.length)]),
            "past_length": past_length,
            "gumbel": gumbel,
            "guidance_scale": np.full(num_requests, plan.rep_guidance_scale, np.float32),
            "temperature": np.full(num_requests, plan.temperature, np.float32),
            "top_k": np.full(num_requests, plan.top_k, np.int64),
            **write.inputs,
        },
        {"next_rep_ids": next_rep_ids, "logits": logits, **write.outputs},
    )
    num_steps = plan.num_rep_tokens
    for step in range(num_steps + 1):
        if step:
            rep_ids[:] = next_rep_ids if forced is None else forced[:, step - 1]
            positions[:] = divmod(step - 1, plan.grid[1])
        past_length[0] = cache.length
        if step < num_steps and not plan.greedy:
            fill_noise(step, gumbel)
        run()
        write.finish()
        if step < num_steps:  # the last run only fills the cache
            yield TokenEvent(step, num_steps, next_rep_ids.copy(), logits.copy())


def denoise(
    session: Session,
    plan: DrawingPlan,
    cache: KVCache,
    row_starts: npt.NDArray[np.int64],  # [R] of the conditional rows
    times: npt.NDArray[np.float32],  # [num_steps + 1] from 0 to 1
    x_t: npt.NDArray[np.float32],  # [R, 3, height, width] the noise, overwritten
) -> Iterator[StepEvent]:
    """Turn noise into pictures by Euler steps; `x_next` of the last event is the result.

    Args:
        session: The graph denoiser.
        plan: How to draw.
        cache: Holds the prompts and the representation tokens; is only read.
        row_starts: From `prefill`.
        times: From `runtime.schedule.timesteps`.
        x_t: The noise to start from.

    Yields:
        One event per step.
    """
    num_requests = len(row_starts)
    t = np.zeros(num_requests, np.float32)
    t_next = np.zeros(num_requests, np.float32)
    x_next, x_pred = np.empty_like(x_t), np.empty_like(x_t)
    run = session.bind(
        {
            "x_t": x_t,
            "t": t,
            "t_next": t_next,
            "guidance_scale": np.full(num_requests, plan.pix_guidance_scale, np.float32),
            "row_starts": np.concatenate([row_starts, np.full_like(row_starts, cache.length)]),
            "past_length": np.array([cache.length], np.int64),
            **cache.named("past_key_values"),
        },
        {"x_next": x_next, "x_pred": x_pred},
    )
    num_steps = len(times) - 1
    for step in range(num_steps):
        t[:], t_next[:] = times[step], times[step + 1]
        run()
        x_t[:] = x_next
        yield StepEvent(step, num_steps, float(times[step]), float(times[step + 1]), x_next.copy(), x_pred.copy())


def _vocabulary(session: Session) -> int:
    """Size K of the representation vocabulary."""
    size = session.signature.output("logits").shape[1]
    assert isinstance(size, int)
    return size
