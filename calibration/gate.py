"""The quality gate: whole drawings with the INT8 graphs against the graphs that they come from.

Both get the same noise, and INT8 the tokens that the original drew, so that every step is compared after the same
history; the prompts are ones that nobody calibrated with. Tokens that differ are told, not judged: near ties fall
either way. A model that answers also captions those pictures, and others that nobody calibrated with: a caption is the
one answer that every such model gives. A task score, where the caller has one, is measured on pictures that each side
drew all by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.config import GateLimits
from calibration.trajectory import see
from runtime.errors import RFError
from runtime.events import PictureEvent, Progress, StepEvent, TokenEvent
from runtime.options import GenerationOptions
from runtime.pictures.load import Picture
from runtime.pipeline import Pipeline
from verification.measures.metrics import Interval, cosine, psnr_db, wilson_interval
from verification.measures.token_agreement import Reading, TokenAgreement, compare_answers, read_answer

Scorer = Callable[[Pipeline, Progress], Sequence[bool]]  # was each picture right?


@dataclass(frozen=True)
class Quality:
    """What the gate found.

    Attributes:
        logits_cosine, x_pred_cosine: [steps] mean over the prompts.
        worst_cosine: of any step and prompt, of both.
        features_cosine: of what the image encoder sees in the pictures, mean.
        tokens_equal: part of the tokens that are the same after the same history.
        psnr_db: of the pictures from the same tokens.
        captions: agreement of greedy captions; None where the model answers no questions.
        score_before, score_after, score_change: of the task in percent and points; None without a scorer.
    """

    prompts: int
    logits_cosine: list[float]
    x_pred_cosine: list[float]
    worst_cosine: float
    features_cosine: float
    tokens: int
    tokens_equal: Interval
    psnr_db: Interval
    psnr_worst_db: float
    captions: TokenAgreement | None = None
    score_before: Interval | None = None
    score_after: Interval | None = None
    score_change: Interval | None = None
    scored_pictures: int = 0

    def failures(self, limits: GateLimits) -> list[str]:
        """What misses a limit, as sentences for people; none is a pass."""
        found = []
        for name, values in (("logits of rep_decoder", self.logits_cosine), ("x_pred of denoiser", self.x_pred_cosine)):
            step = int(np.argmin(values))
            if not values[step] >= limits.cosine:
                found.append(f"{name}: cosine {values[step]:.6f} in step {step}, expected at least {limits.cosine}")
        if not self.features_cosine >= limits.cosine:
            found.append(f"vision_encoder: cosine {self.features_cosine:.6f}, expected at least {limits.cosine}")
        if not self.psnr_db.value >= limits.psnr_db:
            found.append(f"pictures: PSNR {self.psnr_db.value:.1f} dB, expected at least {limits.psnr_db}")
        failure = None if self.captions is None else self.captions.failure(limits.answer_tokens)
        if failure is not None:
            found.append(failure)
        if self.score_change is not None and not self.score_change.value >= -limits.max_score_loss:
            found.append(
                f"task score: {self.score_change.value:+.1f} points, expected a loss of at most {limits.max_score_loss}"
            )
        return found

    def shortfall(self, limits: GateLimits) -> float:
        """Error in units of what the limits allow: above 1 fails."""
        cosine = min(*self.logits_cosine, *self.x_pred_cosine, self.features_cosine)
        psnr = 10 ** ((limits.psnr_db - self.psnr_db.value) / 10)
        captions = 0.0 if self.captions is None else self.captions.shortfall(limits.answer_tokens)
        return max((1 - cosine) / (1 - limits.cosine), psnr, captions)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "captions": None if self.captions is None else self.captions.to_dict()}


@dataclass(frozen=True)
class Drawn:
    """A drawing with all that happened on the way."""

    prompt: str
    seed: int
    tokens: list[TokenEvent]
    steps: list[StepEvent]
    picture: PictureEvent
    features: npt.NDArray[Any]  # [N, d] of the picture


def draw(
    pipeline: Pipeline,
    prompt: str,
    seed: int,
    options: GenerationOptions | None = None,
    rep_ids: npt.NDArray[np.int64] | None = None,
) -> Drawn:
    """Draw one picture, from given tokens [N] where there are some."""
    given = None if rep_ids is None else rep_ids[None]
    events = list(pipeline.generate([prompt], seed=seed, options=options, rep_ids=given))
    (picture,) = (event for event in events if isinstance(event, PictureEvent))
    return Drawn(
        prompt,
        seed,
        [event for event in events if isinstance(event, TokenEvent)],
        [event for event in events if isinstance(event, StepEvent)],
        picture,
        see(pipeline, picture.picture),
    )


def caption(
    pipeline: Pipeline, pictures: Sequence[Picture], originals: Sequence[Reading] | None = None
) -> list[Reading]:
    """Greedy captions of pictures, after the words of the original ones; none where the model answers no questions."""
    if pipeline.bundle.manifest.understanding is None:
        return []
    readings = []
    for number, picture in enumerate(pictures):
        conversation = pipeline.converse()
        conversation.show(picture)
        words = None if originals is None else originals[number].token_ids
        readings.append(read_answer(conversation, token_ids=words))
    return readings


@dataclass(frozen=True)
class Originals:
    """What the graphs do that the INT8 ones come from."""

    drawings: Sequence[Drawn]
    seen: Sequence[Picture]  # the drawings, and other pictures that nobody calibrated with
    captions: Sequence[Reading]  # of `seen`; none where the model answers no questions
    options: GenerationOptions | None = None  # how they were drawn

    def require_enough(self, limits: GateLimits) -> None:
        """Raises RFError where the captions are too few to pass, however good INT8 is."""
        same = compare_answers((each, each) for each in self.captions)
        if self.captions and not same.can_pass(limits.answer_tokens):
            raise RFError(
                f"{same.answers} captions of {same.tokens} tokens are too few to show that {limits.answer_tokens:.0%} "
                "of the tokens stay alike. Give more --prompts or --images, or lower --min-token-agreement."
            )


def draw_originals(
    base: Pipeline,
    prompts: Sequence[tuple[str, int]],
    pictures: Sequence[Picture],
    options: GenerationOptions | None = None,
) -> Originals:
    """Draw prompts with their seeds, and read what was drawn and `pictures`."""
    drawings = [draw(base, prompt, seed, options) for prompt, seed in prompts]
    seen = [*(each.picture.picture for each in drawings), *pictures]
    return Originals(drawings, seen, caption(base, seen), options)


def measure_quality(originals: Originals, pipeline: Pipeline, report: Callable[[int], None]) -> Quality:
    """Draw and read again; `report` is told how many drawings are done."""
    logits, pixels, psnr, equal, features = [], [], [], [], []
    for done, wanted in enumerate(originals.drawings, 1):
        found = draw(pipeline, wanted.prompt, wanted.seed, originals.options, wanted.picture.rep_ids)
        logits.append([cosine(a.logits, b.logits) for a, b in zip(wanted.tokens, found.tokens, strict=True)])
        pixels.append([cosine(a.x_pred, b.x_pred) for a, b in zip(wanted.steps, found.steps, strict=True)])
        equal += [bool(a.rep_ids[0] == b.rep_ids[0]) for a, b in zip(wanted.tokens, found.tokens, strict=True)]
        features.append(cosine(wanted.features, see(pipeline, wanted.picture.picture)))
        psnr.append(psnr_db(wanted.picture.pixels, found.picture.pixels, most=99.0))
        report(done)
    pairs = list(zip(originals.captions, caption(pipeline, originals.seen, originals.captions), strict=True))
    return Quality(
        prompts=len(psnr),
        logits_cosine=np.mean(logits, 0).tolist(),
        x_pred_cosine=np.mean(pixels, 0).tolist(),
        worst_cosine=float(min(np.min(logits), np.min(pixels))),
        features_cosine=float(np.mean(features)),
        tokens=len(equal),
        tokens_equal=proportion(sum(equal), len(equal)),
        psnr_db=mean_interval(psnr),
        psnr_worst_db=min(psnr),
        captions=compare_answers(pairs, same_history=True) if pairs else None,
    )


def proportion(successes: int, count: int) -> Interval:
    """A proportion with its Wilson interval."""
    return Interval(successes / count, *wilson_interval(successes, count))


def mean_interval(values: Sequence[float]) -> Interval:
    """A mean with its interval by the bootstrap (Efron 1979), 2,000 resamples."""
    data = np.asarray(values, np.float64)
    means = np.random.default_rng(0).choice(data, (2000, len(data))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high))


def paired_change(before: Sequence[bool], after: Sequence[bool]) -> tuple[Interval, Interval, Interval]:
    """Scores in percent before and after on the same prompts, and their change in points, by pairs."""
    changes = [100.0 * (int(b) - int(a)) for a, b in zip(before, after, strict=True)]
    return (
        _percent(proportion(sum(before), len(before))),
        _percent(proportion(sum(after), len(after))),
        mean_interval(changes),
    )


def _percent(part: Interval) -> Interval:
    return Interval(100 * part.value, 100 * part.low, 100 * part.high)
