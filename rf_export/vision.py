"""Image encoder, connector, and the online quantiser that turns its features into representation tokens.

Source: arXiv 2605.31604 (`docs/model.md` quotes the choices). Knows nothing of the decoder but its width.
Axes: B batch, M pixel patches, N = M/4 representation tokens, K prototypes, e encoder width.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rf_export.config import ModelConfig
from rf_export.layers import GridEmbedding, Linear, RMSNorm, SwiGLU, TensorModule, patchify

ASSIGNMENT_TEMPERATURE = 0.5  # arXiv 2605.31604: scores = cosine / 0.5


class EncoderLayer(TensorModule):
    """Pre-norm ViT block with bidirectional attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.encoder.hidden_size
        self.num_heads = config.encoder.num_heads
        self.attn_norm = RMSNorm(size, config.norm_eps)
        self.qkv = Linear(size, 3 * size)
        self.out = Linear(size, size)
        self.ffn_norm = RMSNorm(size, config.norm_eps)
        self.ffn = SwiGLU(size, config.encoder.ffn_size)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, M, e] -> [B, M, e]`."""
        batch, tokens, size = x.shape
        qkv = self.qkv(self.attn_norm(x)).reshape(batch, tokens, 3, self.num_heads, size // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, size)
        x = x + self.out(mixed)
        return x + self.ffn(self.ffn_norm(x))


class ImageEncoder(TensorModule):
    """ViT over pixel patches of variable grid size."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        size = config.encoder.hidden_size
        self.patch_in = Linear(config.patch_dim, size, bias=True)
        self.position = GridEmbedding(2 * config.max_grid, size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder.num_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """Last-layer patch features before any final norm: `[B, 3, H, W]` in [-1, 1] `-> [B, M, e]`."""
        rows, columns = pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size
        x = self.patch_in(patchify(pixels, self.patch_size)) + self.position.grid(rows, columns)
        for layer in self.layers:
            x = layer(x)
        return x


class Connector(nn.Module):
    """Final norm, 2x2 merge and MLP from patch features to decoder inputs (merge as in Qwen2-VL)."""

    if TYPE_CHECKING:

        def __call__(self, features: Tensor, rows: int, columns: int) -> Tensor:
            """See `forward`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.encoder.hidden_size
        self.norm = RMSNorm(size, config.norm_eps)
        self.fc1 = Linear(4 * size, config.hidden_size, bias=True)
        self.fc2 = Linear(config.hidden_size, config.hidden_size, bias=True)

    def forward(self, features: Tensor, rows: int, columns: int) -> Tensor:
        """`[B, M, e]` on a grid of `rows x columns` patches `-> [B, N, d]`."""
        batch, _, size = features.shape
        cut = self.norm(features).reshape(batch, rows // 2, 2, columns // 2, 2, size)
        merged = cut.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns // 4, 4 * size)
        return self.fc2(F.silu(self.fc1(merged)))


def pooled_features(features: Tensor, rows: int, columns: int) -> Tensor:
    """2x2 average pooling, then unit length: `[B, rows*columns, e] -> [B, N, e]`."""
    batch, _, size = features.shape
    pooled = features.reshape(batch, rows // 2, 2, columns // 2, 2, size).mean((2, 4))
    return F.normalize(pooled.reshape(batch, -1, size), dim=-1)


class Quantiser(nn.Module):
    """K unit-norm prototypes; assignment by cosine, balanced over a batch by one Sinkhorn-Knopp iteration."""

    prototypes: Tensor  # [K, e]

    def __init__(self, num_prototypes: int, size: int) -> None:
        super().__init__()
        self.register_buffer("prototypes", F.normalize(torch.randn(num_prototypes, size), dim=-1))

    def assign(self, features: Tensor) -> Tensor:
        """Nearest prototype by cosine: unit-norm `[..., e] -> int64 [...]`."""
        return (features @ self.prototypes.T).argmax(-1)

    def assign_balanced(self, features: Tensor) -> Tensor:
        """Token ids of a batch: softmax over prototypes, then over samples; unit-norm `[n, e] -> int64 [n]`."""
        scores = features @ self.prototypes.T / ASSIGNMENT_TEMPERATURE
        log_p = F.log_softmax(scores, dim=1)
        return (log_p - torch.logsumexp(log_p, dim=0)).argmax(1)

    @torch.no_grad()
    def update(self, features: Tensor, ids: Tensor, momentum: float) -> None:
        """Move each used prototype towards the normalised mean of its features; an unused one keeps its value."""
        sums = torch.zeros_like(self.prototypes).index_add_(0, ids, features)
        counts = torch.bincount(ids, minlength=len(sums))[:, None]
        moved = F.normalize(momentum * self.prototypes + (1 - momentum) * F.normalize(sums, dim=-1), dim=-1)
        self.prototypes.copy_(torch.where(counts > 0, moved, self.prototypes))

    @torch.no_grad()
    def initialise(self, features: Tensor, generator: torch.Generator, num_iterations: int = 20) -> None:
        """Spherical k-means over unit-norm features `[n, e]` with n >= K.

        No prototype starts dead, as long as K features differ: plain k-means loses one where it starts with two in
        one cluster, or twice with the same feature.
        """
        num_prototypes = len(self.prototypes)
        if len(features) < num_prototypes:
            raise ValueError(f"need at least {num_prototypes} features to place the prototypes, got {len(features)}")
        chosen = torch.randperm(len(features), generator=generator)[:num_prototypes]
        self.prototypes.copy_(features[chosen])
        for _ in range(num_iterations):
            self.update(features, self.assign(features), momentum=0.0)
            self._revive(features)

    def _revive(self, features: Tensor) -> None:
        """Move prototypes that are nearest to no feature onto the features that are furthest from theirs."""
        best, ids = (features @ self.prototypes.T).max(-1)
        dead = torch.bincount(ids, minlength=len(self.prototypes)) == 0
        self.prototypes[dead] = features[best.argsort()[: int(dead.sum())]]
