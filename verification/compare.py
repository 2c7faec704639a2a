"""Holds what a candidate put out against a reference, and tells a tally.

A candidate goes on from the reference's tokens, so that every step is compared after the same history; whether it would
have chosen such a token itself is judged by its own logits (`is_drawn`). Knows nothing of who draws.
Legend: R requests, N representation tokens, L layers, P slots of the cache, H key/value heads, D head size.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from runtime import noise
from runtime.events import TokenEvent
from runtime.options import DrawingPlan
from runtime.signature import GraphName, Precision, kv_names
from verification.cases import GUIDED, UNGUIDED, AnswerCase, DrawCase
from verification.limits import Limits, limits_of
from verification.measures.metrics import relative_error
from verification.measures.sampling import is_drawn, penalised
from verification.tally import Tally, Where
from verification.traces import Answer, Drawing, Floats

_NO_EFFECT: Final = 1e-5  # of guidance, relative; below, a model follows no prompt
_TIME_ERROR: Final = 1e-6
_NOT_DRAWN: Final = "token {} is not what the options draw from the logits"


def compare_drawing(
    tally: Tally,
    precision: Precision,
    case: DrawCase,
    plan: DrawingPlan,
    found: Sequence[Drawing],
    expected: Sequence[Drawing],
) -> None:
    """Compare the requests of a case: both sides, [R] each."""
    tally.num_cases += 1
    limits = limits_of(precision, case)
    for request, (ours, right) in enumerate(zip(found, expected, strict=True)):
        _compare_caches(tally, limits, case, request, ours, right)
        _compare_tokens(tally, limits, case, request, plan, ours, right)
        _compare_steps(tally, limits, case.name, request, ours, right)


def compare_answer(tally: Tally, precision: Precision, case: AnswerCase, found: Answer, expected: Answer) -> None:
    """Compare an answer."""
    tally.num_cases += 1
    limits = limits_of(precision)
    where: Where = ("vision_encoder", case.name, 0)
    for number, part in enumerate(_parts(case, len(expected.features))):
        sides = found.features[part][None], expected.features[part][None]
        tally.tensor(where, "image_features", *sides, limits.cosine, limits.norm, number)
    where = ("text_decoder", case.name, 0)
    if not tally.same_length(where, "next_ids", len(found.ids), len(expected.ids), "tokens"):
        return
    tally.tensor(where, "logits", found.logits, expected.logits, limits.cosine, limits.norm)
    tally.answer_tokens += len(expected.ids)
    tally.answer_tokens_equal += sum(a == b for a, b in zip(found.ids, expected.ids, strict=True))
    if found.logits.shape != expected.logits.shape:
        return
    plan = case.plan()
    for step, token in enumerate(found.ids):
        logits = penalised(found.logits[step], expected.ids[:step], case.repetition_penalty)
        gumbel = None if plan.greedy else case.gumbel(step, len(logits))
        if not is_drawn(token, logits, gumbel, plan.temperature, plan.top_k, plan.top_p):
            tally.fail(where, "next_ids", step, _NOT_DRAWN.format(token))


def compare_windows(
    tally: Tally,
    case: DrawCase,
    plan: DrawingPlan,
    one_by_one: Sequence[TokenEvent],
    windowed: Sequence[TokenEvent],
    *,
    is_exact: bool,
) -> None:
    """Compare what windows draw with what the same graphs draw one by one, each after its own tokens.

    A near tie may fall either way where sums are taken in another order, and all tokens after it with it. Where the
    graphs are exact, it has to be one.
    """
    right, ours = (np.stack([event.rep_ids for event in side], axis=1) for side in (one_by_one, windowed))
    tally.windowed_tokens += right.size
    tally.windowed_tokens_equal += int((right == ours).sum())
    for request in np.flatnonzero((right != ours).any(axis=1)).tolist() if is_exact else ():
        step = int((right[request] != ours[request]).argmax())
        logits = one_by_one[step].logits[request]
        gumbel = None if plan.greedy else noise.gumbel(case.seed + request, step, len(logits))
        if not is_drawn(int(ours[request, step]), logits, gumbel, plan.temperature, plan.top_k):
            what = f"token {ours[request, step]} in windows, {right[request, step]} one by one, which is no near tie"
            tally.fail(("rep_decoder", case.name, request), "next_rep_ids", step, what)


def compare_guidance(tally: Tally, found: Mapping[str, Drawing], expected: Mapping[str, Drawing]) -> None:
    """Compare what guidance changes, from one request of two cases, with and without."""
    if not {GUIDED, UNGUIDED} <= found.keys() or not all(len(each.x_preds) for each in found.values()):
        return
    parts: tuple[tuple[GraphName, str], ...] = (("rep_decoder", "logits"), ("denoiser", "x_preds"))
    for graph, part in parts:
        right, ours = (
            relative_error(*(getattr(side[case], part)[0] for case in (GUIDED, UNGUIDED))) for side in (expected, found)
        )
        tally.guidance[graph] = (right, ours)
        if right > _NO_EFFECT and not 0.5 <= ours / right <= 2:
            what = f"{ours:.3g} of the norm, expected {right:.3g}"
            tally.fail((graph, GUIDED, 0), "guidance effect", 0, what)


def _parts(case: AnswerCase, num_features: int) -> Iterator[slice]:
    """Where the features of each picture lie."""
    pixels = [height * width for height, width in case.sizes]
    first = 0
    for each in pixels:
        end = first + num_features * each // sum(pixels)
        yield slice(first, end)
        first = end


def _compare_caches(
    tally: Tally, limits: Limits, case: DrawCase, request: int, found: Drawing, expected: Drawing
) -> None:
    """Keys and values of the text, of each token, and of each token without the text."""
    if found.cache is None or expected.cache is None:
        return
    if found.cache.shape != expected.cache.shape:
        what = f"{found.cache.shape[2]} tokens, expected {expected.cache.shape[2]}"
        tally.fail(("rep_decoder", case.name, request), "cache", 0, what)
        return
    text_length = len(case.prompts[request])
    sides = _by_token(found.cache), _by_token(expected.cache)
    parts: list[tuple[GraphName, list[Floats]]] = [("rep_decoder", [side[text_length:] for side in sides])]
    if text_length:
        parts.insert(0, ("text_decoder", [side[:text_length] for side in sides]))
    if found.uncond_cache is not None and expected.uncond_cache is not None:
        num_tokens = len(expected.rep_ids)  # the last one is in that row by chance, since nobody reads it there
        without = [_by_token(side.uncond_cache)[:num_tokens] for side in (found, expected)]
        parts.append(("rep_decoder", without))
    for graph, (ours, right) in parts:
        for layer, name in enumerate(kv_names("present", expected.cache.shape[0] // 2)):
            tally.tensor(
                (graph, case.name, request), name, ours[:, layer], right[:, layer], limits.cache_cosine, limits.norm
            )


def _by_token(cache: Floats | None) -> Floats:
    """`[2 L, H, P, D] -> [P, 2 L, H * D]`."""
    assert cache is not None
    slots, layers = cache.shape[2], cache.shape[0]
    return np.moveaxis(cache, (2, 0), (0, 1)).reshape(slots, layers, -1)


def _compare_tokens(
    tally: Tally, limits: Limits, case: DrawCase, request: int, plan: DrawingPlan, found: Drawing, expected: Drawing
) -> None:
    where: Where = ("rep_decoder", case.name, request)
    if not tally.same_length(where, "next_rep_ids", len(found.rep_ids), len(expected.rep_ids), "tokens"):
        return
    cosines = tally.tensor(where, "logits", found.logits, expected.logits, limits.cosine, limits.norm)
    if case.name == GUIDED:
        tally.curve("rep_decoder logits", cosines)
    tally.rep_tokens += expected.rep_ids.size
    tally.rep_tokens_equal += int((found.rep_ids == expected.rep_ids).sum())
    if found.logits.shape != expected.logits.shape:
        return
    for step, token in enumerate(found.rep_ids.tolist()):
        logits = found.logits[step]
        gumbel = None if plan.greedy else noise.gumbel(case.seed + request, step, len(logits))
        if not is_drawn(token, logits, gumbel, plan.temperature, plan.top_k):
            tally.fail(where, "next_rep_ids", step, _NOT_DRAWN.format(token))


def _compare_steps(tally: Tally, limits: Limits, case: str, request: int, found: Drawing, expected: Drawing) -> None:
    where: Where = ("denoiser", case, request)
    num_steps = len(expected.x_preds)
    if not tally.same_length(where, "steps", len(found.x_preds), num_steps, "steps"):
        return
    error = np.abs(found.times - expected.times)
    if not error.max() <= _TIME_ERROR:
        wrong = int((error > _TIME_ERROR).argmax())
        what = f"steps to time {found.times[wrong]:.6f}, expected {expected.times[wrong]:.6f}"
        tally.fail(where, "t_next", max(0, wrong - 1), what)
    tally.denoising_steps = max(tally.denoising_steps, num_steps)
    for name in ("x_pred", "x_next"):
        ours, right = (getattr(side, f"{name}s").reshape(num_steps, -1) for side in (found, expected))
        cosines = tally.tensor(where, name, ours, right, limits.cosine, limits.norm)
        if case == GUIDED:
            tally.curve(f"denoiser {name}", cosines)
    tally.picture(where, num_steps - 1, found.pixels, expected.pixels, limits.psnr_db)
