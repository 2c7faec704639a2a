"""Eager PyTorch and torch.compile drawing the same picture: the baselines, written to be as fast as PyTorch lets them.

One conditional and one unconditional row in one batch, static caches written in place (no concatenation, unlike the
reference in `rf_export.eager`), attention that reads only what is visible. What is fastest depends on the machine, so
layouts and attention kernels are options, and the benchmark takes the best. Axes: P cache slots, M patches, B = 2 rows.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rf_export.benchmark.workload import Workload
from rf_export.config import Expert
from rf_export.graphs import sample
from rf_export.layers import Linear, rotation, unpatchify
from rf_export.model import RFModel

Layout = Literal["in_out", "out_in"]  # how weights lie in memory; nn.Linear is out_in
Attention = Literal["sdpa", "matmul"]
CompileMode = Literal["default", "max-autotune"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a baseline computes."""

    dtype: torch.dtype = torch.float32
    layout: Layout = "in_out"
    attention: Attention = "sdpa"
    compile: CompileMode | None = None

    @property
    def family(self) -> str:
        """What the variant competes as."""
        precision = "fp32" if self.dtype == torch.float32 else "bf16"
        return f"{'eager' if self.compile is None else 'torch.compile'} {precision}"

    @property
    def name(self) -> str:
        """The family and its options."""
        mode = "" if self.compile is None else f", {self.compile}"
        return f"{self.family} ({self.layout}, {self.attention}{mode})"


class StaticDecoder(nn.Module):
    """The decoder over new tokens of one type, with static caches `[B, H, slots, D]` of its own."""

    def __init__(self, model: RFModel, num_slots: int, attention: Attention) -> None:
        super().__init__()
        self.model, self.config, self.attention = model, model.config, attention
        shape = (2, self.config.num_kv_heads, num_slots, self.config.head_dim)
        dtype = model.text_embedding.dtype
        self.keys = [torch.zeros(shape, dtype=dtype) for _ in range(self.config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype) for _ in range(self.config.num_layers)]

    def decode(self, expert: Expert, hidden: Tensor, positions: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
        """Write the tokens `[B, S, d]` into `slots [S]`, attend under `mask [B, 1, S or 1, slots]`, all layers."""
        tables = rotation(positions, self.config.head_dim, self.config.rope_theta)
        for layer, keys, values in zip(self.model.decoder_layers, self.keys, self.values, strict=True):
            q, k, v = layer.project(expert, hidden, *tables)
            keys.index_copy_(2, slots, k.transpose(1, 2))
            values.index_copy_(2, slots, v.transpose(1, 2))
            visible = mask.shape[-1]
            hidden = layer.finish(expert, hidden, self.attend(q, keys[:, :, :visible], values[:, :, :visible], mask))
        return self.model.final_norms[expert](hidden)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """`[B, S, Hq, D]`, two of `[B, H, P, D] -> [B, S, Hq*D]`."""
        if self.attention == "sdpa":
            mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, enable_gqa=True)
            return mixed.transpose(1, 2).flatten(2)
        batch, tokens, heads, size = q.shape
        groups = heads // k.shape[1]
        rows = (q * size**-0.5).reshape(batch, tokens, -1, groups, size).permute(0, 2, 3, 1, 4)
        scores = rows.reshape(batch, -1, groups * tokens, size) @ k.transpose(2, 3)
        bias = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -1e4)
        if mask.shape[2] > 1:
            bias = bias.repeat(1, 1, groups, 1)
        mixed = torch.softmax(scores + bias, dim=-1) @ v
        mixed = mixed.reshape(batch, -1, groups, tokens, size).permute(0, 3, 1, 2, 4)
        return mixed.reshape(batch, tokens, heads * size)


class Baseline:
    """Draws the workload's picture; `draw_tokens` and `denoise` may be repeated."""

    def __init__(self, model: RFModel, workload: Workload, variant: Variant) -> None:
        model = copy.deepcopy(model).to(variant.dtype).requires_grad_(False)
        if variant.layout == "out_in":
            for module in model.modules():
                if isinstance(module, Linear):
                    module.weight.data = module.weight.data.t().contiguous().t()
        self.model, self.variant, self.work = model, variant, workload
        num_patches = 4 * workload.plan.num_rep_tokens
        self.decoder = StaticDecoder(model, workload.num_slots + num_patches, variant.attention)
        self.starts = torch.tensor([0, len(workload.prompt_ids)])  # of the rows; no text in the second one
        self._rep_step = self._compiled(self._rep_step_eager)
        self._denoise_step = self._compiled(self._denoise_step_eager)

    def _compiled(self, step: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if self.variant.compile is None:
            return step
        import torch._inductor.select_algorithm as inductor  # seconds, which eager variants need not pay

        inductor.PRINT_AUTOTUNE = False  # a page of text per shape
        # Frozen parameters: weights are packed once for the CPU's kernels, which is torch.compile at its best here.
        options = {"freezing": True, **torch._inductor.list_mode_options(self.variant.compile)}
        return torch.compile(step, dynamic=False, options=options)

    @torch.no_grad()
    def prefill(self) -> None:
        """Read the prompt."""
        ids = torch.from_numpy(self.work.prompt_ids)
        hidden = F.embedding(ids, self.model.text_embedding)[None].expand(2, -1, -1)
        slots = torch.arange(len(ids))
        causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None].expand(2, -1, -1, -1)
        self.decoder.decode("understanding", hidden, slots.expand(2, -1), slots, causal)

    @torch.no_grad()
    def draw_tokens(self) -> NDArray[np.int64]:
        """The representation stage after `prefill`, `[N]`."""
        work, columns = self.work, self.work.plan.grid[1]
        last = torch.tensor([work.rep_start_id])
        ids: list[Tensor] = []
        for n in range(work.num_decoder_runs):
            spot = torch.tensor([divmod(max(n - 1, 0), columns)])
            slot = torch.tensor([len(work.prompt_ids) + n])
            gumbel = torch.from_numpy(work.gumbel[min(n, len(work.gumbel) - 1)])[None]
            # Compiled code needs one shape, and so sees all slots; eager code reads only the visible ones.
            visible = work.num_slots if self.variant.compile else int(slot) + 1
            last = self._rep_step(last, spot, slot, gumbel, visible)
            ids.append(last)
        return torch.cat(ids[:-1]).numpy()

    def _rep_step_eager(self, last: Tensor, spot: Tensor, slot: Tensor, gumbel: Tensor, visible: int) -> Tensor:
        plan = self.work.plan
        hidden = self.model.embed_rep(last[:, None], spot[:, None]).expand(2, -1, -1)
        slots = torch.arange(visible)
        mask = ((slots >= self.starts[:, None]) & (slots <= slot))[:, None, None]
        hidden = self.decoder.decode("representation", hidden, (slot - self.starts)[:, None], slot, mask)
        with_text, without_text = self.model.rep_head(hidden[:, 0]).float().unbind(0)
        logits = without_text + plan.rep_guidance_scale * (with_text - without_text)
        temperature, top_k = torch.full((1,), plan.temperature), torch.full((1,), plan.top_k)
        return sample(logits[None], gumbel, temperature, top_k)

    @torch.no_grad()
    def denoise(self, num_steps: int) -> NDArray[np.float32]:
        """The first `num_steps` Euler steps after `draw_tokens`, `[3, H, W]`."""
        x = torch.from_numpy(self.work.noise)[None]
        for t, t_next in zip(self.work.times[:num_steps], self.work.times[1:], strict=False):
            x = self._denoise_step(x, torch.tensor([t]), torch.tensor([t_next]))
        return x[0].numpy()

    def _denoise_step_eager(self, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        prefix, plan = self.work.num_slots, self.work.plan
        hidden = self.model.embed_pixels(x, t).expand(2, -1, -1)
        slots = torch.arange(prefix + hidden.shape[1])
        first = torch.tensor([0, prefix])  # the unconditional row sees neither text nor tokens
        mask = (slots >= first[:, None])[:, None, None]
        positions = (prefix - first)[:, None].expand(-1, hidden.shape[1])
        hidden = self.decoder.decode("pixel", hidden, positions, slots[prefix:], mask)
        rows = unpatchify(self.model.pixel_out(hidden), self.model.config.patch_size, *x.shape[2:]).float()
        with_prefix, without_prefix = rows.split(1)
        x_pred = without_prefix + plan.pix_guidance_scale * (with_prefix - without_prefix)
        return x + (t_next - t) / (1 - t) * (x_pred - x)
