"""What each request has in a cache, and the memory of the caches in which requests are together.

Knows nothing of graphs and of who is drawn when. Where requests come and go, what each has is copied out as a `Prefix`,
and the prefixes of those who are to be together are laid out anew; each row begins at slot 0 and has a length of its
own.

Legend: L layers, R requests, H key/value heads, D head size, P slots in use.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.backends.host.cache import KVCache, cache_dtype, cache_shape
from runtime.signature import ModelSpec, Variant

KeysValues: TypeAlias = npt.NDArray[Any]  # [2 L, H, P, D] of one row


@dataclass(frozen=True, eq=False)
class Prefix:
    """The keys and values of one request, a copy of its own."""

    conditional: KeysValues
    unconditional: KeysValues | None  # without the text; None where it is not guided, or its tokens are drawn


class CacheMemory:
    """Memory that caches are cut from, again and again.

    It grows as it is needed, to as much as `num_rows` rows of `num_slots` slots take: of a large model that is more
    than a machine has, and what is drawn needs a small part of it.
    """

    def __init__(self, model: ModelSpec, variant: Variant, num_rows: int, num_slots: int) -> None:
        self.model = model
        self.variant = variant
        self._limit = math.prod(cache_shape(model, num_rows, num_slots))
        self._values = np.empty(0, cache_dtype(variant))
        self._used = 0

    def clear(self) -> None:
        """Take all memory back; caches that were cut from it must not be used any more."""
        self._used = 0

    def cut(self, num_rows: int, num_slots: int) -> KVCache:
        """An empty cache."""
        shape = cache_shape(self.model, num_rows, num_slots)
        end = self._used + math.prod(shape)
        if end > len(self._values):
            self._grow(end)
        piece = self._values[self._used : end].reshape(shape)
        piece.fill(0)
        self._used = end
        return KVCache(self.model, self.variant, num_rows, num_slots, piece)

    def _grow(self, size: int) -> None:
        """Pieces that were cut before keep the old memory, and what they took counts on: the next time all fit."""
        assert size <= self._limit
        # Twice as much, so that it soon grows no more; pages that are never touched are not resident.
        self._values = np.empty(min(max(size, 2 * len(self._values)), self._limit), self._values.dtype)


def copy_row(cache: KVCache, row: int) -> KeysValues:
    """What a row of a cache holds."""
    values: KeysValues = cache.values[:, row, :, : cache.lengths[row]].copy()
    return values


def lay_out(memory: CacheMemory, rows: Sequence[KeysValues], num_slots: int) -> KVCache:
    """Put rows together in a cache of so many slots that is cut from `memory`."""
    cache = memory.cut(len(rows), num_slots)
    for row, values in enumerate(rows):
        length = values.shape[2]
        cache.values[:, row, :, :length] = values
        cache.lengths[row] = length
    return cache
