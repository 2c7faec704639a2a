"""Building blocks shared by the decoder and the image encoder: linear, norm, rotary positions, SwiGLU, 2D positions.

Every block is written so that `torch.onnx.export` yields few plain operators and initialisers that *are* the
parameters. Knows nothing of token types. Axes: B batch, S tokens, H heads, D head size, d hidden size.
"""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TensorModule(nn.Module):
    """A module of one tensor; `nn.Module` itself leaves the types of a call open."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor:
            """See `forward`."""


class Linear(TensorModule):
    """`x @ weight (+ bias)` with the weight stored `[in, out]`, the layout that ONNX MatMul takes as it is."""

    def __init__(self, in_size: int, out_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_size, out_size))
        self.bias = nn.Parameter(torch.zeros(out_size)) if bias else None
        nn.init.normal_(self.weight, std=in_size**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in] -> [..., out]`."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class RMSNorm(TensorModule):
    """Root-mean-square norm over the last axis, computed in fp32 (a square overflows fp16 above 255)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`. With pow, sqrt and a division: the one form that ONNX Runtime 1.32 fuses."""
        x32 = x.float()
        normed = x32 / torch.sqrt(torch.mean(x32.pow(2), dim=-1, keepdim=True) + self.eps)
        return (normed * self.weight.float()).to(x.dtype)


class SwiGLU(TensorModule):
    """`down(silu(gate(x)) * up(x))`, gate and up in one weight (gate first)."""

    def __init__(self, size: int, ffn_size: int) -> None:
        super().__init__()
        self.gate_up = Linear(size, 2 * ffn_size)
        self.down = Linear(ffn_size, size)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, S, d] -> [B, S, d]`."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GridEmbedding(nn.Module):
    """2D position embedding: a learned row table plus a learned column table, started as sines and cosines."""

    def __init__(self, max_grid: int, size: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(_sinusoid(torch.arange(max_grid).float(), size) * 0.5)
        self.columns = nn.Parameter(_sinusoid(torch.arange(max_grid).float() + 0.5, size).flip(-1) * 0.5)

    def grid(self, num_rows: int, num_columns: int) -> Tensor:
        """All positions of a grid in raster order, `[num_rows * num_columns, d]`."""
        both = self.rows[:num_rows, None] + self.columns[None, :num_columns]
        return both.reshape(-1, both.shape[-1])

    def at(self, positions: Tensor) -> Tensor:
        """Embeddings of (row, column) pairs, `int64 [..., 2] -> [..., d]`."""
        return F.embedding(positions[..., 0], self.rows) + F.embedding(positions[..., 1], self.columns)


def _sinusoid(x: Tensor, size: int, longest: float = 1e4) -> Tensor:
    half = size // 2
    frequencies = torch.exp(-math.log(longest) * torch.arange(half, device=x.device).float() / half)
    angles = x[..., None] * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class TimeEmbedding(TensorModule):
    """Embedding of the flow time t in [0, 1]: sinusoid of 1000 t, then a two-layer MLP."""

    SIZE = 128

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc1 = Linear(self.SIZE, size, bias=True)
        self.fc2 = Linear(size, size, bias=True)

    def forward(self, t: Tensor) -> Tensor:
        """`float32 [B] -> [B, 1, d]` in the dtype of the weights."""
        wave = _sinusoid(t.float() * 1000, self.SIZE).to(self.fc1.weight.dtype)
        return self.fc2(F.silu(self.fc1(wave)))[:, None]


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (RoFormer, arXiv 2104.09864), fp32.

    `int64 [B, S] -> two of [B, S, 1, D/2]`.
    """
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)
    angles = positions[..., None].float() * frequencies
    return torch.cos(angles)[..., None, :], torch.sin(angles)[..., None, :]


def rotation(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """The tables that `rotate` takes: cosines for both halves, and sines with the sign of each half.

    `int64 [B, S] -> two of [B, S, 1, D]`, fp32.
    """
    cos, sin = rotary_tables(positions, head_dim, theta)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to `[B, S, H, D]` in the half-split layout of Llama and Qwen; tables of `rotation`."""
    x32 = x.float()
    first, second = x32.chunk(2, dim=-1)
    return (x32 * cos + torch.cat([second, first], dim=-1) * sin).to(x.dtype)


def patchify(pixels: Tensor, patch_size: int) -> Tensor:
    """`[B, 3, H, W] -> [B, (H/p)*(W/p), p*p*3]`, raster order, channels last inside a patch."""
    batch, channels, height, width = pixels.shape
    p = patch_size
    cut = pixels.reshape(batch, channels, height // p, p, width // p, p)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, (height // p) * (width // p), p * p * channels)


def unpatchify(patches: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """Inverse of `patchify`."""
    batch, p = patches.shape[0], patch_size
    cut = patches.reshape(batch, height // p, width // p, p, p, 3)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, height, width)
