"""Generation and answers in eager PyTorch, one request at a time: the reference that compiled graphs are held against.

Its own loop on purpose: no padding, no static buffers, no guidance rows in one batch; conditional and unconditional
caches grow by concatenation. Shares with the runtime only the noise that it is given.
Axes: T prompt tokens, N representation tokens, K representation vocabulary, V text vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from rf_export.config import SamplingConfig
from rf_export.layers import unpatchify
from rf_export.model import KeyValue, RFModel, Segment


@dataclass(frozen=True, kw_only=True)
class EagerRequest:
    """Everything that decides a picture."""

    prompt_ids: Tensor  # int64 [T], may be empty
    gumbel: Tensor | None  # [N, K]; None draws without representation tokens (the ablation)
    noise: Tensor  # [3, H, W]
    timesteps: Tensor  # [num_steps + 1], 0 to 1
    rep_guidance_scale: float
    pix_guidance_scale: float
    guided: tuple[float, float] = (0.0, 1.0)  # from which time to before which one the pixels are guided
    temperature: float
    top_k: int
    rep_ids: Tensor | None = None  # int64 [N]: teacher forcing; sampled where None


@dataclass
class EagerPrefix:
    """A growing cache of one row: per layer keys and values, and how many tokens they hold."""

    past: list[KeyValue] | None = None
    length: int = 0

    def extend(self, model: RFModel, expert: str, hidden: Tensor) -> Tensor:
        """Append tokens `[1, S, d]`, causal; returns the last token's final-normed state `[1, d]`."""
        tokens = hidden.shape[1]
        positions = torch.arange(self.length, self.length + tokens)[None]
        mask = torch.ones(tokens, self.length + tokens, dtype=torch.bool).tril(self.length)[None, None]
        (out,), new = model.run([Segment(expert, hidden, positions)], mask, self.past)  # type: ignore[arg-type]
        self.past = (
            new
            if self.past is None
            else [
                (torch.cat([k, new_k], 2), torch.cat([v, new_v], 2))
                for (k, v), (new_k, new_v) in zip(self.past, new, strict=True)
            ]
        )
        self.length += tokens
        return out[:, -1]


@dataclass(kw_only=True)
class EagerResult:
    """A picture and what every step of the way put out."""

    pixels: Tensor  # [3, H, W]
    rep_ids: Tensor  # int64 [N]
    logits: list[Tensor] = field(default_factory=list)  # guided, [K] per token
    x_preds: list[Tensor] = field(default_factory=list)  # guided, [3, H, W] per step
    x_nexts: list[Tensor] = field(default_factory=list)  # [3, H, W] per step
    timesteps: Tensor  # as they were asked for
    prefixes: tuple[EagerPrefix, EagerPrefix]  # with the text and without, as the denoiser saw them


def shifted_times(num_steps: int, num_patches: int, sampling: SamplingConfig, shift: float | None = None) -> Tensor:
    """Times of the Euler steps, float32 `[num_steps + 1]`, 0 to 1.

    Equation 23 of SD3 (arXiv 2403.03206) in its equal form on the log scale, `logit(sigma') = logit(sigma) + log(s)`,
    so that a slip in the runtime's spelling shows. `shift` replaces the one of `sampling`.
    """
    sigma = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    base = num_patches if sampling.shift_base_patches is None else sampling.shift_base_patches
    shift = (sampling.shift if shift is None else shift) * math.sqrt(num_patches / base)
    return (1 - torch.sigmoid(torch.logit(sigma) + math.log(shift))).float()


@torch.no_grad()
def generate(model: RFModel, request: EagerRequest, on_step: Callable[[Tensor], None] | None = None) -> EagerResult:
    """Draw one picture; `on_step` sees the guided clean-picture estimate after every denoising step."""
    conditional, unconditional = EagerPrefix(), EagerPrefix()
    if len(request.prompt_ids):
        conditional.extend(model, "understanding", F.embedding(request.prompt_ids[None], model.text_embedding))
    result = EagerResult(
        pixels=request.noise,
        rep_ids=torch.empty(0, dtype=torch.int64),
        timesteps=request.timesteps,
        prefixes=(conditional, unconditional),
    )
    if request.gumbel is not None:
        _sample_representation(model, request, (conditional, unconditional), result)
    _denoise(model, request, conditional, result, on_step)
    return result


def _sample_representation(
    model: RFModel, request: EagerRequest, prefixes: tuple[EagerPrefix, EagerPrefix], result: EagerResult
) -> None:
    rows, columns = model.config.rep_grid(*request.noise.shape[1:])
    assert request.gumbel is not None
    last, ids = model.config.rep_start_id, []
    for n in range(rows * columns + 1):
        spot = max(n - 1, 0)
        position = torch.tensor([[[spot // columns, spot % columns]]])
        hidden = model.embed_rep(torch.tensor([[last]]), position)
        with_text, without_text = (model.rep_head(p.extend(model, "representation", hidden))[0] for p in prefixes)
        if n == rows * columns:  # the last token only enters the cache
            break
        with_text, without_text = with_text.float(), without_text.float()
        logits = without_text + request.rep_guidance_scale * (with_text - without_text)
        result.logits.append(logits)
        last = sample(logits, request.gumbel[n], request.temperature, request.top_k)
        if request.rep_ids is not None:
            last = int(request.rep_ids[n])
        ids.append(last)
    result.rep_ids = torch.tensor(ids)


def sample(logits: Tensor, gumbel: Tensor, temperature: float, top_k: int) -> int:
    """Gumbel-max draw among the top k: arg-max of logits / temperature + noise; `[K]`, `[K]`. Temperature 0: greedy."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits / temperature
    threshold = torch.sort(scaled, descending=True).values[top_k - 1]
    return int(torch.where(scaled >= threshold, scaled + gumbel, -torch.inf).argmax())


def _denoise(
    model: RFModel,
    request: EagerRequest,
    conditional: EagerPrefix,
    result: EagerResult,
    on_step: Callable[[Tensor], None] | None,
) -> None:
    x = request.noise[None].float()
    nothing = EagerPrefix()
    for t, t_next in zip(request.timesteps[:-1], request.timesteps[1:], strict=True):
        scale = request.pix_guidance_scale if request.guided[0] <= t < request.guided[1] else 1.0
        if scale == 1:
            x_pred = _predict(model, x, t, conditional)
        else:
            x_pred = _predict(model, x, t, nothing)
            if scale != 0:
                x_pred = x_pred + scale * (_predict(model, x, t, conditional) - x_pred)
        x = x + (t_next - t) * (x_pred - x) / (1 - t)
        result.x_preds.append(x_pred[0])
        result.x_nexts.append(x[0])
        if on_step is not None:
            on_step(x_pred[0])
    result.pixels = x[0]


def _predict(model: RFModel, x: Tensor, t: Tensor, prefix: EagerPrefix) -> Tensor:
    """The clean picture that one prefix predicts from `x [1, 3, H, W]` at time t."""
    hidden = model.embed_pixels(x, t[None])
    positions = torch.full(hidden.shape[:2], prefix.length)
    (out,), _ = model.run([Segment("pixel", hidden, positions)], None, prefix.past)
    height, width = x.shape[2:]
    return unpatchify(model.pixel_out(out), model.config.patch_size, height, width).float()


@dataclass(frozen=True, kw_only=True)
class EagerQuestion:
    """Images, the ids after them, and how to draw the answer."""

    images: list[Tensor]  # [3, H, W] each, of any sizes
    ids: Tensor  # int64 [T]: the start token and the question
    max_tokens: int
    stop_ids: tuple[int, ...] = ()
    gumbel: Tensor | None = None  # [max_tokens, V]; None where greedy
    temperature: float = 0.0
    top_k: int = 1
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@dataclass(kw_only=True)
class EagerAnswer:
    """The tokens of an answer, the one that ends it too, and what they were drawn from."""

    features: Tensor  # [F, d]
    ids: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)  # [V] per token, before penalty and temperature


@torch.no_grad()
def answer(model: RFModel, question: EagerQuestion) -> EagerAnswer:
    """Answer one question, the whole prompt in one pass and then token by token."""
    patch = model.config.patch_size
    features = [
        model.connector(model.encoder(pixels[None]), pixels.shape[1] // patch, pixels.shape[2] // patch)[0]
        for pixels in question.images
    ]
    result = EagerAnswer(features=torch.cat(features) if features else torch.zeros(0, model.config.hidden_size))
    prefix, ids, images = EagerPrefix(), question.ids, result.features
    for step in range(question.max_tokens):
        hidden = torch.cat([images, F.embedding(ids, model.text_embedding)])[None]
        logits = model.text_head(prefix.extend(model, "understanding", hidden))[0].float()
        noise = None if question.gumbel is None else question.gumbel[step]
        token = sample_text(logits, result.ids, noise, question)
        result.logits.append(logits)
        result.ids.append(token)
        if token in question.stop_ids:
            break
        ids, images = torch.tensor([token]), images[:0]
    return result


def sample_text(logits: Tensor, answer_ids: list[int], gumbel: Tensor | None, how: EagerQuestion) -> int:
    """Draw a token, one rule after the other: penalty, temperature, top k, nucleus, noise; `[V]`, `[V]`."""
    logits = logits.clone()
    for token in set(answer_ids):
        factor = how.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    if how.temperature == 0:
        return int(logits.argmax())
    assert gumbel is not None
    scaled = logits / how.temperature
    best = torch.sort(scaled, descending=True).values[: how.top_k]
    shares, kept = torch.softmax(best, 0).tolist(), 1
    while kept < len(best) and (how.top_p >= 1 or sum(shares[:kept]) < how.top_p):
        kept += 1
    return int(torch.where(scaled >= best[kept - 1], scaled + gumbel, -torch.inf).argmax())
