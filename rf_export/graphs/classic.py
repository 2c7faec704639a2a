"""`classic` dialect: plain operators up to opset 20, for every version of TensorRT and of ONNX Runtime.

The cache is read only: keys and values of the new tokens are appended to it inside the graph, and only they come out,
so that no buffer is read and written by one engine (NVIDIA/TensorRT 4681). Knows nothing of embeddings and heads.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from rf_export.config import Expert
from rf_export.layers import RMSNorm, rotate, rotation
from rf_export.model import RFModel

MASKED = -1e4  # added to hidden scores: exp() is 0 in fp32 and fp16, and a row with nothing visible stays finite
_ALL: Final = 2**63 - 1  # the end of an axis, for Slice


def cache_bias(row_starts: Tensor, past_lengths: Tensor, past: tuple[Tensor, ...]) -> Tensor:
    """0 on visible cache slots, MASKED elsewhere: `[B, 1, 1, P]`."""
    slots = torch.arange(past[0].shape[2])
    visible = (slots >= row_starts[:, None]) & (slots < past_lengths[:, None])
    return torch.where(visible, 0.0, MASKED).to(past[0].dtype)[:, None, None]


def patch_bias(num_patches: int, row_starts: Tensor, past_lengths: Tensor, past: tuple[Tensor, ...]) -> Tensor:
    """The cache, and every patch sees every patch: `[R, 1, 1, P + M]`."""
    patches = past[0].new_zeros(row_starts.shape[0], 1, 1, num_patches)
    return torch.cat([cache_bias(row_starts, past_lengths, past), patches], -1)


@torch.library.custom_op("rf_export::attend_patches", mutates_args=())
def attend_patches(
    q: Tensor, k: Tensor, v: Tensor, past_key: Tensor, past_value: Tensor, bias: Tensor, scale: float, never_empty: bool
) -> Tensor:
    """Attention of B rows of patches, of which the first R have a cache: `[B, H, groups * M, D]`, as `q`.

    One operator for torch, since `torch.export` (2.13) cannot say that B is R or more.

    Args:
        q: `[B, H, groups * M, D]`, the query heads of a group as rows.
        k: `[B, H, M, D]`.
        v: `[B, H, M, D]`.
        past_key: `[R, H, P, D]`.
        past_value: `[R, H, P, D]`.
        bias: `[R, 1, 1, P + M]`.
        scale: Of the scores.
        never_empty: In the graph a row stands for the rows without a cache where there are none, and is cut off again:
            TensorRT 8 refuses empty slices (NVIDIA/TensorRT 2102). Costs the attention of one more row.
    """
    num, parts = len(past_key), []
    for rows, keys, values, added in (
        (q[:num], torch.cat([past_key, k[:num]], 2), torch.cat([past_value, v[:num]], 2), bias),
        (q[num:], k[num:], v[num:], torch.zeros_like(bias[:1, :, :, :1])),
    ):
        scores = (rows @ keys.transpose(2, 3)) * scale
        parts.append(torch.softmax(scores + added, dim=-1) @ values)
    return torch.cat(parts)


@attend_patches.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q)


def _onnx_attend_patches(
    q: Any, k: Any, v: Any, past_key: Any, past_value: Any, bias: Any, scale: float, never_empty: bool
) -> Any:
    from onnxscript.onnx_opset import opset18  # the modules themselves run without it

    op: Any = opset18
    axis, end = op.Constant(value_ints=[0]), op.Constant(value_ints=[_ALL])
    num, all_rows = op.Shape(past_key, start=0, end=1), op.Shape(q, start=0, end=1)
    first = op.Min(num, op.Sub(all_rows, op.Constant(value_ints=[1]))) if never_empty else num
    (q_seeing, q_other), (k_seeing, k_other), (v_seeing, v_other) = (
        (op.Slice(x, axis, num, axis), op.Slice(x, first, end, axis)) for x in (q, k, v)
    )

    def attend(rows: Any, keys: Any, values: Any, added: Any) -> Any:
        scores = op.MatMul(rows, op.Transpose(keys, perm=[0, 1, 3, 2]))
        if scale != 1:
            scores = op.Mul(scores, op.CastLike(op.Constant(value_float=scale), rows))
        return op.MatMul(op.Softmax(scores if added is None else op.Add(scores, added), axis=-1), values)

    keys, values = op.Concat(past_key, k_seeing, axis=2), op.Concat(past_value, v_seeing, axis=2)
    mixed = op.Concat(attend(q_seeing, keys, values, bias), attend(q_other, k_other, v_other, None), axis=0)
    return op.Slice(mixed, axis, all_rows, axis) if never_empty else mixed


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {  # for torch.onnx.export
    torch.ops.rf_export.attend_patches.default: _onnx_attend_patches
}


class ClassicDecoder:
    """See `rf_export.graphs.modules.Decoder`."""

    def __init__(self, model: RFModel) -> None:
        self.model = model
        self.config = model.config
        self.never_empty = False  # see `attend_patches`

    def norm(self, module: RMSNorm, x: Tensor) -> Tensor:
        """The module's own spelling, which ONNX Runtime fuses."""
        return module(x)

    def causal_bias(self, slots: Tensor, row_starts: Tensor, past_lengths: Tensor, past: tuple[Tensor, ...]) -> Tensor:
        """`[B, 1, groups * S, P + S]`, since the query heads of a group are rows."""
        seen = (slots[:, None] <= slots[:, :, None]) & (slots[:, None] >= row_starts[:, None, None])  # [B, S, S]
        new = torch.where(seen, 0.0, MASKED).to(past[0].dtype)[:, None]
        old = cache_bias(row_starts, past_lengths, past).expand(-1, -1, slots.shape[1], -1)
        groups = self.config.num_heads // self.config.num_kv_heads
        return torch.cat([old, new], -1).repeat(1, 1, groups, 1)

    def extend(
        self,
        expert: Expert,
        hidden: Tensor,
        positions: Tensor,
        bias: Tensor,
        past_lengths: Tensor,
        past: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all layers; the second result is the new rows, `[B, H, S, D]`."""
        tables = rotation(positions, self.config.head_dim, self.config.rope_theta)
        present: list[Tensor] = []
        for i, layer in enumerate(self.model.decoder_layers):
            q, k, v = layer.project(expert, hidden, tables)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
            present += [k, v]
            keys, values = torch.cat([past[2 * i], k], 2), torch.cat([past[2 * i + 1], v], 2)
            rows, scale = self._grouped(q)
            scores = (rows @ keys.transpose(2, 3)) * scale
            hidden = layer.finish(expert, hidden, self._ungrouped(torch.softmax(scores + bias, dim=-1) @ values))
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
        """Run all layers. The patches have one position, so that the keys of the cache are turned back instead."""
        tables = rotation((row_starts - past_lengths)[:, None], self.config.head_dim, self.config.rope_theta)
        bias = patch_bias(hidden.shape[1], row_starts, past_lengths, past)
        for i, layer in enumerate(self.model.decoder_layers):
            q, k, v = layer.project(expert, hidden)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
            turned = rotate(past[2 * i], *tables)
            rows, scale = self._grouped(q)
            mixed = self.attend_patches(rows, k, v, turned, past[2 * i + 1], bias, scale)
            hidden = layer.finish(expert, hidden, self._ungrouped(mixed))
        return hidden

    def attend_patches(self, *inputs: Any) -> Tensor:
        """See the function; other compilers than ONNX's need another spelling."""
        mixed: Tensor = attend_patches(*inputs, self.never_empty)
        return mixed

    def _grouped(self, q: Tensor) -> tuple[Tensor, float]:
        """Query heads of a group as rows, without repeating K and V, and the scale that is left for the scores.

        `[B, S, Hq, D] -> [B, H, groups * S, D]`. ONNX Runtime fuses a scale of scores into their product; in float16 it
        comes before, since a sum may overflow.
        """
        batch, tokens, _, size = q.shape
        heads, scale = self.config.num_kv_heads, float(self.config.head_dim**-0.5)
        if q.dtype == torch.float16:
            q, scale = q * scale, 1.0
        rows = q.reshape(batch, tokens, heads, -1, size).permute(0, 2, 3, 1, 4)
        return rows.reshape(batch, heads, -1, size), scale

    def _ungrouped(self, mixed: Tensor) -> Tensor:
        """`[B, H, groups * S, D] -> [B, S, Hq*D]`."""
        batch, heads, _, size = mixed.shape
        groups = self.config.num_heads // heads
        rows = mixed.reshape(batch, heads, groups, -1, size).permute(0, 3, 1, 2, 4)
        return rows.reshape(batch, -1, heads * groups * size)
