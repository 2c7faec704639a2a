"""`modern` dialect, opset 24: TensorScatter, Attention, RotaryEmbedding and RMSNormalization, half as many nodes.

Prompt and representation tokens write their keys and values into the cache: `present` is `past` with the new rows in
it, and both may be one buffer, which makes the write truly in place. The denoiser only reads the cache, as in
`classic`: writing its patches there too would make the cache five times as long, and with it every step of the stages
before. Knows nothing of embeddings and heads.

Forms that the backends take (TensorRT: onnx/onnx-tensorrt docs/operators.md of 10.15; ONNX Runtime: 1.32, CPU):
Attention in 4-D with a mask of exactly `[B, 1, S, P]`, no past inside, one output; RotaryEmbedding with tables per row.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rf_export.config import Expert
from rf_export.graphs.classic import MASKED, patch_bias
from rf_export.layers import RMSNorm, rotary_tables
from rf_export.model import DecoderLayer, RFModel


@torch.library.custom_op("rf_export::tensor_scatter", mutates_args=())
def tensor_scatter(past: Tensor, update: Tensor, write_indices: Tensor) -> Tensor:
    """`past [B, H, P, D]` with `update [B, H, S, D]` from slot `write_indices[b]` on: ONNX TensorScatter-24."""
    slots = write_indices[:, None] + torch.arange(update.shape[2])  # [B, S]
    return past.scatter(2, slots[:, None, :, None].expand_as(update), update)


@tensor_scatter.register_fake
def _(past: Tensor, update: Tensor, write_indices: Tensor) -> Tensor:
    return torch.empty_like(past)


def _onnx_tensor_scatter(past: Any, update: Any, write_indices: Any) -> Any:
    from onnxscript.onnx_opset import opset24  # the modules themselves run without it

    return opset24.TensorScatter(past, update, write_indices, axis=-2, mode="linear")


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {  # for torch.onnx.export
    torch.ops.rf_export.tensor_scatter.default: _onnx_tensor_scatter
}


class ModernDecoder:
    """See `rf_export.graphs.modules.Decoder`."""

    def __init__(self, model: RFModel) -> None:
        self.model = model
        self.config = model.config

    def norm(self, module: RMSNorm, x: Tensor) -> Tensor:
        """RMSNormalization; its `stash_type` keeps squares in fp32."""
        return F.rms_norm(x, x.shape[-1:], module.weight, module.eps)

    def causal_bias(self, slots: Tensor, row_starts: Tensor, past_lengths: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """The slots up to each token's own, which is in the cache then: `[B, 1, S, P]`."""
        keys = torch.arange(past[0].shape[2])
        visible = (keys >= row_starts[:, None, None]) & (keys <= slots[:, :, None])
        return torch.where(visible, 0.0, MASKED).to(past[0].dtype)[:, None]

    def extend(
        self,
        expert: Expert,
        hidden: Tensor,
        positions: Tensor,
        bias: Tensor,
        past_lengths: Tensor,
        past: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all layers; the second result is the cache with the new rows in it, `[B, H, P, D]`."""
        tables = self._tables(positions, hidden)
        present: list[Tensor] = []
        for i, layer in enumerate(self.model.decoder_layers):
            q, k, v = self._project(layer, expert, hidden, tables)
            present.append(tensor_scatter(past[2 * i], k, past_lengths))
            present.append(tensor_scatter(past[2 * i + 1], v, past_lengths))
            hidden = self._finish(layer, expert, hidden, self._attend(q, present[-2], present[-1], bias))
        return hidden, tuple(present)

    def read(
        self,
        expert: Expert,
        hidden: Tensor,
        row_requests: Tensor,
        row_starts: Tensor,
        past_lengths: Tensor,
        past: tuple[Tensor, ...],
    ) -> Tensor:
        """Run all layers. The patches have one position, so that the keys of the cache are turned back instead.

        Unconditional rows get the cache of their request, all of it hidden: Attention takes no empty batch, which is
        what is left of them where nobody is guided.
        """
        patches, slots, num_requests = hidden.shape[1], past[0].shape[2], row_starts.shape[0]
        tables = self._tables((row_starts - past_lengths)[:, None].expand(-1, slots), hidden)
        is_conditional = torch.arange(row_requests.shape[0]) < num_requests  # rows [B]
        starts, lengths = (each.index_select(0, row_requests) for each in (row_starts, past_lengths))
        bias = patch_bias(patches, starts, torch.where(is_conditional, lengths, starts), past)
        bias = bias.expand(-1, -1, patches, -1)
        for i, layer in enumerate(self.model.decoder_layers):
            q, k, v = self._project(layer, expert, hidden)
            turned = torch.onnx.ops.rotary_embedding(past[2 * i], *tables)
            keys, values = (each.index_select(0, row_requests) for each in (turned, past[2 * i + 1]))
            mixed = self._attend(q, torch.cat([keys, k], 2), torch.cat([values, v], 2), bias)
            hidden = self._finish(layer, expert, hidden, mixed)
        return hidden

    def _tables(self, positions: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, `[B, S, D/2]`; RotaryEmbedding wants them in the dtype of what it rotates."""
        cos, sin = rotary_tables(positions, self.config.head_dim, self.config.rope_theta)
        return cos.squeeze(2).to(hidden.dtype), sin.squeeze(2).to(hidden.dtype)

    def _project(
        self, layer: DecoderLayer, expert: Expert, hidden: Tensor, tables: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[B, Hq, S, D]`, keys and values `[B, H, S, D]`, normed, and rotated where tables are given."""
        batch, tokens, _ = hidden.shape
        qkv = layer.qkv(self.norm(layer.expert(expert).attn_norm, hidden))
        q, k, v = (
            qkv.reshape(batch, tokens, -1, layer.head_dim)
            .transpose(1, 2)
            .split([layer.num_heads, layer.num_kv_heads, layer.num_kv_heads], dim=1)
        )
        q, k = self.norm(layer.q_norm, q), self.norm(layer.k_norm, k)
        if tables is not None:
            q, k = (torch.onnx.ops.rotary_embedding(x, *tables) for x in (q, k))
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """`[B, Hq, S, D]`, two of `[B, H, P, D] -> [B, S, Hq*D]`."""
        mixed = F.scaled_dot_product_attention(q, k, v, bias, scale=self.config.head_dim**-0.5, enable_gqa=True)
        return mixed.transpose(1, 2).flatten(2)

    def _finish(self, layer: DecoderLayer, expert: Expert, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Output projection, residual and feed-forward, as `DecoderLayer.finish`."""
        block = layer.expert(expert)
        hidden = hidden + layer.out(mixed)
        return hidden + block.ffn(self.norm(block.ffn_norm, hidden))
