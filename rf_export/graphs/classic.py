"""`classic` dialect: plain operators up to opset 20, for every version of TensorRT and of ONNX Runtime.

The cache is read only: keys and values of the new tokens are appended to it inside the graph, and only they come out,
so that no buffer is read and written by one engine (NVIDIA/TensorRT 4681). Knows nothing of embeddings and heads.
"""

import torch
from torch import Tensor

from rf_export.config import Expert
from rf_export.layers import RMSNorm, rotation
from rf_export.model import RFModel

MASKED = -1e4  # added to hidden scores: exp() is 0 in fp32 and fp16, and a row with nothing visible stays finite


def cache_bias(row_starts: Tensor, past_length: Tensor, past: tuple[Tensor, ...]) -> Tensor:
    """0 on visible cache slots, MASKED elsewhere: `[B, 1, 1, P]`."""
    slots = torch.arange(past[0].shape[2])
    visible = (slots >= row_starts[:, None]) & (slots < past_length)
    return torch.where(visible, 0.0, MASKED).to(past[0].dtype)[:, None, None]


class ClassicDecoder:
    """See `rf_export.graphs.modules.Decoder`."""

    def __init__(self, model: RFModel) -> None:
        self.model = model
        self.config = model.config

    def norm(self, module: RMSNorm, x: Tensor) -> Tensor:
        """The module's own spelling, which ONNX Runtime fuses."""
        return module(x)

    def prompt_bias(self, row_starts: Tensor, slots: Tensor, past_length: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """Causal: `[B, 1, groups * S, P + S]`, since the query heads of a group are rows."""
        new = torch.arange(slots.shape[0])
        causal = (new <= new[:, None]) & (slots >= row_starts[:, None, None])  # [B, S, S]
        new_bias = torch.where(causal, 0.0, MASKED).to(past[0].dtype)[:, None]
        old_bias = cache_bias(row_starts, past_length, past).expand(-1, -1, slots.shape[0], -1)
        groups = self.config.num_heads // self.config.num_kv_heads
        return torch.cat([old_bias, new_bias], -1).repeat(1, 1, groups, 1)

    def token_bias(self, row_starts: Tensor, past_length: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """The cache and the token itself: `[B, 1, 1, P + 1]`."""
        own = torch.zeros_like(row_starts, dtype=past[0].dtype)[:, None, None, None]
        return torch.cat([cache_bias(row_starts, past_length, past), own], -1)

    def patch_bias(self, hidden: Tensor, row_starts: Tensor, past_length: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """The cache, and every patch sees every patch: `[B, 1, 1, P + M]`."""
        patches = torch.zeros_like(hidden[:, :, 0])[:, None, None]
        return torch.cat([cache_bias(row_starts, past_length, past), patches], -1)

    def extend(
        self,
        expert: Expert,
        hidden: Tensor,
        positions: Tensor,
        bias: Tensor,
        past_length: Tensor,
        past: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all layers; the second result is the new rows, `[B, H, S, D]`."""
        return self._run(expert, hidden, positions, bias, past)

    def read(self, expert: Expert, hidden: Tensor, positions: Tensor, bias: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """Run all layers."""
        return self._run(expert, hidden, positions, bias, past)[0]

    def _run(
        self, expert: Expert, hidden: Tensor, positions: Tensor, bias: Tensor, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        cos, sin = rotation(positions, self.config.head_dim, self.config.rope_theta)
        present: list[Tensor] = []
        for i, layer in enumerate(self.model.decoder_layers):
            q, k, v = layer.project(expert, hidden, cos, sin)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
            present += [k, v]
            mixed = self._attend(q, torch.cat([past[2 * i], k], 2), torch.cat([past[2 * i + 1], v], 2), bias)
            hidden = layer.finish(expert, hidden, mixed)
        return hidden, tuple(present)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
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
