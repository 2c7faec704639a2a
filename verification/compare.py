"""Holds what a subject put out against a reference: figures of every tensor, and what misses a limit.

A subject goes on from the reference's tokens, so that every step is compared after the same history; whether it would
have chosen such a token itself is judged by its own logits (`is_drawn`). Knows nothing of who draws.
Legend: R requests, N representation tokens, T prompt tokens, L layers, P slots of the cache.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime import noise
from runtime.options import DrawingPlan
from runtime.signature import GraphName, Precision, kv_names
from verification.cases import GUIDED, UNGUIDED, AnswerCase, DrawCase
from verification.measures.metrics import psnr_db
from verification.traces import Answer, Drawing, Floats

ORDER: Final[tuple[GraphName, ...]] = ("vision_encoder", "text_decoder", "rep_decoder", "denoiser")
MAX_FAILURES: Final = 50
NUM_PICTURES: Final = 3
_NOTHING: Final = 1e-12
_NO_EFFECT: Final = 1e-5  # of guidance, relative; below, a model follows no prompt


@dataclass(frozen=True)
class Limits:
    """What is demanded of a precision, and why it is no tighter.

    fp32 differs by the order of sums only; fp16 rounds every tensor to 11 bits, which guidance and 25 Euler steps
    amplify: a random model with a guidance of 4 was seen at 0.99998.
    INT8 rounds weights, and inputs too, to 8 bits: its quality is judged by the calibration's gate, on prompts that
    mean something, and here it only has to be the same model. Ranges are calibrated on pictures of the default size;
    of others, less is demanded.
    """

    cosine: float  # of logits, x_pred and image features, worst step
    cache_cosine: float  # of one token's keys or values in a layer: few numbers, before any averaging
    norm: float  # how far the ratio of two norms may be from 1: a cosine sees no wrong scale
    psnr_db: float  # of the picture, from the same tokens


LIMITS: Final[dict[Precision, Limits]] = {
    "fp32": Limits(cosine=0.999999, cache_cosine=0.99999, norm=1e-3, psnr_db=60.0),
    "fp16": Limits(cosine=0.9999, cache_cosine=0.9999, norm=1e-2, psnr_db=40.0),
    "int8": Limits(cosine=0.98, cache_cosine=0.99, norm=0.1, psnr_db=15.0),
    "int8-fp16": Limits(cosine=0.98, cache_cosine=0.99, norm=0.1, psnr_db=15.0),
}
_INT8_OTHER_SIZES: Final = Limits(cosine=0.9, cache_cosine=0.98, norm=0.2, psnr_db=10.0)


def limits_of(precision: Precision, case: DrawCase | None = None) -> Limits:
    """The limits of a precision, in a case."""
    other = case is not None and (case.options.height, case.options.width) != (None, None)
    return _INT8_OTHER_SIZES if other and precision in ("int8", "int8-fp16") else LIMITS[precision]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something that is not as it has to be."""

    graph: GraphName
    tensor: str
    case: str
    request: int
    step: int  # of the stage; for the cache, the token whose keys and values these are
    what: str  # such as "cosine 0.912, expected at least 0.99999"

    def __str__(self) -> str:
        return f"{self.graph} {self.tensor}: {self.what} (step {self.step}, case {self.case!r}, request {self.request})"

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller is nearer to the cause: graphs feed those after them, steps those after them."""
        return ORDER.index(self.graph), self.step


@dataclass
class Figures:
    """Agreement of one tensor over all cases."""

    cosine: float = 1.0  # the smallest
    step: int = 0  # where that is
    case: str = ""
    norm_ratio: float = 1.0  # the one furthest from 1
    max_abs_error: float = 0.0


@dataclass(frozen=True, eq=False)
class WorstPicture:
    """A pair of pictures that agree less than others."""

    case: str
    request: int
    psnr_db: float
    found: Floats  # [3, H, W]
    expected: Floats


Where: TypeAlias = tuple[GraphName, str, int]  # graph, case, request


@dataclass
class Comparison:
    """What was found out about one subject.

    Attributes:
        precision: Of the subject; limits depend on it.
        figures: By graph and tensor.
        curves: Per tensor the worst cosine of every step of the case that is drawn with all defaults.
        guidance: Per graph how much guidance changes, of the reference and of the subject.
    """

    precision: Precision
    figures: dict[GraphName, dict[str, Figures]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    pictures: list[WorstPicture] = field(default_factory=list)
    guidance: dict[GraphName, tuple[float, float]] = field(default_factory=dict)
    rep_tokens: int = 0
    rep_tokens_equal: int = 0
    answer_tokens: int = 0
    answer_tokens_equal: int = 0
    denoising_steps: int = 0
    picture_psnr_db: float = math.inf
    num_cases: int = 0
    _limits: Limits = field(init=False)
    range_checked: bool = False  # of fp16 graphs: no tensor inside leaves the range of float16

    def __post_init__(self) -> None:
        self._limits = limits_of(self.precision)

    @property
    def first(self) -> Failure | None:
        """The failure that is nearest to the cause."""
        return min(self.failures, key=lambda failure: failure.rank) if self.failures else None

    def drawing(
        self, case: DrawCase, plans: Sequence[DrawingPlan], found: Sequence[Drawing], expected: Sequence[Drawing]
    ) -> None:
        """Compare the requests of a case: both sides, [R] each; the plans are those of the reference."""
        self.num_cases += 1
        self._limits = limits_of(self.precision, case)
        for request, (ours, right) in enumerate(zip(found, expected, strict=True)):
            text_length = len(case.prompts[request])
            self._cache(case.name, request, text_length, ours.cache, right.cache)
            self._tokens(case, request, plans[request], ours, right)
            self._steps(case.name, request, ours, right)

    def answer(self, case: AnswerCase, found: Answer, expected: Answer) -> None:
        """Compare an answer."""
        self.num_cases += 1
        self._limits = limits_of(self.precision)
        first = 0
        for number, (height, width) in enumerate(case.sizes):
            end = first + len(expected.features) * height * width // sum(h * w for h, w in case.sizes)
            where: Where = ("vision_encoder", case.name, 0)
            ours, right = found.features[first:end], expected.features[first:end]
            self._tensor(where, "image_features", ours[None], right[None], self._limits.cosine, number)
            first = end
        where = ("text_decoder", case.name, 0)
        if len(found.ids) != len(expected.ids):
            self._fail(where, "next_ids", 0, f"{len(found.ids)} tokens, expected {len(expected.ids)}")
            return
        self._tensor(where, "logits", found.logits, expected.logits, self._limits.cosine)
        self.answer_tokens += len(expected.ids)
        self.answer_tokens_equal += sum(a == b for a, b in zip(found.ids, expected.ids, strict=True))
        for step, token in enumerate(found.ids):
            logits = penalised(found.logits[step], expected.ids[:step], case.repetition_penalty)
            plan = case.plan()
            gumbel = None if plan.greedy else case.gumbel(step, len(logits))
            if not is_drawn(token, logits, gumbel, plan.temperature, plan.top_k, plan.top_p):
                self._fail(where, "next_ids", step, f"token {token} is not what the options draw from the logits")

    def guidance_effect(self, found: dict[str, Drawing], expected: dict[str, Drawing]) -> None:
        """Compare what guidance changes, from the first request of two cases, with and without."""
        if not {GUIDED, UNGUIDED} <= found.keys() or not all(len(each.x_preds) for each in found.values()):
            return
        for graph, part in (("rep_decoder", "logits"), ("denoiser", "x_preds")):
            name: GraphName = graph  # type: ignore[assignment]
            right, ours = (
                _relative(*(getattr(side[case], part)[0] for case in (GUIDED, UNGUIDED))) for side in (expected, found)
            )
            self.guidance[name] = (right, ours)
            if right > _NO_EFFECT and not 0.5 <= ours / right <= 2:
                self._fail((name, GUIDED, 0), "guidance effect", 0, f"{ours:.3g} of the norm, expected {right:.3g}")

    def _cache(self, case: str, request: int, text_length: int, found: Floats | None, expected: Floats | None) -> None:
        """Keys and values `[2 L, 2, H, P, D]`: those of the text, then those of each token in both rows."""
        if found is None or expected is None:
            return
        slots = expected.shape[3]
        if found.shape != expected.shape:
            self._fail(("rep_decoder", case, request), "cache", 0, f"{found.shape[3]} tokens, expected {slots}")
            return
        names = kv_names("present", expected.shape[0] // 2)
        # [P, 2, 2 L, H * D]
        ours, right = (
            np.moveaxis(side, (3, 1, 0), (0, 1, 2)).reshape(slots, 2, len(names), -1) for side in (found, expected)
        )
        parts: list[tuple[GraphName, slice, slice]] = [
            ("text_decoder", slice(text_length), slice(1)),
            ("rep_decoder", slice(text_length, None), slice(2)),
        ]
        for graph, which, rows in parts:
            if not text_length and graph == "text_decoder":
                continue
            for layer, name in enumerate(names):
                side = (ours[which, rows, layer], right[which, rows, layer])
                self._tensor((graph, case, request), name, *side, self._limits.cache_cosine)

    def _tokens(self, case: DrawCase, request: int, plan: DrawingPlan, found: Drawing, expected: Drawing) -> None:
        where: Where = ("rep_decoder", case.name, request)
        if len(found.rep_ids) != len(expected.rep_ids):
            self._fail(where, "next_rep_ids", 0, f"{len(found.rep_ids)} tokens, expected {len(expected.rep_ids)}")
            return
        cosines = self._tensor(where, "logits", found.logits, expected.logits, self._limits.cosine)
        self._curve(case.name, "rep_decoder logits", cosines)
        self.rep_tokens += expected.rep_ids.size
        self.rep_tokens_equal += int((found.rep_ids == expected.rep_ids).sum())
        for step, token in enumerate(found.rep_ids.tolist()):
            logits = found.logits[step]
            gumbel = None if plan.greedy else noise.gumbel(case.seed + request, step, len(logits))
            if not is_drawn(token, logits, gumbel, plan.temperature, plan.top_k):
                self._fail(where, "next_rep_ids", step, f"token {token} is not what the options draw from the logits")

    def _steps(self, case: str, request: int, found: Drawing, expected: Drawing) -> None:
        where: Where = ("denoiser", case, request)
        if len(found.x_preds) != len(expected.x_preds):
            self._fail(where, "steps", 0, f"{len(found.x_preds)} steps, expected {len(expected.x_preds)}")
            return
        error = np.abs(found.times - expected.times)
        if not error.max() <= 1e-6:
            wrong = int((error > 1e-6).argmax())
            what = f"steps to time {found.times[wrong]:.6f}, expected {expected.times[wrong]:.6f}"
            self._fail(where, "t_next", max(0, wrong - 1), what)
        num_steps = len(expected.x_preds)
        self.denoising_steps = max(self.denoising_steps, num_steps)
        for name in ("x_pred", "x_next"):
            ours, right = (getattr(side, f"{name}s").reshape(num_steps, -1) for side in (found, expected))
            cosines = self._tensor(where, name, ours, right, self._limits.cosine)
            self._curve(case, f"denoiser {name}", cosines)
        psnr = psnr_db(found.pixels, expected.pixels)
        self.picture_psnr_db = min(self.picture_psnr_db, psnr)
        if not psnr >= self._limits.psnr_db:
            self._fail(where, "picture", num_steps - 1, f"PSNR {psnr:.1f} dB, expected {self._limits.psnr_db}")
        self.pictures.append(WorstPicture(case, request, psnr, found.pixels, expected.pixels))
        self.pictures = sorted(self.pictures, key=lambda pair: pair.psnr_db)[:NUM_PICTURES]

    def _tensor(
        self, where: Where, tensor: str, found: Floats, expected: Floats, limit: float, first_step: int = 0
    ) -> npt.NDArray[np.float64]:
        """Compare `[steps, ..., n]`; returns the worst cosine of every step."""
        graph, case, _ = where
        if found.shape != expected.shape:
            self._fail(where, tensor, 0, f"shape {list(found.shape)}, expected {list(expected.shape)}")
            return np.full(len(expected), -1.0)
        cosines, ratios, errors = agreement(found, expected)
        figures = self.figures.setdefault(graph, {}).setdefault(tensor, Figures())
        step = int(cosines.argmin())
        if cosines[step] < figures.cosine or not figures.case:
            figures.cosine, figures.step, figures.case = float(cosines[step]), first_step + step, case
        worst = ratios[np.abs(ratios - 1).argmax()]
        if abs(worst - 1) >= abs(figures.norm_ratio - 1):
            figures.norm_ratio = float(worst)
        figures.max_abs_error = max(figures.max_abs_error, float(errors.max()))
        bad = np.flatnonzero(~((cosines >= limit) & (np.abs(ratios - 1) <= self._limits.norm)))
        if len(bad):
            step = int(bad[0])
            if not cosines[step] >= limit:
                what = f"cosine {cosines[step]:.6f}, expected at least {limit}"
            else:
                what = f"norm {ratios[step]:.4f} times the expected one"
            self._fail(where, tensor, first_step + step, what)
        return cosines

    def _curve(self, case: str, name: str, cosines: npt.NDArray[np.float64]) -> None:
        if case == GUIDED:
            before = self.curves.get(name, [1.0] * len(cosines))
            self.curves[name] = np.minimum(before, cosines).tolist()

    def _fail(self, where: Where, tensor: str, step: int, what: str) -> None:
        graph, case, request = where
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(Failure(graph=graph, tensor=tensor, case=case, request=request, step=step, what=what))

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        figures = {
            graph: {name: _rounded(asdict(each)) for name, each in _summed(tensors).items()}
            for graph, tensors in sorted(self.figures.items(), key=lambda item: ORDER.index(item[0]))
        }
        return {
            "cases": self.num_cases,
            "figures": figures,
            "rep_tokens": self.rep_tokens,
            "rep_tokens_equal": self.rep_tokens_equal,
            "answer_tokens": self.answer_tokens,
            "answer_tokens_equal": self.answer_tokens_equal,
            "denoising_steps": self.denoising_steps,
            **({"range_checked": True} if self.range_checked else {}),
            "picture_psnr_db": round(min(self.picture_psnr_db, 999.0), 2),
            "guidance_effect": {
                graph: {"expected": float(f"{a:.4g}"), "found": float(f"{b:.4g}")}
                for graph, (a, b) in self.guidance.items()
            },
        }


def agreement(
    found: Floats, expected: Floats
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Cosine, ratio of norms and largest error over the last axis, the worst of every step: `[steps, ..., n]`.

    In float64. Two vectors of zeros agree; what is not finite agrees in nothing.
    """
    a, b = (side.astype(np.float64).reshape(len(side), -1, side.shape[-1]) for side in (found, expected))
    with np.errstate(over="ignore", invalid="ignore"):
        norm_a, norm_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
        zeros = (norm_a < _NOTHING) & (norm_b < _NOTHING)
        cosine = np.where(zeros, 1.0, (a * b).sum(-1) / np.maximum(norm_a * norm_b, _NOTHING**2))
        ratio = np.where(zeros, 1.0, norm_a / np.maximum(norm_b, _NOTHING))
        error = np.abs(a - b).max(-1)
    finite = np.isfinite(error)
    cosine, ratio = np.where(finite, cosine, -1.0), np.where(finite, ratio, 0.0)
    worst = np.abs(ratio - 1).argmax(1)
    return cosine.min(1), ratio[np.arange(len(ratio)), worst], np.where(finite, error, 1e30).max(1)


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


def _relative(a: Floats, b: Floats) -> float:
    return float(np.linalg.norm(a.astype(np.float64) - b) / max(float(np.linalg.norm(b)), _NOTHING))


def _summed(tensors: dict[str, Figures]) -> dict[str, Figures]:
    """The keys and values of all layers as one line each."""
    summed: dict[str, Figures] = {}
    for name, figures in tensors.items():
        kind = f"present.*.{name.rsplit('.', 1)[1]}" if name.startswith("present.") else name
        before = summed.get(kind)
        if before is None:
            summed[kind] = Figures(**vars(figures))
            continue
        if figures.cosine < before.cosine:
            before.cosine, before.step, before.case = figures.cosine, figures.step, figures.case
        before.norm_ratio = max(before.norm_ratio, figures.norm_ratio, key=lambda ratio: abs(ratio - 1))
        before.max_abs_error = max(before.max_abs_error, figures.max_abs_error)
    return summed


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.9g}") if isinstance(value, float) else value for name, value in figures.items()}
