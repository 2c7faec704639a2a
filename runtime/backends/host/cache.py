"""The key/value cache: one static buffer, written in place.

Knows nothing of graphs but who writes: in the classic dialect they return new rows, which are written here; in
the modern dialect they write into the cache themselves. One allocation holds every layer, so that the new rows
of all layers are written by one strided copy, and the text stage, the representation stage and the denoiser
read the same memory.

Legend: L layers, R requests, H key/value heads, D head size, S new tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from runtime.signature import ModelSpec, Variant, kv_names


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


class KVCache:
    """Keys and values of `num_rows` rows in `num_slots` slots.

    The memory is zero at first for every request, whether it is new or used again: graphs multiply hidden
    slots by 0, so that what an earlier request left there could never show, but its NaN or infinity would.

    Attributes:
        values: [2 L, rows, H, slots, D]; key and value of layer 0, key and value of layer 1, ...
        length: Slots in use; the next token takes the slot of this number.
    """

    def __init__(
        self, model: ModelSpec, variant: Variant, num_rows: int, num_slots: int, values: npt.NDArray[Any] | None = None
    ) -> None:
        """`values` is memory to use; without, it is allocated."""
        if values is None:
            values = np.zeros(cache_shape(model, num_rows, num_slots), cache_dtype(variant))
        self.values = values
        self.length = 0
        self._num_layers = model.num_layers
        self._written_by_graphs = variant.dialect == "modern"

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


def cache_shape(model: ModelSpec, num_rows: int, num_slots: int) -> tuple[int, ...]:
    """Key and value of every layer: [2 L, rows, H, slots, D]."""
    return (2 * model.num_layers, num_rows, model.num_kv_heads, num_slots, model.head_dim)


def cache_dtype(variant: Variant) -> type[np.floating[Any]]:
    """The dtype of keys and values."""
    return np.float16 if variant.is_half else np.float32
