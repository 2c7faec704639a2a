"""Whether a token is one that the options draw from given logits. Knows nothing of models, and draws nothing.

Legend: V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


def is_drawn(
    token: int, logits: Floats, gumbel: Floats | None, temperature: float, top_k: int, top_p: float = 1.0
) -> bool:
    """Whether a token is the Gumbel-max draw from the nucleus of the top k, up to a rounding difference: `[V]`, `[V]`.

    Without noise: whether it is the largest one.
    """
    scaled = logits.astype(np.float64) / temperature
    if not np.isfinite(scaled).all():
        return False
    tolerance = 1e-5 * max(1.0, float(np.abs(scaled).max()))
    best = np.sort(scaled)[::-1][: top_k if gumbel is not None else 1]
    shares = np.exp(best - best[0])
    shares /= shares.sum()
    before = np.concatenate([[0.0], np.cumsum(shares)[:-1]])

    def threshold(limit: float) -> float:
        kept = int((before < limit).sum()) if top_p < 1 else len(best)
        return float(best[max(1, kept) - 1])

    noisy = scaled if gumbel is None else scaled + gumbel
    surely_in = scaled >= threshold(top_p - 1e-5) + tolerance
    winner = noisy[surely_in].max() if surely_in.any() else -np.inf
    return bool(scaled[token] >= threshold(top_p + 1e-5) - tolerance and noisy[token] >= winner - tolerance)


def penalised(logits: Floats, answer_ids: Sequence[int], penalty: float) -> Floats:
    """What an answer has already is made less likely (CTRL, arXiv 1909.05858, section 4.1): `[V]`."""
    changed = logits.astype(np.float64)
    for token in set(answer_ids):
        changed[token] = changed[token] / penalty if changed[token] > 0 else changed[token] * penalty
    return changed
