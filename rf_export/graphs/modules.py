"""The exported graphs as PyTorch modules: what goes in and comes out, embeddings, guidance, sampling, Euler step.

How the decoder and its cache are spelt is the dialect's: `graphs_classic.py`, `graphs_modern.py`.

| graph | input | shape, dtype | output | shape, dtype |
|---|---|---|---|---|
| text_decoder | input_ids | [batch, sequence] int64 | next_ids | [batch] int64 |
| | row_starts | [batch] int64 | logits | [batch, V] float32 |
| | past_length | [1] int64 | present.{i}.key, .value, classic | [batch, H, sequence, D] kv |
| | image_features | [features, d] kv | present.{i}.key, .value, modern | [batch, H, cache, D] kv |
| | answer_ids | [batch, answer] int64 | | |
| | gumbel | [batch, V] float32 | | |
| | temperature | [batch] float32 | | |
| | top_k | [batch] int64 | | |
| | top_p, repetition_penalty | [batch] float32 | | |
| | past_key_values.{i}.key, .value | [batch, H, cache, D] kv | | |
| rep_decoder | rep_ids | [request] int64 | next_rep_ids | [request] int64 |
| | grid_positions | [request, 2] int64 | logits | [request, K] float32 |
| | row_starts | [2*request] int64 | present.{i}.key, .value, classic | [2*request, H, 1, D] kv |
| | past_length | [1] int64 | present.{i}.key, .value, modern | [2*request, H, cache, D] kv |
| | gumbel | [request, K] float32 | | |
| | guidance_scale, temperature | [request] float32 | | |
| | top_k | [request] int64 | | |
| | past_key_values.{i}.key, .value | [2*request, H, cache, D] kv | | |
| denoiser | x_t | [request, 3, height, width] float32 | x_next | as x_t |
| | t, t_next, guidance_scale | [request] float32 | x_pred | as x_t |
| | row_starts | [2*request] int64 | | |
| | past_length | [1] int64 | | |
| | past_key_values.{i}.key, .value | [2*request, H, cache, D] kv | | |
| vision_encoder | pixels | [images, 3, height, width] float32 | image_features | [images, tokens, d] kv |

An id of V or more in `input_ids` is an image token: row `id - V` of `image_features`. V in `answer_ids` is none.
Slot s of row b is visible if `row_starts[b] <= s < past_length`; new tokens take the slots from `past_length` on. In
`classic` only their rows come out; in `modern` the cache comes out with these rows in it, and may be the same memory.
Rows are left-padded, so a token's rotary position is its slot minus `row_starts[b]`. Guidance rows: first the
conditional rows of all requests, then the unconditional ones. Knows nothing of files or of ONNX.
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

    def prompt_bias(self, row_starts: Tensor, slots: Tensor, past_length: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """The bias of a run of tokens in `slots [S]` that see the cache and those before them."""

    def token_bias(self, row_starts: Tensor, past_length: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """The bias of one token that sees the cache and itself."""

    def patch_bias(self, hidden: Tensor, row_starts: Tensor, past_length: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """The bias of patches that see the cache and one another."""

    def extend(
        self,
        expert: Expert,
        hidden: Tensor,
        positions: Tensor,
        bias: Tensor,
        past_length: Tensor,
        past: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all layers over new tokens that go into the cache.

        Args:
            expert: Token type of the new tokens.
            hidden: `[B, S, d]`.
            positions: Rotary positions `[B, S]`.
            bias: From `prompt_bias` or `token_bias`.
            past_length: Slots in use, `[1]`.
            past: `[B, H, P, D]` each.

        Returns:
            Hidden states before the final norm, and `present`, as the table of the module says.
        """

    def read(self, expert: Expert, hidden: Tensor, positions: Tensor, bias: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """Run all layers over patches that leave the cache as it is and share one position `[B, 1]`."""


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
        past_length: Tensor,
        image_features: Tensor,
        answer_ids: Tensor,
        gumbel: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        repetition_penalty: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """See the table of the module."""
        hidden = self._embed(input_ids, image_features)
        slots = past_length + torch.arange(input_ids.shape[1])  # [S]
        # Max, not Clip: TensorRT lists no whole numbers for Clip.
        positions = torch.maximum(slots - row_starts[:, None], torch.zeros((), dtype=torch.int64))
        bias = self.decoder.prompt_bias(row_starts, slots, past_length, past)
        hidden, present = self.decoder.extend("understanding", hidden, positions, bias, past_length, past)
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
    """One step of the representation stage: decode, guide, sample."""

    def forward(
        self,
        rep_ids: Tensor,
        grid_positions: Tensor,
        row_starts: Tensor,
        past_length: Tensor,
        gumbel: Tensor,
        guidance_scale: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        """See the table of the module."""
        one = self.model.embed_rep(rep_ids[:, None], grid_positions[:, None])  # [R, 1, d]
        hidden = torch.cat([one, one])
        positions = (past_length - row_starts)[:, None]
        bias = self.decoder.token_bias(row_starts, past_length, past)
        hidden, present = self.decoder.extend("representation", hidden, positions, bias, past_length, past)
        rows = self.model.rep_head(self.final_norm("representation", hidden[:, 0])).float()
        with_text, without_text = rows.reshape(2, -1, self.config.rep_vocab_size).unbind(0)
        logits = without_text + guidance_scale[:, None] * (with_text - without_text)
        return sample(logits, gumbel, temperature, top_k), logits, *present


def sample(logits: Tensor, gumbel: Tensor, temperature: Tensor, top_k: Tensor) -> Tensor:
    """Top-k Gumbel-max draw, k at run time: `[R, K]`, `[R, K]`, `[R]`, `[R] -> int64 [R]`.

    The k-th largest value is a threshold, so ties at the border all stay in, and the noise belongs to the vocabulary
    entry: the draw does not depend on how a backend orders equal values.
    """
    scaled = logits / temperature[:, None]
    largest = torch.topk(scaled, min(TOPK_WIDTH, scaled.shape[1]), dim=1).values
    threshold = torch.gather(largest, 1, top_k[:, None] - 1)
    return torch.argmax(torch.where(scaled >= threshold, scaled + gumbel, -1e30), dim=1)


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
        row_starts: Tensor,
        past_length: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See the table of the module."""
        one = self.model.embed_pixels(x_t, t)  # [R, M, d]
        hidden = torch.cat([one, one])
        positions = (past_length - row_starts)[:, None]
        bias = self.decoder.patch_bias(hidden, row_starts, past_length, past)
        hidden = self.decoder.read("pixel", hidden, positions, bias, past)
        rows = self.model.pixel_out(self.final_norm("pixel", hidden))
        height, width = x_t.shape[2:]
        pixels = unpatchify(rows, self.config.patch_size, height, width).float()
        with_prefix, without_prefix = pixels.reshape(2, -1, 3, height, width).unbind(0)
        scale, step = guidance_scale[:, None, None, None], ((t_next - t) / (1 - t))[:, None, None, None]
        x_pred = without_prefix + scale * (with_prefix - without_prefix)
        return x_t + step * (x_pred - x_t), x_pred


class VisionEncoder(CachedGraph):
    """Pictures as tokens that the text decoder reads: encoder and connector."""

    def forward(self, pixels: Tensor) -> Tensor:
        """See the table of the module."""
        rows, columns = (side // self.config.patch_size for side in pixels.shape[2:])
        features = self.model.encoder(pixels.to(self.model.encoder.patch_in.weight.dtype))
        return self.model.connector(features, rows, columns)


GRAPHS: Final[dict[GraphName, type[CachedGraph]]] = {
    "text_decoder": TextDecoder,
    "rep_decoder": RepDecoder,
    "denoiser": Denoiser,
    "vision_encoder": VisionEncoder,
}
