"""The physical floor: what a step has to read and compute, and what this machine can read and compute per second.

No program can be faster than `bytes / bandwidth` and `FLOPs / matrix rate`. Both rates are measured here, with the
threads that the contenders get, as the best of several kernels. Knows nothing of how a step is run. Axes: M patches,
F image tokens, S new tokens, e encoder width, d decoder width.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

from rf_export.config import EXPERTS, Expert, ModelConfig

GUIDANCE_ROWS = 2
FP32_BYTES = 4
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Work of one step of one request; of a drawing, both guidance rows."""

    weight_bytes: int
    cache_bytes: int
    flops: int  # of the matrix products; a multiply-add counts as two

    @property
    def num_bytes(self) -> int:
        """Bytes that have to be read at least once."""
        return self.weight_bytes + self.cache_bytes

    def __add__(self, other: "StepCost") -> "StepCost":
        """Both, one after the other."""
        return StepCost(
            weight_bytes=self.weight_bytes + other.weight_bytes,
            cache_bytes=self.cache_bytes + other.cache_bytes,
            flops=self.flops + other.flops,
        )


def layer_parameters(config: ModelConfig, expert: Expert) -> int:
    """Weights of one layer's matrices that a token of this type meets."""
    assert expert in EXPERTS
    return attention_parameters(config) + 3 * config.hidden_size * config.ffn_sizes[expert]


def attention_parameters(config: ModelConfig) -> int:
    """Weights of one layer's attention, which all token types share."""
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return config.hidden_size * (width + 2 * kv_width) + width * config.hidden_size


def rep_step_cost(config: ModelConfig, num_slots: int, value_bytes: int = FP32_BYTES) -> StepCost:
    """A representation token: all weights of its expert once, and the cache of both rows once."""
    parameters = config.num_layers * layer_parameters(config, "representation")
    parameters += config.hidden_size * config.rep_vocab_size
    slots = config.num_layers * num_slots * config.head_dim
    attention = 2 * 2 * slots * config.num_heads  # scores, then values
    return StepCost(
        weight_bytes=value_bytes * parameters,
        cache_bytes=value_bytes * GUIDANCE_ROWS * 2 * slots * config.num_kv_heads,
        flops=GUIDANCE_ROWS * (2 * parameters + attention),
    )


def denoise_step_cost(config: ModelConfig, num_slots: int, num_patches: int, value_bytes: int = FP32_BYTES) -> StepCost:
    """M patches through the pixel expert; each sees the prefix and every patch."""
    per_patch = config.num_layers * layer_parameters(config, "pixel") + 2 * config.hidden_size * config.patch_dim
    slots = config.num_layers * config.head_dim * num_slots
    seen = config.num_layers * config.head_dim * (num_slots + num_patches)
    return StepCost(
        weight_bytes=value_bytes * per_patch,
        cache_bytes=value_bytes * GUIDANCE_ROWS * 2 * slots * config.num_kv_heads,
        flops=GUIDANCE_ROWS * num_patches * (2 * per_patch + 4 * seen * config.num_heads),
    )


def drawing_costs(
    config: ModelConfig, num_slots: int, num_patches: int, value_bytes: int = FP32_BYTES
) -> dict[str, StepCost]:
    """Of both kinds of step of a drawing."""
    return {
        "rep_step": rep_step_cost(config, num_slots, value_bytes),
        "denoise_step": denoise_step_cost(config, num_slots, num_patches, value_bytes),
    }


def encode_cost(config: ModelConfig, num_patches: int, value_bytes: int = FP32_BYTES) -> StepCost:
    """M patches through the image encoder, where all see all, and F = M/4 merged ones through the connector."""
    encoder, size = config.encoder, config.encoder.hidden_size
    per_patch = config.patch_dim * size + encoder.num_layers * (4 * size**2 + 3 * size * encoder.ffn_size)
    per_token = 4 * size * config.hidden_size + config.hidden_size**2
    attention = encoder.num_layers * 4 * num_patches**2 * size
    return StepCost(
        weight_bytes=value_bytes * (per_patch + per_token),
        cache_bytes=0,
        flops=2 * num_patches * per_patch + 2 * (num_patches // 4) * per_token + attention,
    )


def read_cost(config: ModelConfig, num_tokens: int, num_past: int, value_bytes: int = FP32_BYTES) -> StepCost:
    """S tokens of a prompt or an answer in one row, after `num_past` others; the head for the last one alone."""
    layers, head = config.num_layers * layer_parameters(config, "understanding"), config.hidden_size * config.vocab_size
    pairs = num_tokens * num_past + num_tokens * (num_tokens + 1) // 2  # who sees whom
    values = config.num_layers * config.head_dim
    return StepCost(
        weight_bytes=value_bytes * (layers + head),
        cache_bytes=value_bytes * 2 * values * config.num_kv_heads * num_past,
        flops=2 * num_tokens * layers + 2 * head + 4 * values * config.num_heads * pairs,
    )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What this machine does per second, with the given threads or on a device, in one dtype."""

    bandwidth: float  # bytes per second, reading a working set of the size in question
    matrix: float  # FLOP per second of a large matrix product

    def floor_seconds(self, cost: StepCost) -> float:
        """The larger of the two bounds."""
        return max(cost.num_bytes / self.bandwidth, cost.flops / self.matrix)


def measure_floors(
    costs: Mapping[str, StepCost], *, repeats: int = 12, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> dict[str, dict[str, float]]:
    """The floor of every kind of step, JSON-ready; on a CPU with torch's current number of threads.

    Args:
        costs: What a step reads and computes. The bandwidth is that of its working set: weights that fit into a cache
            are read faster.
        repeats: The best of so many runs counts.
        device: Where.
        dtype: Of what is read and multiplied.
    """
    floors = {}
    with device:
        matrix = _matrix_rate(repeats, dtype)
        for stage, cost in costs.items():
            rates = Rates(bandwidth=_bandwidth(cost.num_bytes, repeats, dtype), matrix=matrix)
            floors[stage] = {
                **asdict(cost),
                "bandwidth_gb_s": rates.bandwidth / 1e9,
                "matrix_gflop_s": rates.matrix / 1e9,
                "floor_ms": 1e3 * rates.floor_seconds(cost),
            }
    return floors


def _bandwidth(num_bytes: int, repeats: int, dtype: torch.dtype) -> float:
    columns = 1024
    matrix = torch.rand(max(num_bytes // (dtype.itemsize * columns), 64), columns).to(dtype)
    vector = torch.rand(columns).to(dtype)
    size = matrix.numel() * dtype.itemsize
    # A run of a few milliseconds at least, on a device also after the launches.
    loops = max(1, (2_000_000_000 if matrix.is_cuda else 20_000_000) // size)
    kernels: tuple[Callable[[], object], ...] = (lambda: torch.mv(matrix, vector), matrix.sum, matrix.amax)
    return max(size * loops / _best_seconds(kernel, loops, repeats, matrix.device) for kernel in kernels)


def _matrix_rate(repeats: int, dtype: torch.dtype) -> float:
    rates = []
    for side in (512, 1024, 2048) if dtype == torch.float32 else (2048, 4096, 8192):
        a, b = torch.rand(side, side).to(dtype), torch.rand(side, side).to(dtype)
        out = torch.empty(side, side, dtype=dtype)
        seconds = _best_seconds(functools.partial(torch.mm, a, b, out=out), 1, repeats, a.device)
        rates.append(2 * side**3 / seconds)
    return max(rates)


def _best_seconds(run: Callable[[], object], loops: int, repeats: int, device: torch.device) -> float:
    best = float("inf")
    for _ in range(repeats + 1):
        started = time.perf_counter()
        for _ in range(loops):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
