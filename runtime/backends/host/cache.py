"""The key/value caches: static buffers, written in place, and what a request has in one.

Knows nothing of graphs but who writes: in the classic dialect they return new rows, which are written here; in
the modern dialect they write into the cache themselves. One allocation holds every layer, so that the new rows
of all layers are written by one strided copy, and the text stage, the representation stage and the denoiser
read the same memory.

Where requests come and go, what each has is copied out as a `Prefix`, and the prefixes of those who are to be
together are laid out anew, so that all end at the same slot (`lay_out`).

Legend: L layers, R requests, H key/value heads, D head size, S new tokens, P slots in use.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from runtime.signature import Dialect, ModelSpec, Precision, is_half, kv_names


@dataclass(frozen=True)
class CacheWrite:
    """How a graph adds tokens to a cache.

    Attributes:
        inputs: The tensors past_key_values.*, to be bound.
        outputs: The tensors present.*, to be bound; in the modern dialect the same memory.
        finish: What is left to do after each run.
    """

    inputs: dict[str, npt.NDArray[Any]]
    outputs: dict[str, npt.NDArray[Any]]
    finish: Callable[[], None]


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

    def __init__(self, model: ModelSpec, precision: Precision, num_rows: int, num_slots: int) -> None:
        self.model = model
        self.precision: Precision = precision
        self._limit = math.prod(_shape(model, num_rows, num_slots))
        self._values = np.empty(0, _dtype(precision))
        self._used = 0

    def clear(self) -> None:
        """Take all memory back; caches that were cut from it must not be used any more."""
        self._used = 0

    def cut(self, num_rows: int, num_slots: int) -> npt.NDArray[Any]:
        """Memory of a cache: [2 L, rows, H, slots, D], zero."""
        shape = _shape(self.model, num_rows, num_slots)
        end = self._used + math.prod(shape)
        if end > len(self._values):
            self._grow(end)
        piece = self._values[self._used : end].reshape(shape)
        piece.fill(0)
        self._used = end
        return piece

    def _grow(self, size: int) -> None:
        """Pieces that were cut before keep the old memory, and what they took counts on: the next time all fit."""
        assert size <= self._limit
        # Twice as much, so that it soon grows no more; pages that are never touched are not resident.
        self._values = np.empty(min(max(size, 2 * len(self._values)), self._limit), self._values.dtype)


class KVCache:
    """Keys and values of `num_rows` rows in `num_slots` slots.

    The memory is zero at first for every request, whether it is new or used again: graphs multiply hidden
    slots by 0, so that what an earlier request left there could never show, but its NaN or infinity would.

    Attributes:
        values: [2 L, rows, H, slots, D]; key and value of layer 0, key and value of layer 1, ...
        length: Slots in use; the next token takes the slot of this number.
    """

    def __init__(
        self,
        model: ModelSpec,
        precision: Precision,
        num_rows: int,
        num_slots: int,
        memory: CacheMemory | None = None,
        dialect: Dialect = "classic",
    ) -> None:
        self.values: npt.NDArray[Any] = (
            np.zeros(_shape(model, num_rows, num_slots), _dtype(precision))
            if memory is None
            else memory.cut(num_rows, num_slots)
        )
        self.length = 0
        self._num_layers = model.num_layers
        self._written_by_graphs = dialect == "modern"

    def new_rows(self, num_rows: int, num_tokens: int) -> npt.NDArray[Any]:
        """A buffer for what a graph returns, or an empty past: zeros [2 L, rows, H, S, D]."""
        layers, _, heads, _, size = self.values.shape
        return np.zeros((layers, num_rows, heads, num_tokens, size), self.values.dtype)

    def named(
        self, prefix: Literal["past_key_values", "present"], values: npt.NDArray[Any] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """The tensors of a graph: views of `values`, or of this cache, each contiguous."""
        return dict(zip(kv_names(prefix, self._num_layers), self.values if values is None else values, strict=True))

    def write(
        self, num_rows: int, num_tokens: int, *, rows: npt.NDArray[np.intp] | None = None, is_empty: bool = False
    ) -> CacheWrite:
        """Prepare runs that add `num_tokens` tokens to each of `num_rows` rows.

        Args:
            num_rows: Rows of the graph.
            num_tokens: New tokens of a run.
            rows: Which rows these are, where not the first ones: only if `takes_any_rows`.
            is_empty: For one run on an empty cache: where the graph only reads it, one hidden slot stands for
                all of it.
        """
        if self._written_by_graphs:
            assert rows is None
            values = self.values[:, :num_rows]
            return CacheWrite(
                self.named("past_key_values", values), self.named("present", values), lambda: self._advance(num_tokens)
            )
        past = self.new_rows(num_rows, 1) if is_empty else self.values[:, :num_rows]
        new = self.new_rows(num_rows, num_tokens)
        return CacheWrite(
            self.named("past_key_values", past), self.named("present", new), lambda: self.append(new, rows)
        )

    @property
    def takes_any_rows(self) -> bool:
        """Whether a run may add tokens to some rows only; graphs that write by themselves take the first ones."""
        return not self._written_by_graphs

    def hide(self, row: int, num_slots: int) -> None:
        """Forget the first slots of a row, which no token sees: hidden slots have to be finite."""
        self.values[:, row, :, :num_slots] = 0

    def append(self, new: npt.NDArray[Any], rows: npt.NDArray[np.intp] | None = None) -> None:
        """Write the new tokens of these rows, or the first ones, into the next slots: [2 L, rows, H, S, D]."""
        num_tokens = new.shape[3]
        which = slice(new.shape[1]) if rows is None else rows
        self.values[:, which, :, self.length : self.length + num_tokens] = new
        self._advance(num_tokens)

    def _advance(self, num_tokens: int) -> None:
        self.length += num_tokens

    def prefix(self, request: int, start: int, text_length: int) -> Prefix:
        """Copy out what a request has in rows `request` and R + `request`.

        Args:
            request: Which one.
            start: Its first slot.
            text_length: Slots of its text.
        """
        num_requests = self.values.shape[1] // 2
        return Prefix(self.values[:, request::num_requests, :, start : self.length].copy(), text_length)


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
    cache = KVCache(memory.model, memory.precision, 2 * num_requests, length + num_free_slots, memory)
    cache.length = length
    starts = np.array([length - prefix.length for prefix in prefixes], np.int64)
    for row, prefix in enumerate(prefixes):
        text_end = starts[row] + prefix.text_length
        cache.values[:, row, :, starts[row] : length] = prefix.values[:, 0]
        cache.values[:, num_requests + row, :, text_end:length] = prefix.values[:, 1, :, prefix.text_length :]
    return cache, starts


def _shape(model: ModelSpec, num_rows: int, num_slots: int) -> tuple[int, ...]:
    return (2 * model.num_layers, num_rows, model.num_kv_heads, num_slots, model.head_dim)


def _dtype(precision: Precision) -> type[np.floating[Any]]:
    return np.float16 if is_half(precision) else np.float32
