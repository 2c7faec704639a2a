"""What each request has in a cache, and how requests are laid out together: all of them end at the same slot.

Knows nothing of graphs and of who is drawn when. Where requests come and go, what each has is copied out as a `Prefix`,
and the prefixes of those who are to be together are laid out anew.

Legend: L layers, R requests, H key/value heads, D head size, P slots in use.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.host.cache import KVCache, cache_dtype, cache_shape
from runtime.signature import ModelSpec, Variant


@dataclass(frozen=True, eq=False)
class Prefix:
    """The keys and values of one request, a copy of its own."""

    values: npt.NDArray[Any]  # [2 L, 2, H, P, D], its conditional and its unconditional row
    text_length: int  # so many slots at the start belong to the text, which the unconditional row does not see

    @property
    def length(self) -> int:
        """Slots P in use."""
        return int(self.values.shape[3])


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


def copy_prefix(cache: KVCache, request: int, start: int, text_length: int) -> Prefix:
    """Copy out what a request has in rows `request` and R + `request` of a cache.

    Args:
        cache: Of 2R rows.
        request: Which one.
        start: Its first slot.
        text_length: Slots of its text.
    """
    num_requests = cache.values.shape[1] // 2
    return Prefix(cache.values[:, request::num_requests, :, start : cache.length].copy(), text_length)


def lay_out(
    memory: CacheMemory, prefixes: Sequence[Prefix], num_free_slots: int
) -> tuple[KVCache, npt.NDArray[np.int64]]:
    """Put requests together in a cache that is cut from `memory`: all of them end at the same slot.

    Args:
        memory: Where to.
        prefixes: What each request has: [R].
        num_free_slots: Slots for the tokens to come.

    Returns:
        The cache of 2R rows, first the conditional ones; and the first slot of each request, [R].
    """
    length, num_requests = max(prefix.length for prefix in prefixes), len(prefixes)
    cache = memory.cut(2 * num_requests, length + num_free_slots)
    cache.length = length
    starts = np.array([length - prefix.length for prefix in prefixes], np.int64)
    for row, prefix in enumerate(prefixes):
        text_end = starts[row] + prefix.text_length
        cache.values[:, row, :, starts[row] : length] = prefix.values[:, 0]
        cache.values[:, num_requests + row, :, text_end:length] = prefix.values[:, 1, :, prefix.text_length :]
    return cache, starts
