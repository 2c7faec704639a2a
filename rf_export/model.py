"""The RF decoder: one shared attention per layer, three experts chosen by token type.

Written for training and as the eager reference: whole segments of one token type at a time, attention by SDPA under an
explicit mask. The exported graphs (`graphs.py`) reuse the parameters but not this attention.
Axes: B batch, S tokens, H key/value heads, D head size, d hidden size, V text vocabulary, K representation vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rf_export.config import EXPERTS, Expert, ModelConfig
from rf_export.layers import GridEmbedding, Linear, RMSNorm, SwiGLU, TimeEmbedding, patchify, rotate, rotation
from rf_export.vision import Connector, ImageEncoder, Quantiser
from runtime.signature import ModelSpec


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one type: hidden states `[B, S, d]` and rotary positions `int64 [B, S]`."""

    expert: Expert
    hidden: Tensor
    positions: Tensor


KeyValue = tuple[Tensor, Tensor]  # two of [B, H, S, D]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention: `[B, Hq, S, D]`, two of `[B, H, P + S, D] -> [B, Hq, S, D]`."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # SDPA's backward pass on a CPU took 41% of a bf16 training step (torch 2.13); the plain spelling takes a third.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e4)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype) @ v


class ExpertBlock(nn.Module):
    """What a layer keeps per token type: both norms and the feed-forward network."""

    def __init__(self, config: ModelConfig, expert: Expert) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn = SwiGLU(config.hidden_size, config.ffn_sizes[expert])


class DecoderLayer(nn.Module):
    """Shared grouped-query attention with QK-norm, and three experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        width = config.num_heads * config.head_dim
        self.qkv = Linear(config.hidden_size, width + 2 * config.num_kv_heads * config.head_dim)
        self.out = Linear(width, config.hidden_size)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.experts = nn.ModuleDict({expert: ExpertBlock(config, expert) for expert in EXPERTS})

    def expert(self, name: Expert) -> ExpertBlock:
        """The block of one token type."""
        block = self.experts[name]
        assert isinstance(block, ExpertBlock)
        return block

    def project(
        self, expert: Expert, hidden: Tensor, tables: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `[B, S, Hq, D]`, keys and values `[B, S, H, D]`, normed, and rotated by tables of `rotation`."""
        batch, tokens, _ = hidden.shape
        qkv = self.qkv(self.expert(expert).attn_norm(hidden))
        q, k, v = qkv.reshape(batch, tokens, -1, self.head_dim).split(
            [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if tables is not None:
            rotated = rotate(torch.cat([q, k], dim=2), *tables)  # one run of small operators
            q, k = rotated.split([self.num_heads, self.num_kv_heads], dim=2)
        return q, k, v

    def finish(self, expert: Expert, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Output projection, residual and feed-forward: `[B, S, d]`, `[B, S, Hq*D] -> [B, S, d]`."""
        block = self.expert(expert)
        hidden = hidden + self.out(mixed)
        return hidden + block.ffn(block.ffn_norm(hidden))


class RFModel(nn.Module):
    """A Representation-Forcing model: decoder, embeddings, heads, image encoder, connector, quantiser."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.text_embedding = nn.Parameter(torch.randn(config.vocab_size, size) * 0.5)
        self.rep_embedding = nn.Parameter(torch.randn(config.rep_vocab_size + 1, size) * 0.5)  # last: start token
        self.rep_position = GridEmbedding(config.max_grid, size)
        self.pixel_position = GridEmbedding(2 * config.max_grid, size)
        self.pixel_in = Linear(config.patch_dim, size, bias=True)
        self.time = TimeEmbedding(size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.final_norms = nn.ModuleDict({expert: RMSNorm(size, config.norm_eps) for expert in EXPERTS})
        self.text_head = Linear(size, config.vocab_size)
        self.rep_head = Linear(size, config.rep_vocab_size)
        self.pixel_out = Linear(size, config.patch_dim, bias=True)
        self.encoder = ImageEncoder(config)
        self.connector = Connector(config)
        self.quantiser = Quantiser(config.rep_vocab_size, config.encoder.hidden_size)
        for layer in self.decoder_layers:  # residual branches start small (GPT-2, section 2.3)
            for branch in (layer.out, *(layer.expert(expert).ffn.down for expert in EXPERTS)):
                nn.init.normal_(branch.weight, std=branch.weight.shape[0] ** -0.5 * (2 * config.num_layers) ** -0.5)

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def embed_rep(self, ids: Tensor, grid_positions: Tensor) -> Tensor:
        """Representation token inputs: identity plus 2D position; `[B, S]`, `[B, S, 2]` or `[S, 2]` `-> [B, S, d]`."""
        return F.embedding(ids, self.rep_embedding) + self.rep_position.at(grid_positions)

    def embed_pixels(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Noisy patches with 2D position and flow time: `[B, 3, H, W]`, `[B] -> [B, M, d]`."""
        p = self.config.patch_size
        patches = patchify(x_t, p).to(self.pixel_in.weight.dtype)
        grid = self.pixel_position.grid(x_t.shape[2] // p, x_t.shape[3] // p)
        return self.pixel_in(patches) + grid + self.time(t)

    def run(
        self, segments: list[Segment], mask: Tensor | None, past: list[KeyValue] | None = None
    ) -> tuple[list[Tensor], list[KeyValue]]:
        """Run the decoder over segments that attend to each other and to `past` under one mask.

        Args:
            segments: token runs in sequence order, S tokens together.
            mask: bool, broadcastable to `[B, 1, S, P + S]`, true where attention is allowed; None allows all.
            past: per layer, keys and values of P earlier tokens.

        Returns:
            Final-normed hidden states of each segment, and per layer the keys and values of the S new tokens.
        """
        lengths = [segment.hidden.shape[1] for segment in segments]
        tables = [rotation(s.positions, self.config.head_dim, self.config.rope_theta) for s in segments]
        hidden = [segment.hidden for segment in segments]
        new: list[KeyValue] = []
        for i, layer in enumerate(self.decoder_layers):
            parts = [layer.project(s.expert, h, table) for s, h, table in zip(segments, hidden, tables, strict=True)]
            q, k, v = (torch.cat(tensors, dim=1).transpose(1, 2) for tensors in zip(*parts, strict=True))
            new.append((k, v))
            if past is not None:
                k, v = torch.cat([past[i][0], k], dim=2), torch.cat([past[i][1], v], dim=2)
            mixed = attend(q, k, v, mask).transpose(1, 2).flatten(2)
            pieces = mixed.split(lengths, dim=1)
            hidden = [layer.finish(s.expert, h, m) for s, h, m in zip(segments, hidden, pieces, strict=True)]
        return [self.final_norms[s.expert](h) for s, h in zip(segments, hidden, strict=True)], new


def model_spec(model: RFModel) -> ModelSpec:
    """What a host has to know of a model."""
    config = model.config
    names = (
        "patch_size",
        "hidden_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "vocab_size",
        "rep_vocab_size",
        "rep_start_id",
        "max_grid",
        "max_positions",
        "default_height",
        "default_width",
    )
    num_parameters = sum(p.numel() for p in model.parameters())
    shape = {name: getattr(config, name) for name in names}
    return ModelSpec(**shape, ffn_size=max(config.ffn_sizes.values()), num_parameters=num_parameters)
