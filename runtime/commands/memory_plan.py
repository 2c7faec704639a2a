"""How much memory drawing and reading take, from the shape of a model: to be known before a board is bought.

Knows nothing of files. Weights and cache are exact; activations are an upper estimate for graphs whose attention is not
fused, so that all scores of a layer are held: measured peaks of ONNX Runtime were 0.2 to 0.9 of it
(`python docs/memory_table.py BUNDLE` measures again). With fused attention a GPU needs less; half precision takes half
there, and not on a CPU, whose kernels compute in fp32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from runtime.errors import RFError
from runtime.signature import ModelSpec, Precision, is_half

GIB = 2**30
MIB = 2**20
BOARDS_GIB = (8, 16, 32, 64)  # of one memory for CPU and GPU, as Jetson boards have
RESERVE_MIB = 2560  # system, CUDA context and libraries; an assumption, not measured
SCORE_COPIES = 3  # of a layer's attention scores: raw, masked, softmax
SLACK = 1.75  # of the allocator, so that no measured peak was above the estimate
HALVES_ON_CPU = 1.1  # of what fp32 takes there: numbers are copied from one type to the other
FIRST_RUN_MIB = 32  # small buffers of all graphs


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is drawn at once. A size of None is the model's default."""

    num_requests: int = 1
    height: int | None = None
    width: int | None = None
    prompt_tokens: int = 32
    on_cpu: bool = False  # by ONNX Runtime, which computes there in fp32 whatever the graphs keep


@dataclass(frozen=True)
class Memory:
    """Bytes of a drawing in one precision."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of it; libraries and system come on top."""
        return self.weights + self.cache + self.activations


def drawing_memory(model: ModelSpec, precision: Precision, weights: int, work: Workload) -> Memory:
    """Memory of drawing `work.num_requests` pictures together.

    Args:
        model: The shape.
        precision: Of the graphs.
        weights: Their bytes, shared by all graphs.
        work: What is drawn.

    Raises:
        RFError: The model does not draw such pictures, or its bundle is too old to tell the widths of its layers.
    """
    rows, columns = _grid(model, work)
    slots = work.prompt_tokens + rows * columns + 1
    return Memory(
        weights,
        cache_bytes(model, precision, work.num_requests, slots),
        _activations(model, precision, work, 4 * rows * columns, slots),
    )


def cache_bytes(model: ModelSpec, precision: Precision, num_requests: int, slots: int) -> int:
    """Bytes of the key/value cache: two rows per request, for guidance."""
    values = 2 * model.num_layers * 2 * num_requests * model.num_kv_heads * slots * model.head_dim
    return values * _value_bytes(precision)


def largest_batch(model: ModelSpec, precision: Precision, weights: int, work: Workload, available: int) -> int:
    """How many pictures fit into `available` bytes together; 0 where not even one does."""
    one = drawing_memory(model, precision, weights, replace(work, num_requests=1)).total
    per_picture = drawing_memory(model, precision, weights, replace(work, num_requests=2)).total - one
    return max(0, 1 + (available - one) // per_picture)


@dataclass(frozen=True)
class Fit:
    """A precision's memory, and the most pictures at once on each size of board."""

    precision: Precision
    memory: Memory
    pictures_at_once: dict[int, int]  # by GiB of the board

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {**asdict(self), "total": self.memory.total}

    def cells(self) -> list[str]:
        """For a table, in MiB: weights, cache, activations, total, and the pictures on each board."""
        memory = self.memory
        sizes = [f"{size / MIB:,.0f}" for size in (memory.weights, memory.cache, memory.activations, memory.total)]
        return sizes + [str(batch) if batch else "does not fit" for batch in self.pictures_at_once.values()]


def fits(model: ModelSpec, weights: Mapping[Precision, int], work: Workload) -> list[Fit]:
    """One row per precision; raises RFError as `drawing_memory` does."""
    rows = []
    for precision, size in weights.items():
        available = {board: board * GIB - RESERVE_MIB * MIB for board in BOARDS_GIB}
        batches = {board: largest_batch(model, precision, size, work, free) for board, free in available.items()}
        rows.append(Fit(precision, drawing_memory(model, precision, size, work), batches))
    return rows


def format_fits(rows: Sequence[Fit]) -> str:
    """A table in Markdown, in MiB."""
    boards = " | ".join(f"at once on {board} GB" for board in BOARDS_GIB)
    lines = [f"| precision | weights, MiB | cache | activations, at most | together | {boards} |"]
    lines.append("|---" * (5 + len(BOARDS_GIB)) + "|")
    lines += ["| " + " | ".join([row.precision, *row.cells()]) + " |" for row in rows]
    return "\n".join(lines)


def _activations(model: ModelSpec, precision: Precision, work: Workload, patches: int, slots: int) -> int:
    """A denoising step, the largest of all: every patch sees the cache and every patch."""
    if model.num_heads is None or model.ffn_size is None:
        raise RFError("This bundle was exported before its manifest told the widths of its layers. Export it again.")
    linear = 4 * model.hidden_size + 3 * model.ffn_size + (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    scores = SCORE_COPIES * model.num_heads * (slots + patches)
    values = 2 * work.num_requests * patches * (linear + scores)
    size = 4 * HALVES_ON_CPU if work.on_cpu and is_half(precision) else _value_bytes(precision)
    return int(SLACK * values * size) + FIRST_RUN_MIB * MIB


def _grid(model: ModelSpec, work: Workload) -> tuple[int, int]:
    try:
        return model.rep_grid(*model.size_or_default(work.height, work.width))
    except ValueError as error:
        raise RFError(f"This model does not draw such pictures: {error}.") from error


def _value_bytes(precision: Precision) -> int:
    return 2 if is_half(precision) else 4
