"""Eager PyTorch and torch.compile drawing the same picture: the baselines, written to be as fast as PyTorch lets them.

One conditional and one unconditional row in one batch, or one row where nothing is guided; static caches written in
place (no concatenation, unlike the reference in `rf_export.eager`), attention that reads only what is visible. What is
fastest depends on the machine, so layouts and attention kernels are options, and the benchmark takes the best.
Everything that a step takes lies on the device before the first one. Axes: P cache slots, M patches, B = 2 rows.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rf_export.benchmark.workload import DrawingWork
from rf_export.config import Expert
from rf_export.graphs.modules import sample
from rf_export.layers import Linear, rotation, unpatchify
from rf_export.model import RFModel

# A mask [B, 1, S or 1, slots], or the end and each row's first one of the slots that all tokens see.
Seen = Tensor | tuple[int, tuple[int, ...]]
Layout = Literal["in_out", "out_in"]  # how weights lie in memory; nn.Linear is out_in
# "sdpa" has grouped queries and a mask, "repeat" repeats keys and values for SDPA's fused kernels, "split" needs no
# mask, since each guidance row sees a run of slots, and "matmul" is plain products.
Attention = Literal["sdpa", "matmul", "repeat", "split"]
Capture = Callable[[Callable[[], None]], Callable[[], None]]  # makes of a function one that replays what it does
CompileMode = Literal["default", "max-autotune", "reduce-overhead"]
TURN_RUNS = 64  # of the representation decoder in a timed turn
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How a baseline computes."""

    dtype: torch.dtype = torch.float32
    layout: Layout = "in_out"
    attention: Attention = "sdpa"
    compile: CompileMode | None = None
    graphs: bool = False  # one CUDA graph per step, captured by hand

    @property
    def family(self) -> str:
        """What the spelling competes as."""
        kind = "eager" if self.compile is None else "torch.compile"
        if self.compile == "reduce-overhead":  # the one with CUDA graphs of its own
            kind += " reduce-overhead"
        return f"{'CUDA graphs of ' * self.graphs}{kind} {PRECISIONS[self.dtype]}"

    @property
    def name(self) -> str:
        """The family and its options."""
        mode = "" if self.compile is None else f", {self.compile}"
        return f"{self.family} ({self.layout}, {self.attention}{mode})"


class StaticDecoder(nn.Module):
    """The decoder over new tokens of one type, with static caches `[B, H, slots, D]` of its own."""

    def __init__(self, model: RFModel, num_slots: int, attention: Attention, num_rows: int = 2) -> None:
        super().__init__()
        self.model, self.config, self.attention = model, model.config, attention
        shape = (num_rows, self.config.num_kv_heads, num_slots, self.config.head_dim)
        dtype = model.text_embedding.dtype
        self.keys = [torch.zeros(shape, dtype=dtype) for _ in range(self.config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype) for _ in range(self.config.num_layers)]

    def decode(self, expert: Expert, hidden: Tensor, positions: Tensor, slots: Tensor, seen: Seen) -> Tensor:
        """Write the tokens `[B, S, d]` into `slots [S]` of the first B rows and attend, all layers."""
        tables = rotation(positions, self.config.head_dim, self.config.rope_theta)
        for layer, keys, values in zip(self.model.decoder_layers, self.keys, self.values, strict=True):
            q, k, v = layer.project(expert, hidden, tables)
            if len(hidden) < len(keys):
                keys, values = keys[: len(hidden)], values[: len(hidden)]
            keys.index_copy_(2, slots, k.transpose(1, 2))
            values.index_copy_(2, slots, v.transpose(1, 2))
            visible = seen[0] if isinstance(seen, tuple) else seen.shape[-1]
            keys, values = keys[:, :, :visible], values[:, :, :visible]
            if isinstance(seen, tuple):
                mixed = self.attend_rows(q, keys, values, seen[1])
            else:
                mixed = self.attend(q, keys, values, seen)
            hidden = layer.finish(expert, hidden, mixed)
        normed: Tensor = self.model.final_norms[expert](hidden)
        return normed

    def attend_rows(self, q: Tensor, k: Tensor, v: Tensor, firsts: tuple[int, ...]) -> Tensor:
        """As `attend`, with row b seeing all slots from `firsts[b]` on."""
        rows = [
            F.scaled_dot_product_attention(
                q[b : b + 1].transpose(1, 2), k[b : b + 1, :, first:], v[b : b + 1, :, first:], enable_gqa=True
            )
            for b, first in enumerate(firsts)
        ]
        return torch.cat(rows).transpose(1, 2).flatten(2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """`[B, S, Hq, D]`, two of `[B, H, P, D] -> [B, S, Hq*D]`."""
        if self.attention == "repeat":
            groups = q.shape[2] // k.shape[1]
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
            mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask)
            return mixed.transpose(1, 2).flatten(2)
        if self.attention in ("sdpa", "split"):  # split where rows do not see whole runs: in the prompt
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


def compiled(step: Callable[..., Tensor], spelling: Spelling, decoder: StaticDecoder) -> Callable[..., Tensor]:
    """The step as the spelling runs it."""
    if spelling.compile is None:
        return step
    if decoder.keys[0].is_cuda:
        for cache in (*decoder.keys, *decoder.values):  # else written caches rule CUDA graphs out
            torch._dynamo.mark_static_address(cache)
        return torch.compile(step, dynamic=False, mode=spelling.compile)
    import torch._inductor.select_algorithm as inductor  # seconds, which eager spellings need not pay

    inductor.PRINT_AUTOTUNE = False  # a page of text per shape
    # All spellings share the code of a step: beyond the usual 8 versions of it the rest would run without a compiler.
    torch._dynamo.config.recompile_limit = 64
    # Frozen parameters: weights are packed once for the CPU's kernels, which is torch.compile at its best here.
    options = {"freezing": True, **torch._inductor.list_mode_options(spelling.compile)}
    return torch.compile(step, dynamic=False, options=options)


def spelt(model: RFModel, spelling: Spelling) -> RFModel:
    """The model with the spelling's dtype and layout: itself, where it has both."""
    if model.text_embedding.dtype == spelling.dtype and spelling.layout == "in_out":
        return model.requires_grad_(False)
    model = copy.deepcopy(model).to(spelling.dtype).requires_grad_(False)
    if spelling.layout == "out_in":
        for module in model.modules():
            if isinstance(module, Linear):
                module.weight.data = module.weight.data.t().contiguous().t()
    return model


class Baseline:
    """Draws the workload's picture; `draw_tokens` and `denoise` may be repeated.

    Args:
        model: On the device that computes, from `spelt`; several baselines may share it.
        workload: What to draw.
        spelling: How.
        capture: Of CUDA graphs.
    """

    def __init__(
        self, model: RFModel, workload: DrawingWork, spelling: Spelling, capture: Capture | None = None
    ) -> None:
        self.model, self.spelling, self.work = model, spelling, workload
        plan, device = workload.plan, model.text_embedding.device
        self.num_patches = 4 * plan.num_rep_tokens
        num_slots, columns = workload.num_slots, plan.grid[1]
        num_runs = workload.num_decoder_runs
        with device:
            self.decoder = StaticDecoder(model, num_slots + self.num_patches, spelling.attention)
            self.starts = torch.tensor([0, len(workload.prompt_ids)])  # of the rows; no text in the second one
            self.firsts = torch.tensor([0, num_slots])  # the unconditional row sees neither text nor tokens
            self.slots = torch.arange(num_slots + self.num_patches)
            self.spots = torch.tensor([divmod(max(n - 1, 0), columns) for n in range(num_runs)])  # [N + 1, 2]
            self.temperature = torch.full((1, 1, 1), plan.temperature)
            self.top_k = torch.full((1, 1, 1), plan.top_k)
            self.start = torch.tensor([workload.rep_start_id])
        gumbel = torch.from_numpy(workload.gumbel)
        self.gumbel = torch.cat([gumbel, gumbel[-1:]]).to(device)  # [N + 1, K]
        self.noise = torch.from_numpy(workload.noise)[None].to(device)
        self.times = torch.from_numpy(workload.times).to(device)
        self._steps = GraphedSteps(self, capture) if spelling.graphs and capture is not None else None
        self._rep_step = compiled(self.rep_step, spelling, self.decoder)
        self._denoise_step = compiled(self.denoise_step, spelling, self.decoder)

    @torch.no_grad()
    def prefill(self) -> None:
        """Read the prompt."""
        num_tokens = len(self.work.prompt_ids)
        ids = torch.from_numpy(self.work.prompt_ids).to(self.noise.device)
        hidden = F.embedding(ids, self.model.text_embedding)[None].expand(2, -1, -1)
        slots = self.slots[:num_tokens]
        causal = (slots <= slots[:, None])[None, None].expand(2, -1, -1, -1)
        self.decoder.decode("understanding", hidden, slots.expand(2, -1), slots, causal)

    @torch.no_grad()
    def draw_tokens(self, forced: NDArray[np.int64] | None = None, runs: range | None = None) -> NDArray[np.int64]:
        """The representation stage after `prefill`, `[N]`: what was drawn.

        Args:
            forced: tokens to go on with instead, `[N]`.
            runs: some of the N + 1 runs of the decoder only, to time them.
        """
        runs = runs or range(self.work.num_decoder_runs)
        following = None if forced is None else torch.from_numpy(forced).to(self.noise.device)
        if self._steps is not None:
            return self._steps.draw_tokens(runs, following)
        first_slot, last = len(self.work.prompt_ids), self.start
        ids: list[Tensor] = []
        for n in runs:
            # Compiled code needs one shape, and so sees all slots; eager code reads only the visible ones.
            visible = self.work.num_slots if self.spelling.compile else first_slot + n + 1
            slot = self.slots[first_slot + n : first_slot + n + 1]
            last = self._stepped(self._rep_step, last, self.spots[n : n + 1], slot, self.gumbel[n : n + 1], visible)
            ids.append(last)
            if following is not None and n < len(following):
                last = following[n : n + 1]
        return torch.cat(ids).cpu().numpy()[: self.work.plan.num_rep_tokens]

    def turn_tokens(self) -> int:
        """Some runs of the representation stage, from the middle, where the cache is half full; returns how many."""
        num_runs = self.work.num_decoder_runs
        count = min(TURN_RUNS, num_runs)
        first = (num_runs - count) // 2
        self.draw_tokens(runs=range(first, first + count))
        return count

    def _stepped(self, step: Callable[..., Tensor], *arguments: object) -> Tensor:
        if self.spelling.compile != "reduce-overhead":
            return step(*arguments)
        torch.compiler.cudagraph_mark_step_begin()
        return step(*arguments).clone()  # the next run of its CUDA graph overwrites the result

    def rep_step(self, last: Tensor, spot: Tensor, slot: Tensor, gumbel: Tensor, visible: int) -> Tensor:
        """One representation token: `[1]`, `[1, 2]`, `[1]`, `[1, K]`, the slots to look at `-> [1]`."""
        plan, end = self.work.plan, len(self.work.prompt_ids)
        num_rows = 1 + plan.guides_tokens
        starts = self.starts[:num_rows]
        hidden = self.model.embed_rep(last[:, None], spot[:, None]).expand(num_rows, -1, -1)
        seen: Seen
        if self.spelling.attention == "split" and self.spelling.compile is None and not self.spelling.graphs:
            seen = (visible, (0, end)[:num_rows])
        else:
            slots = self.slots[:visible]
            seen = ((slots >= starts[:, None]) & (slots <= slot))[:, None, None]
        hidden = self.decoder.decode("representation", hidden, (slot - starts)[:, None], slot, seen)
        logits = rows = self.model.rep_head(hidden[:, 0]).float()
        if num_rows > 1:
            logits = rows[1:] + plan.rep_guidance_scale * (rows[:1] - rows[1:])
        return sample(logits[None], gumbel[None], self.temperature, self.top_k)[0]

    @torch.no_grad()
    def denoise(self, num_steps: int) -> NDArray[np.float32]:
        """The first `num_steps` Euler steps after `draw_tokens`, `[3, H, W]`."""
        if self._steps is not None:
            return self._steps.denoise(num_steps)
        x = self.noise
        for i in range(num_steps):
            times = self.times[i : i + 1], self.times[i + 1 : i + 2]
            x = self._stepped(self._denoise_step, x, *times, self.num_rows(i))
        return x[0].cpu().numpy()

    def num_rows(self, step: int) -> int:
        """2 where the step is guided."""
        return 1 + self.work.plan.is_guided(self.work.plan.times[step])

    def denoise_step(self, x: Tensor, t: Tensor, t_next: Tensor, num_rows: int) -> Tensor:
        """One Euler step: `[1, 3, H, W]`, `[1]`, `[1]`, and the rows that it takes `-> [1, 3, H, W]`."""
        prefix, plan = self.work.num_slots, self.work.plan
        hidden, firsts = self.model.embed_pixels(x, t).expand(num_rows, -1, -1), self.firsts[:num_rows]
        seen: Seen = (prefix + self.num_patches, (0, prefix)[:num_rows])
        if self.spelling.attention != "split":
            seen = (self.slots >= firsts[:, None])[:, None, None]
        positions = (prefix - firsts)[:, None].expand(-1, self.num_patches)
        hidden = self.decoder.decode("pixel", hidden, positions, self.slots[prefix:], seen)
        rows = unpatchify(self.model.pixel_out(hidden), self.model.config.patch_size, *x.shape[2:]).float()
        x_pred = rows[:1]
        if num_rows > 1:
            x_pred = rows[1:] + plan.pix_guidance_scale * (x_pred - rows[1:])
        return x + (t_next - t) / (1 - t) * (x_pred - x)


class GraphedSteps:
    """Both steps of a baseline as CUDA graphs that count by themselves: a replay copies nothing and takes nothing."""

    def __init__(self, baseline: Baseline, capture: Capture) -> None:
        self._baseline, self._capture = baseline, capture
        work = baseline.work
        self._n = torch.zeros(1, dtype=torch.int64, device=baseline.noise.device)
        self._last, self._x = baseline.start.clone(), baseline.noise.clone()
        self._ids = self._n.repeat(work.num_decoder_runs)
        self._slots = baseline.slots[len(work.prompt_ids) : work.num_slots]
        self._replays: dict[str, Callable[[], None]] = {}

    def _replay(self, name: str, body: Callable[[], None]) -> Callable[[], None]:
        if name not in self._replays:
            self._n.zero_()  # a capture may run the body
            self._replays[name] = self._capture(body)
        return self._replays[name]

    def draw_tokens(self, runs: range, forced: Tensor | None) -> NDArray[np.int64]:
        """See `Baseline.draw_tokens`."""
        replay = self._replay("tokens", self._token)
        self._n.fill_(runs.start)
        self._last.copy_(self._baseline.start)
        for n in runs:
            replay()
            if forced is not None and n < len(forced):
                self._last.copy_(forced[n : n + 1])
        return self._ids.cpu().numpy()[: self._baseline.work.plan.num_rep_tokens]

    def denoise(self, num_steps: int) -> NDArray[np.float32]:
        """See `Baseline.denoise`."""
        rows = [self._baseline.num_rows(step) for step in range(num_steps)]
        replays = {num: self._replay(f"{num} rows", functools.partial(self._pixels, num)) for num in set(rows)}
        self._n.zero_()
        self._x.copy_(self._baseline.noise)
        for num in rows:
            replays[num]()
        return self._x[0].cpu().numpy()

    def _token(self) -> None:
        baseline, n = self._baseline, self._n
        spot, slot, gumbel = (table.index_select(0, n) for table in (baseline.spots, self._slots, baseline.gumbel))
        self._last.copy_(baseline.rep_step(self._last, spot, slot, gumbel, baseline.work.num_slots))
        self._ids.index_copy_(0, n, self._last)
        n.add_(1)

    def _pixels(self, num_rows: int) -> None:
        times, n = self._baseline.times, self._n
        t, t_next = times.index_select(0, n), times.index_select(0, n + 1)
        self._x.copy_(self._baseline.denoise_step(self._x, t, t_next, num_rows))
        n.add_(1)
