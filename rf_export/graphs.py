"""The three exported graphs as PyTorch modules, `classic` dialect: plain operators, caches read only.

| graph | input | shape, dtype | output | shape, dtype |
|---|---|---|---|---|
| text_decoder | input_ids | [batch, sequence] int64 | logits | [batch, V] float32 |
| | row_starts | [batch] int64 | present.{i}.key, .value | [batch, H, sequence, D] kv |
| | past_length | [1] int64 | | |
| | past_key_values.{i}.key, .value | [batch, H, cache, D] kv | | |
| rep_decoder | rep_ids | [request] int64 | next_rep_ids | [request] int64 |
| | grid_positions | [request, 2] int64 | logits | [request, K] float32 |
| | row_starts | [2*request] int64 | present.{i}.key, .value | [2*request, H, 1, D] kv |
| | past_length | [1] int64 | | |
| | gumbel | [request, K] float32 | | |
| | guidance_scale, temperature | [request] float32 | | |
| | top_k | [request] int64 | | |
| | past_key_values.{i}.key, .value | [2*request, H, cache, D] kv | | |
| denoiser | x_t | [request, 3, height, width] float32 | x_next | as x_t |
| | t, t_next, guidance_scale | [request] float32 | x_pred | as x_t |
| | row_starts | [2*request] int64 | | |
| | past_length | [1] int64 | | |
| | past_key_values.{i}.key, .value | [2*request, H, cache, D] kv | | |

Slot s of row b is visible if `row_starts[b] <= s < past_length`; new tokens take the slots from `past_length` on. Rows
are left-padded, so a token's rotary position is its slot minus `row_starts[b]`. Guidance rows: first the conditional
rows of all requests, then the unconditional ones. Knows nothing of files or of ONNX.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rf_export.config import Expert
from rf_export.layers import rotary_tables, unpatchify
from rf_export.model import RFModel

MASKED = -1e4  # added to hidden scores: exp() is 0 in fp32 and fp16, and a row with nothing visible stays finite
MAX_TOP_K = 1024


class CachedDecoder(nn.Module):
    """What the three graphs share: the decoder over new tokens of one type and a static cache."""

    def __init__(self, model: RFModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def decode(
        self, expert: Expert, hidden: Tensor, positions: Tensor, bias: Tensor, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all layers.

        Args:
            expert: Token type of the new tokens.
            hidden: `[B, S, d]`.
            positions: Rotary positions `[B, S]`, or `[B, 1]` where all tokens share one.
            bias: Added to the scores, `[B, 1, S or 1, P + S]`.
            past: `key, value` of every layer, `[B, H, P, D]`.

        Returns:
            Hidden states before the final norm, and the new `key, value` rows of every layer, `[B, H, S, D]`.
        """
        cos, sin = rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
        present: list[Tensor] = []
        for i, layer in enumerate(self.model.decoder_layers):
            q, k, v = layer.project(expert, hidden, cos, sin)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
            present += [k, v]
            mixed = self.attend(q, torch.cat([past[2 * i], k], 2), torch.cat([past[2 * i + 1], v], 2), bias)
            hidden = layer.finish(expert, hidden, mixed)
        return hidden, tuple(present)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Grouped-query attention without repeating K and V: query heads of a group are extra rows.

        `[B, S, Hq, D]`, two of `[B, H, P + S, D] -> [B, S, Hq*D]`.
        """
        batch, tokens = q.shape[:2]
        heads, size = self.config.num_kv_heads, self.config.head_dim
        groups = self.config.num_heads // heads
        rows = (q * size**-0.5).reshape(batch, tokens, heads, groups, size).permute(0, 2, 3, 1, 4)
        scores = rows.reshape(batch, heads, groups * tokens, size) @ k.transpose(2, 3)
        mixed = torch.softmax(scores + bias, dim=-1) @ v
        mixed = mixed.reshape(batch, heads, groups, tokens, size).permute(0, 3, 1, 2, 4)
        return mixed.reshape(batch, tokens, heads * groups * size)

    def cache_bias(self, row_starts: Tensor, past_length: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """0 on visible cache slots, MASKED elsewhere: `[B, 1, 1, P]`."""
        slots = torch.arange(past[0].shape[2])
        visible = (slots >= row_starts[:, None]) & (slots < past_length)
        return torch.where(visible, 0.0, MASKED).to(past[0].dtype)[:, None, None]


class TextDecoder(CachedDecoder):
    """Prefill of prompts and text decoding with the understanding expert."""

    def forward(
        self, input_ids: Tensor, row_starts: Tensor, past_length: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """See the table of the module."""
        tokens = input_ids.shape[1]
        hidden = F.embedding(input_ids, self.model.text_embedding)
        new = torch.arange(tokens)
        slots = past_length + new  # [S]
        positions = (slots - row_starts[:, None]).clamp(min=0)
        causal = (new <= new[:, None]) & (slots >= row_starts[:, None, None])  # [B, S, S]
        new_bias = torch.where(causal, 0.0, MASKED).to(hidden.dtype)[:, None]
        old_bias = self.cache_bias(row_starts, past_length, past).expand(-1, -1, tokens, -1)
        groups = self.config.num_heads // self.config.num_kv_heads
        bias = torch.cat([old_bias, new_bias], -1).repeat(1, 1, groups, 1)
        hidden, present = self.decode("understanding", hidden, positions, bias, past)
        last = self.model.final_norms["understanding"](hidden[:, -1])
        return self.model.text_head(last).float(), *present


class RepDecoder(CachedDecoder):
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
        own = torch.zeros_like(row_starts, dtype=hidden.dtype)[:, None, None, None]
        bias = torch.cat([self.cache_bias(row_starts, past_length, past), own], -1)
        hidden, present = self.decode("representation", hidden, positions, bias, past)
        rows = self.model.rep_head(self.model.final_norms["representation"](hidden[:, 0])).float()
        with_text, without_text = rows.reshape(2, -1, self.config.rep_vocab_size).unbind(0)
        logits = without_text + guidance_scale[:, None] * (with_text - without_text)
        return sample(logits, gumbel, temperature, top_k), logits, *present


def sample(logits: Tensor, gumbel: Tensor, temperature: Tensor, top_k: Tensor) -> Tensor:
    """Top-k Gumbel-max draw, k at run time: `[R, K]`, `[R, K]`, `[R]`, `[R] -> int64 [R]`.

    The k-th largest value is a threshold, so ties at the border all stay in, and the noise belongs to the vocabulary
    entry: the draw does not depend on how a backend orders equal values.
    """
    scaled = logits / temperature[:, None]
    largest = torch.topk(scaled, min(MAX_TOP_K, scaled.shape[1]), dim=1).values
    threshold = torch.gather(largest, 1, top_k[:, None] - 1)
    return torch.argmax(torch.where(scaled >= threshold, scaled + gumbel, -1e30), dim=1)


class Denoiser(CachedDecoder):
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
        patches = torch.zeros_like(hidden[:, :, 0])[:, None, None]  # [B, 1, 1, M]: every patch sees every patch
        bias = torch.cat([self.cache_bias(row_starts, past_length, past), patches], -1)
        hidden, _ = self.decode("pixel", hidden, positions, bias, past)
        rows = self.model.pixel_out(self.model.final_norms["pixel"](hidden))
        height, width = x_t.shape[2:]
        pixels = unpatchify(rows, self.config.patch_size, height, width).float()
        with_prefix, without_prefix = pixels.reshape(2, -1, 3, height, width).unbind(0)
        scale, step = guidance_scale[:, None, None, None], ((t_next - t) / (1 - t))[:, None, None, None]
        x_pred = without_prefix + scale * (with_prefix - without_prefix)
        return x_t + step * (x_pred - x_t), x_pred


GRAPHS: dict[str, type[CachedDecoder]] = {
    "text_decoder": TextDecoder,
    "rep_decoder": RepDecoder,
    "denoiser": Denoiser,
}
