"""The exported graphs as PyTorch modules: what goes in and comes out, embeddings, guidance, sampling, Euler step.

What goes in and comes out, names, shapes and dtypes, is written in runtime/signature.py; how the decoder and its cache
are spelt is the dialect's: `classic.py`, `modern.py`. Knows nothing of files or of ONNX.
"""

from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rf_export.config import Expert
from rf_export.graphs.classic import ClassicDecoder
from rf_export.graphs.modern import ModernDecoder
from rf_export.layers import RMSNorm, unpatchify
from rf_export.model import RFModel
from runtime.signature import MAX_TOP_K, Dialect, GraphName

# Up to log(k) / log(size) = 0.725 ONNX Runtime (1.32) selects with a heap: 1024 of 16,384 take 0.12 ms, 1280 take 0.07.
TOPK_WIDTH: Final = MAX_TOP_K + 256


class Decoder(Protocol):
    """The decoder over new tokens of one type and a static cache `past`, which is `key, value` of every layer.

    Axes: B rows, S new tokens (M patches in the denoiser), P slots of the cache, d hidden size. A bias is added to the
    scores of attention; its shape is the dialect's own business.
    """

    def norm(self, module: RMSNorm, x: Tensor) -> Tensor:
        """Apply a norm of the model."""

    def causal_bias(self, slots: Tensor, row_starts: Tensor, past_lengths: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """The bias of a run of tokens in `slots [B, S]` that see the cache and those before them."""

    def extend(
        self,
        expert: Expert,
        hidden: Tensor,
        positions: Tensor,
        bias: Tensor,
        past_lengths: Tensor,
        past: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all layers over new tokens that go into the cache.

        Args:
            expert: Token type of the new tokens.
            hidden: `[B, S, d]`.
            positions: Rotary positions `[B, S]`.
            bias: From `causal_bias`.
            past_lengths: Slots in use, `[B]`.
            past: `[B, H, P, D]` each.

        Returns:
            Hidden states before the final norm, and `present`, as runtime/signature.py says.
        """

    def read(
        self,
        expert: Expert,
        hidden: Tensor,
        row_requests: Tensor,
        row_starts: Tensor,
        past_lengths: Tensor,
        past: tuple[Tensor, ...],
    ) -> Tensor:
        """Run all layers over patches `[B, M, d]`, which leave the cache of the first R rows as it is.

        All patches of a row share the position behind its cache. Rows beyond R see patches alone.
        """


DECODERS: Final[dict[Dialect, type[Decoder]]] = {"classic": ClassicDecoder, "modern": ModernDecoder}


class CachedGraph(nn.Module):
    """What the graphs share: the model, whose parameters become initialisers, and the decoder's dialect."""

    def __init__(self, model: RFModel, dialect: Dialect) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.decoder: Decoder = DECODERS[dialect](model)  # type: ignore[call-arg]

    def final_norm(self, expert: Expert, hidden: Tensor) -> Tensor:
        """The last norm of a token type."""
        module = self.model.final_norms[expert]
        assert isinstance(module, RMSNorm)
        return self.decoder.norm(module, hidden)


class TextDecoder(CachedGraph):
    """Prefill of prompts with texts and images, and one step of an answer, with the understanding expert."""

    def forward(
        self,
        input_ids: Tensor,
        row_starts: Tensor,
        past_lengths: Tensor,
        image_features: Tensor,
        answer_ids: Tensor,
        gumbel: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        repetition_penalty: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """See runtime/signature.py."""
        hidden = self._embed(input_ids, image_features)
        slots = past_lengths[:, None] + torch.arange(input_ids.shape[1])  # [B, S]
        # Max, not Clip: TensorRT lists no whole numbers for Clip.
        positions = torch.maximum(slots - row_starts[:, None], torch.zeros((), dtype=torch.int64))
        bias = self.decoder.causal_bias(slots, row_starts, past_lengths, past)
        hidden, present = self.decoder.extend("understanding", hidden, positions, bias, past_lengths, past)
        last = self.final_norm("understanding", hidden[:, -1])
        logits = self.model.text_head(last).float()
        penalised = penalise(logits, answer_ids, repetition_penalty)
        return sample_nucleus(penalised, gumbel, temperature, top_k, top_p), logits, *present

    def _embed(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        """Texts from their table, image tokens from the features: `[B, S]`, `[F, d] -> [B, S, d]`.

        Two look-ups and a choice: the table may be hundreds of megabytes, and is never copied to append to it.
        """
        vocabulary, zero = self.config.vocab_size, torch.zeros((), dtype=torch.int64)
        is_image = input_ids >= vocabulary
        texts = F.embedding(torch.where(is_image, zero, input_ids), self.model.text_embedding)
        images = F.embedding(torch.where(is_image, input_ids - vocabulary, zero), image_features)
        return torch.where(is_image[:, :, None], images, texts)


class RepDecoder(CachedGraph):
    """One pass over a window of representation tokens: decode, guide, sample."""

    def forward(
        self,
        rep_ids: Tensor,
        grid_positions: Tensor,
        row_requests: Tensor,
        uncond_rows: Tensor,
        row_starts: Tensor,
        past_lengths: Tensor,
        gumbel: Tensor,
        guidance_scale: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """See runtime/signature.py."""
        hidden = self.model.embed_rep(rep_ids, grid_positions).index_select(0, row_requests)  # [B, W, d]
        slots = past_lengths[:, None] + torch.arange(rep_ids.shape[1])  # [B, W]
        bias = self.decoder.causal_bias(slots, row_starts, past_lengths, past)
        positions = slots - row_starts[:, None]
        hidden, present = self.decoder.extend("representation", hidden, positions, bias, past_lengths, past)
        rows = self.model.rep_head(self.final_norm("representation", hidden)).float()
        logits = guide(rows, uncond_rows, guidance_scale[:, None, None])
        return sample(logits, gumbel, temperature[:, None, None], top_k[:, None, None]), logits, *present


def guide(rows: Tensor, uncond_rows: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): the first R of B rows, away from each one's unconditional row.

    `[B, ...]`, `[R]`, a scale that broadcasts `-> [R, ...]`.
    """
    conditional = rows.index_select(0, torch.arange(uncond_rows.shape[0]))
    unconditional = rows.index_select(0, uncond_rows)
    return unconditional + scale * (conditional - unconditional)


def sample(logits: Tensor, gumbel: Tensor, temperature: Tensor, top_k: Tensor) -> Tensor:
    """Top-k Gumbel-max draw, k at run time: two of `[..., K]`, two of `[..., 1]` that broadcast `-> int64 [...]`.

    The k-th largest value is a threshold, so ties at the border all stay in, and the noise belongs to the vocabulary
    entry: the draw does not depend on how a backend orders equal values.
    """
    scaled = logits / temperature
    largest = torch.topk(scaled, min(TOPK_WIDTH, scaled.shape[-1]), dim=-1).values
    threshold = torch.gather(largest, -1, (top_k - 1).expand(-1, scaled.shape[1], -1))
    return torch.argmax(torch.where(scaled >= threshold, scaled + gumbel, -1e30), dim=-1)


def penalise(logits: Tensor, answer_ids: Tensor, penalty: Tensor) -> Tensor:
    """Make what an answer has already less likely: `[B, V]`, `[B, A]`, `[B] -> [B, V]`.

    As in CTRL (arXiv 1909.05858, section 4.1), with positive logits divided and negative ones multiplied, as in HF.
    """
    counts = logits.new_zeros(logits.shape[0], logits.shape[1] + 1)  # the last column takes the id that is none
    seen = counts.scatter(1, answer_ids, 1.0)[:, :-1] > 0
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def sample_nucleus(logits: Tensor, gumbel: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Gumbel-max draw from the nucleus (arXiv 1904.09751) of the top k: `[B, V]`, `[B, V]`, three of `[B] -> [B]`.

    The nucleus is the fewest of the k largest that together have a probability of top_p; 1 takes all of them. As in
    `sample`, the smallest of these is a threshold.
    """
    scaled = logits / temperature[:, None]
    largest = torch.topk(scaled, min(MAX_TOP_K, scaled.shape[1]), dim=1).values
    among_k = torch.arange(largest.shape[1]) < top_k[:, None]
    shares = torch.softmax(torch.where(among_k, largest, -1e30), dim=1)
    before = torch.cumsum(shares, dim=1) - shares
    limit = top_p[:, None]
    kept = among_k & ((before < limit) | (limit >= 1))  # rounded sums may reach 1 before the end
    threshold = torch.where(kept, largest, 1e30).amin(1, keepdim=True)
    return torch.argmax(torch.where(scaled >= threshold, scaled + gumbel, -1e30), dim=1)


class Denoiser(CachedGraph):
    """One Euler step of the pixel stage, with guidance; the cache holds text and representation tokens."""

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        t_next: Tensor,
        guidance_scale: Tensor,
        row_requests: Tensor,
        uncond_rows: Tensor,
        row_starts: Tensor,
        past_lengths: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See runtime/signature.py."""
        hidden = self.model.embed_pixels(x_t, t).index_select(0, row_requests)  # [B, M, d]
        hidden = self.decoder.read("pixel", hidden, row_requests, row_starts, past_lengths, past)
        rows = self.model.pixel_out(self.final_norm("pixel", hidden)).float()
        patches = guide(rows, uncond_rows, guidance_scale[:, None, None])
        x_pred = unpatchify(patches, self.config.patch_size, *x_t.shape[2:])
        step = ((t_next - t) / (1 - t))[:, None, None, None]
        return x_t + step * (x_pred - x_t), x_pred


class VisionEncoder(CachedGraph):
    """Pictures as tokens that the text decoder reads: encoder and connector."""

    def forward(self, pixels: Tensor) -> Tensor:
        """See runtime/signature.py."""
        rows, columns = (side // self.config.patch_size for side in pixels.shape[2:])
        features = self.model.encoder(pixels.to(self.model.encoder.patch_in.weight.dtype))
        return self.model.connector(features, rows, columns)


GRAPHS: Final[dict[GraphName, type[CachedGraph]]] = {
    "text_decoder": TextDecoder,
    "rep_decoder": RepDecoder,
    "denoiser": Denoiser,
    "vision_encoder": VisionEncoder,
}
