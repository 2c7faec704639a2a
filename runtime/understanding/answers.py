"""Reads texts and images into a row of keys and values (a `TextRow`), and draws answers from it, token by token.

Knows nothing of words and files: token ids and image features in, token ids out. The run that reads a prompt draws the
first token of the answer; every run after that reads the token before and draws the next one. So the last token of an
answer was drawn and not read: who goes on from there reads it first.

Legend: V text vocabulary, F image tokens, d width of the decoder.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.host.stages import unsampled_inputs
from runtime.backends.interface import TextRow
from runtime.options import AnswerPlan
from runtime.signature import MAX_ANSWER


@dataclass(frozen=True, eq=False)
class AnswerStep:
    """A token of an answer was drawn."""

    step: int  # 0 to max_tokens - 1
    token_id: int
    logits: npt.NDArray[np.float32]  # [V] before penalty and temperature


def answer(
    row: TextRow,
    prompt: Sequence[int],
    features: npt.NDArray[Any],
    plan: AnswerPlan,
    fill_noise: Callable[[int, npt.NDArray[np.float32]], None],
    *,
    stop_ids: Collection[int] = (),
    forced: Sequence[int] | None = None,
) -> Iterator[AnswerStep]:
    """Read a prompt and draw the answer to it.

    Args:
        row: What was read before; it takes the prompt and the answer without its last token.
        prompt: At least one id; V + f is image token f.
        features: [F, d] the image tokens.
        plan: How to draw.
        fill_noise: Writes the Gumbel noise of a step into [V].
        stop_ids: Ids that end the answer.
        forced: Tokens to go on with instead of those that are drawn.

    Yields:
        One step per token, the one that ends the answer too.

    Raises:
        RFError: There is no room for the prompt and `plan.max_tokens`.
    """
    vocabulary, width = row.model.vocab_size, row.model.hidden_size
    row.reserve(len(prompt) + plan.max_tokens - 1)
    # Without a penalty nobody looks at what was drawn.
    window = min(plan.max_tokens, MAX_ANSWER) if plan.repetition_penalty != 1 else 1
    inputs = {
        **unsampled_inputs(1, vocabulary, width, row.kv),
        "answer_ids": np.full((1, window), vocabulary, np.int64),
        "temperature": np.array([plan.temperature], np.float32),
        "top_k": np.array([plan.top_k], np.int64),
        "top_p": np.array([plan.top_p], np.float32),
        "repetition_penalty": np.array([plan.repetition_penalty], np.float32),
    }
    next_ids, logits = np.zeros(1, np.int64), np.zeros((1, vocabulary), np.float32)
    outputs = {"next_ids": next_ids, "logits": logits}
    images = {"image_features": np.ascontiguousarray(features, row.kv)} if len(features) else {}
    run, last = row.bind(np.array([prompt], np.int64), {**inputs, **images}, outputs), np.zeros((1, 1), np.int64)
    for step in range(plan.max_tokens):
        if not plan.greedy:
            fill_noise(step, inputs["gumbel"][0])
        if step == 1:
            run = row.bind(last, inputs, outputs)
        run()
        drawn = int(next_ids[0])
        yield AnswerStep(step, drawn, logits[0].copy())
        last[0, 0] = drawn if forced is None else forced[step]
        if last[0, 0] in stop_ids:
            return
        if plan.repetition_penalty != 1:
            inputs["answer_ids"][0, step % window] = last[0, 0]
