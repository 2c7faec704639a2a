"""Two fixed kernels that take turns with the contenders: how fast is this machine right now?

A machine's state changes between two runs (frequency, neighbours), and everything is slower then, these kernels too. A
comparison of two runs charges a contender only with what they do not explain. Knows nothing of models.
"""

from collections.abc import Callable

import torch

NAMES = ("matrix", "memory")
_SIDE = 512
_MIB = 48  # beyond most caches
_COPIES, _PRODUCTS = 2, 8  # some 20 ms each on one core, as long as a turn of a small model


def yardsticks() -> dict[str, Callable[[], int]]:
    """A matrix product, bound by arithmetic, and a copy, bound by memory, with torch's current number of threads."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(_SIDE, _SIDE, generator=generator) for _ in range(2))
    product = torch.empty(_SIDE, _SIDE)
    source = torch.rand(_MIB << 18, generator=generator)
    target = torch.empty_like(source)

    def matrix() -> int:
        for _ in range(_PRODUCTS):
            torch.mm(a, b, out=product)
        return _PRODUCTS

    def memory() -> int:
        for _ in range(_COPIES):
            target.copy_(source)
        return _COPIES

    return {"matrix": matrix, "memory": memory}
