"""Parity of the understanding path: do exported graphs, driven by the runtime, answer as eager PyTorch does?

The reference is `rf_export.eager.answer`, with its own loop, cache and sampling. Two images of different size and a
question are read at once; then tokens are drawn greedily, and once more with every option of sampling. Words mean
nothing here: ids are random. Axes: F image tokens, V text vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rf_export.eager import EagerAnswer, EagerQuestion, sample_text
from rf_export.eager import answer as eager_answer
from rf_export.model import RFModel
from runtime import noise
from runtime.answers import AnswerStep, TextRow, answer
from runtime.backends import Session
from runtime.options import AnswerPlan
from runtime.signature import Dialect, GraphName, ModelSpec, Precision

QUESTION_TOKENS = 4
ANSWER_TOKENS = 12
SAMPLED = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3}


@dataclass(frozen=True)
class UnderstandingParity:
    """Agreement with eager PyTorch, worst case over a greedy answer and a sampled one."""

    features_cosine: float
    logits_cosine: float
    num_tokens: int
    tokens_equal: int  # same history, same noise
    tokens_unexplained: int  # a greedy one whose lead exceeds twice the error, or one that its own logits do not give


def compare_understanding(
    model: RFModel,
    sessions: Mapping[GraphName, Session],
    spec: ModelSpec,
    precision: Precision,
    dialect: Dialect,
    seed: int,
) -> UnderstandingParity:
    """Answer both ways and measure."""
    rng = np.random.default_rng(seed)
    config = model.config
    sizes = ((config.cell, config.cell), (min(config.default_height, 8 * config.cell), config.default_width))
    images = [torch.from_numpy(rng.uniform(-1, 1, (3, *size)).astype(np.float32)) for size in sizes]
    ids = torch.from_numpy(rng.integers(0, config.vocab_size, QUESTION_TOKENS))
    features = encode(sessions["vision_encoder"], images)
    fixed = sessions["text_decoder"].signature.cache_slots
    num_tokens = min(ANSWER_TOKENS, (fixed or config.max_positions) + 1 - len(features) - len(ids))
    gumbel = np.stack([noise.gumbel(seed, n, config.vocab_size, noise.TEXT_STAGE) for n in range(num_tokens)])
    top_k = min(20, spec.max_text_top_k)
    greedy = EagerQuestion(images=images, ids=ids, max_tokens=num_tokens)
    sampled = EagerQuestion(images=images, ids=ids, max_tokens=num_tokens, gumbel=torch.from_numpy(gumbel),
                            **{**SAMPLED, "top_k": top_k})  # type: ignore[arg-type] # fmt: skip
    figures = []
    for question in (greedy, sampled):
        expected = eager_answer(model, question)
        row = TextRow(sessions["text_decoder"], spec, precision, dialect)
        figures.append(_measure(expected, _answer_by_graphs(row, question, features, expected.ids), question))
    return UnderstandingParity(
        features_cosine=worst_cosine(features.astype(np.float32), expected.features.numpy()),
        logits_cosine=min(each[0] for each in figures),
        num_tokens=2 * num_tokens,
        tokens_equal=sum(each[1] for each in figures),
        tokens_unexplained=sum(each[2] for each in figures),
    )


def encode(session: Session, images: list[Tensor]) -> NDArray[np.floating]:
    """The image tokens of pictures `[3, H, W]` one after the other, `[F, d]`."""
    return np.concatenate([session.run({"pixels": pixels.numpy()[None]})["image_features"][0] for pixels in images])


def _answer_by_graphs(
    row: TextRow, question: EagerQuestion, features: NDArray[np.floating], forced: list[int]
) -> list[AnswerStep]:
    greedy = question.gumbel is None
    plan = AnswerPlan(
        max_tokens=question.max_tokens, temperature=1.0 if greedy else question.temperature,
        top_k=1 if greedy else question.top_k, top_p=question.top_p,
        repetition_penalty=question.repetition_penalty, greedy=greedy,
    )  # fmt: skip

    def fill_noise(step: int, out: NDArray[np.float32]) -> None:
        assert question.gumbel is not None
        out[:] = question.gumbel[step].numpy()

    prompt = [*range(row.model.vocab_size, row.model.vocab_size + len(features)), *question.ids.tolist()]
    return list(answer(row, prompt, features, plan, fill_noise, forced=forced))


def _measure(expected: EagerAnswer, steps: list[AnswerStep], question: EagerQuestion) -> tuple[float, int, int]:
    """Worst cosine of logits, tokens equal, tokens that rounding does not explain."""
    logits = torch.stack(expected.logits).numpy()
    equal = unexplained = 0
    for n, (step, reference) in enumerate(zip(steps, logits, strict=True)):
        equal += step.token_id == expected.ids[n]
        if question.gumbel is not None:
            own = sample_text(torch.from_numpy(step.logits), expected.ids[:n], question.gumbel[n], question)
            unexplained += step.token_id != own
        elif step.token_id != expected.ids[n]:
            first, second = np.sort(reference)[::-1][:2]
            unexplained += bool(first - second > 2 * np.abs(step.logits - reference).max())
    return worst_cosine(np.stack([step.logits for step in steps]), logits), equal, unexplained


def worst_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Smallest cosine over the last axis, in float64; -1 where a value is not finite."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    cosine = (a64 * b64).sum(-1) / (np.linalg.norm(a64, axis=-1) * np.linalg.norm(b64, axis=-1))
    return float(cosine.min()) if np.isfinite(cosine).all() else -1.0
