"""Fixed kernels that take turns with the contenders: how fast is this machine right now?

A machine's state changes between two runs (frequency, neighbours), and everything is slower then, these kernels too. A
comparison of two runs charges a contender only with what they do not explain. A stage that is bound by arithmetic has a
matrix product beside it, one that is bound by memory a copy of as many bytes as the stage reads, so that both live in
the same cache; one that is near the ridge, or has parts of both kinds, has both. Knows nothing of models.
"""

from collections.abc import Callable

import torch

NAMES = ("matrix", "memory")
CLEARLY = 3.0  # times as long as the other bound
_SIDE, _PRODUCTS = 512, 8
_LEAST, _MOST = 1 << 20, 48 << 20  # bytes of a copy
_COPIED = 128 << 20  # bytes of a turn: some 20 ms on one core, as a turn of the products


def bounding(arithmetic_seconds: float, memory_seconds: float) -> tuple[str, ...]:
    """Which yardsticks tell of a step that takes so long at least by each of the two."""
    if arithmetic_seconds > CLEARLY * memory_seconds:
        return ("matrix",)
    return ("memory",) if memory_seconds > CLEARLY * arithmetic_seconds else NAMES


def yardsticks(names: tuple[str, ...], num_bytes: int = _MOST) -> dict[str, Callable[[], int]]:
    """Functions that do some runs and return how many, with torch's current number of threads.

    Args:
        names: Which ones.
        num_bytes: Working set of the copy, as far as it is neither tiny nor far beyond all caches.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(_SIDE, _SIDE, generator=generator) for _ in range(2))
    product = torch.empty(_SIDE, _SIDE)
    size = min(max(num_bytes // 2, _LEAST), _MOST)
    source = torch.rand(size // 4, generator=generator)
    target, copies = torch.empty_like(source), _COPIED // size

    def matrix() -> int:
        for _ in range(_PRODUCTS):
            torch.mm(a, b, out=product)
        return _PRODUCTS

    def memory() -> int:
        for _ in range(copies):
            target.copy_(source)
        return copies

    made = {"matrix": matrix, "memory": memory}
    return {name: made[name] for name in names}
