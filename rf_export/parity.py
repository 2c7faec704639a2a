"""Parity: do exported graphs, driven by the runtime's own stages, do what eager PyTorch does?

The reference is `rf_export.eager`, which has its own loop, caches, sampling and times, and takes the defaults of
sampling from the checkpoint; the graphs take them from the manifest. Two prompts of different length are
drawn together through the graphs (so padding, masks and guidance rows are in play) and one by one in eager; then a
question about two images is answered (`parity_understanding.py`). This is agreement of implementations, not quality of
pictures. Axes: N representation tokens, K representation vocabulary.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rf_export.eager import EagerRequest, EagerResult, generate, shifted_times
from rf_export.model import RFModel, Segment
from rf_export.parity_understanding import UnderstandingParity, compare_understanding, worst_cosine
from runtime import noise
from runtime.backends import Session, create_backend
from runtime.bundle import open_bundle
from runtime.cache import KVCache
from runtime.errors import RFError
from runtime.figures import psnr_db
from runtime.manifest import Manifest
from runtime.options import DrawingPlan, GenerationOptions, plan_drawing
from runtime.schedule import timesteps
from runtime.signature import GRAPHS, Dialect, GraphName, Precision
from runtime.stages import denoise, draw_tokens, prefill

SEED = 20260529
PROMPT_LENGTHS = (7, 3)
LARGE_MODEL = 200_000_000  # parameters; above, parity draws a small picture in few steps to end in minutes


@dataclass(frozen=True)
class Tolerance:
    """What parity demands of a precision, and why it is no tighter.

    fp32 differs by the order of sums only; fp16 rounds every tensor to 11 bits, which 25 guided Euler steps amplify.
    """

    cosine: float  # of guided logits and of x_pred, worst step
    psnr_db: float  # of the picture, from the same tokens


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(cosine=0.999999, psnr_db=60.0),
    "fp16": Tolerance(cosine=0.99999, psnr_db=40.0),
}


@dataclass(frozen=True)
class ParityReport:
    """Agreement with eager PyTorch, worst case over both prompts."""

    text_logits_cosine: float
    rep_logits_cosine: float
    rep_logits_max_error: float
    rep_tokens: int
    rep_tokens_equal: int  # same history, same noise
    rep_tokens_unexplained: int  # different although the lead of the winner exceeds twice the error
    denoising_steps: int
    x_pred_cosine: float
    picture_psnr_db: float
    image_features_cosine: float
    answer_logits_cosine: float
    answer_tokens: int  # half of them greedy, half drawn with every option of sampling
    answer_tokens_equal: int
    answer_tokens_unexplained: int
    passed: bool


@dataclass(frozen=True)
class _Drawn:
    """What the graphs put out for both prompts."""

    text_logits: NDArray[np.float32]  # [R, V]
    rep_logits: NDArray[np.float32]  # [N, R, K]
    rep_ids: NDArray[np.int64]  # [R, N], chosen after the same history as eager
    x_preds: NDArray[np.float32]  # [steps, R, 3, H, W]
    pixels: NDArray[np.float32]  # [R, 3, H, W]


def check_parity(
    model: RFModel, bundle: Path, precision: Precision, dialect: Dialect = "classic"
) -> dict[str, Any]:
    """Compare the graphs of a bundle, on ONNX Runtime, with `model` in eager fp32.

    Returns:
        The fields of `ParityReport`, for the manifest.

    Raises:
        RFError: agreement is below the tolerance of the precision; the message has the figures.
    """
    manifest = open_bundle(bundle).manifest
    backend = create_backend("ort")
    sessions = {
        entry.name: backend.open(bundle / entry.file, num_threads=None, compiled=False)
        for entry in manifest.graphs_of(precision, dialect)
    }
    report = compare(model, sessions, manifest, precision, dialect)
    figures = {**dataclasses.asdict(report), "runtime": f"onnxruntime {backend.target().version}"}
    if not report.passed:
        tolerance = TOLERANCES[precision]
        raise RFError(
            f"the exported {precision} {dialect} graphs do not agree with eager PyTorch: {report}; "
            f"expected cosines >= {tolerance.cosine}, PSNR >= {tolerance.psnr_db} dB and no unexplained token. "
            "No bundle was written; export in another precision, and report this"
        )
    return figures


def compare(
    model: RFModel,
    sessions: Mapping[GraphName, Session],
    manifest: Manifest,
    precision: Precision,
    dialect: Dialect = "classic",
) -> ParityReport:
    """Draw both prompts both ways and measure; see `check_parity`."""
    missing = [name for name in GRAPHS if name not in sessions]
    if missing:
        raise RFError(f"the bundle has no {precision} graphs for {', '.join(missing)}; export it again")
    options = _options(model)
    plan = plan_drawing(options, manifest)
    prompts = _prompts(model)
    eager = [_draw_eager(model, options, ids, SEED + i) for i, ids in enumerate(prompts)]
    num_slots = _num_slots(sessions["rep_decoder"], max(map(len, prompts)) + plan.num_rep_tokens + 1)
    cache = KVCache(manifest.model, precision, 2 * len(prompts), num_slots, dialect=dialect)
    drawn = _draw_graphs(sessions, plan, manifest, cache, prompts, [result.rep_ids.tolist() for result in eager])
    answers = compare_understanding(model, sessions, manifest.model, precision, dialect, SEED)
    return _measure(_text_logits(model, prompts), eager, drawn, plan, answers, TOLERANCES[precision])


def _options(model: RFModel) -> GenerationOptions:
    num_parameters = sum(p.numel() for p in model.parameters())
    if num_parameters <= LARGE_MODEL:
        return GenerationOptions()
    return GenerationOptions(height=2 * model.config.cell, width=3 * model.config.cell, num_steps=4)


def _num_slots(session: Session, needed: int) -> int:
    """Slots of the cache; raises RFError where the graphs have a fixed number that is too small."""
    fixed = session.signature.cache_slots
    if fixed is not None and fixed < needed:
        raise RFError(
            f"the graphs have a cache of {fixed} slots, and the pictures of the parity check take {needed}; "
            f"export with at least --cache-slots {needed}"
        )
    return fixed or needed


def _prompts(model: RFModel) -> list[list[int]]:
    rng = np.random.default_rng(SEED)
    return [rng.integers(0, model.config.vocab_size, length).tolist() for length in PROMPT_LENGTHS]


def _times(plan: DrawingPlan, manifest: Manifest) -> NDArray[np.float32]:
    sampling = manifest.sampling
    return timesteps(
        plan.num_steps, 4 * plan.num_rep_tokens, shift=sampling.shift, shift_base_patches=sampling.shift_base_patches
    )


def _draw_eager(model: RFModel, options: GenerationOptions, prompt_ids: list[int], seed: int) -> EagerResult:
    config, sampling = model.config, model.config.sampling
    height, width = options.height or config.default_height, options.width or config.default_width
    rows, columns = config.rep_grid(height, width)
    gumbel = [noise.gumbel(seed, n, config.rep_vocab_size) for n in range(rows * columns)]
    num_steps = options.num_steps or sampling.num_steps
    request = EagerRequest(
        prompt_ids=torch.tensor(prompt_ids),
        gumbel=torch.from_numpy(np.stack(gumbel)),
        noise=torch.from_numpy(noise.normal(seed, (3, height, width))),
        timesteps=shifted_times(num_steps, 4 * rows * columns, sampling),
        rep_guidance_scale=sampling.rep_guidance_scale,
        pix_guidance_scale=sampling.pix_guidance_scale,
        temperature=sampling.temperature,
        top_k=min(sampling.top_k, config.rep_vocab_size),
    )
    return generate(model, request)


@torch.no_grad()
def _text_logits(model: RFModel, prompts: list[list[int]]) -> NDArray[np.float32]:
    """Next-token logits after each prompt, `[R, V]`."""
    logits = []
    for ids in prompts:
        hidden = F.embedding(torch.tensor([ids]), model.text_embedding)
        causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None]
        (out,), _ = model.run([Segment("understanding", hidden, torch.arange(len(ids))[None])], causal)
        logits.append(model.text_head(out[0, -1]).numpy())
    return np.stack(logits)


def _draw_graphs(
    sessions: Mapping[GraphName, Session],
    plan: DrawingPlan,
    manifest: Manifest,
    cache: KVCache,
    prompts: list[list[int]],
    forced: list[list[int]],  # [R][N]
) -> _Drawn:
    """Both prompts together through the runtime's stages, the representation tokens forced to eager's."""
    seeds = [SEED + i for i in range(len(prompts))]
    text = _TapLogits(sessions["text_decoder"])
    row_starts = prefill(text, prompts, cache)
    forcing = _ForceTokens(sessions["rep_decoder"], np.array(forced))

    def fill_noise(step: int, out: NDArray[np.float32]) -> None:
        for row, seed in enumerate(seeds):
            out[row] = noise.gumbel(seed, step, out.shape[1])

    for _ in draw_tokens(forcing, plan, cache, row_starts, manifest.model.rep_start_id, fill_noise):
        pass
    pixels = np.stack([noise.normal(seed, (3, plan.height, plan.width)) for seed in seeds])
    steps = list(denoise(sessions["denoiser"], plan, cache, row_starts, _times(plan, manifest), pixels))
    return _Drawn(
        text_logits=text.logits[-1],
        rep_logits=np.stack(forcing.logits[: plan.num_rep_tokens]),
        rep_ids=np.stack(forcing.chosen[: plan.num_rep_tokens], axis=1),
        x_preds=np.stack([step.x_pred for step in steps]),
        pixels=steps[-1].x_next,
    )


class _TapLogits:
    """A session that also records the logits of every run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.signature = session.signature
        self.logits: list[NDArray[np.float32]] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._session.run(inputs)

    def bind(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> Any:
        vocabulary = self.signature.output("logits").shape[1]
        rows = len(next(iter(inputs.values())))
        logits = np.zeros((rows, int(vocabulary)), np.float32)
        bound = self._session.bind(inputs, {**outputs, "logits": logits})

        def step() -> None:
            bound()
            self.logits.append(logits.copy())
            self.after_step(outputs)

        return step

    def after_step(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """What else to do with the outputs of a run."""


class _ForceTokens(_TapLogits):
    """Records the chosen representation tokens and replaces them by given ones, so that histories stay the same."""

    def __init__(self, session: Session, forced: NDArray[np.int64]) -> None:
        super().__init__(session)
        self._forced = forced  # [R, N]
        self.chosen: list[NDArray[np.int64]] = []

    def after_step(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        self.chosen.append(outputs["next_rep_ids"].copy())
        step = len(self.chosen) - 1
        if step < self._forced.shape[1]:
            outputs["next_rep_ids"][:] = self._forced[:, step]


def _measure(
    text_logits: NDArray[np.float32],
    eager: list[EagerResult],
    drawn: _Drawn,
    plan: DrawingPlan,
    answers: UnderstandingParity,
    tolerance: Tolerance,
) -> ParityReport:
    rep_logits = np.stack([torch.stack(result.logits).numpy() for result in eager], axis=1)  # [N, R, K]
    x_preds = np.stack([torch.stack(result.x_preds).numpy() for result in eager], axis=1)
    expected_ids = np.stack([result.rep_ids.numpy() for result in eager])
    same_steps = len(drawn.x_preds) == len(x_preds) == plan.num_steps
    error = np.abs(drawn.rep_logits - rep_logits).max(axis=2)  # [N, R]
    different = drawn.rep_ids != expected_ids  # [R, N]
    unexplained = int((different.T & (_leads(eager, plan) > 2 * error / plan.temperature)).sum())
    text_cosine = worst_cosine(drawn.text_logits, text_logits)
    rep_cosine = worst_cosine(drawn.rep_logits, rep_logits)
    x_cosine = worst_cosine(drawn.x_preds.reshape(*drawn.x_preds.shape[:2], -1),
                             x_preds.reshape(*x_preds.shape[:2], -1)) if same_steps else -1.0  # fmt: skip
    psnr = min(psnr_db(pixels, result.pixels.numpy()) for pixels, result in zip(drawn.pixels, eager, strict=True))
    cosines = (text_cosine, rep_cosine, x_cosine, answers.features_cosine, answers.logits_cosine)
    surprises = unexplained + answers.tokens_unexplained
    return ParityReport(
        text_logits_cosine=text_cosine,
        rep_logits_cosine=rep_cosine,
        rep_logits_max_error=float(error.max()),
        rep_tokens=expected_ids.size,
        rep_tokens_equal=int((~different).sum()),
        rep_tokens_unexplained=unexplained,
        denoising_steps=len(drawn.x_preds),
        x_pred_cosine=x_cosine,
        picture_psnr_db=psnr,
        image_features_cosine=answers.features_cosine,
        answer_logits_cosine=answers.logits_cosine,
        answer_tokens=answers.num_tokens,
        answer_tokens_equal=answers.tokens_equal,
        answer_tokens_unexplained=answers.tokens_unexplained,
        passed=same_steps and surprises == 0 and min(cosines) >= tolerance.cosine and psnr >= tolerance.psnr_db,
    )


def _leads(eager: list[EagerResult], plan: DrawingPlan) -> NDArray[np.float32]:
    """By how much the chosen token beats the next one, noise included: `[N, R]`.

    Where the lead is below twice the error of the logits, another choice is a rounding difference. A candidate at the
    border of the top k counts too: its distance to the k-th value is the lead there.
    """
    leads = np.zeros((plan.num_rep_tokens, len(eager)), np.float32)
    for row, result in enumerate(eager):
        for step, logits in enumerate(result.logits):
            scaled = logits.numpy() / plan.temperature
            ordered = np.sort(scaled)[::-1]
            noisy = scaled + noise.gumbel(SEED + row, step, len(scaled))
            border = ordered[plan.top_k - 1] - ordered[plan.top_k] if plan.top_k < len(scaled) else math.inf
            first, second = np.sort(np.where(scaled >= ordered[plan.top_k - 1], noisy, -np.inf))[::-1][:2]
            leads[step, row] = min(first - second, border)
    return leads
