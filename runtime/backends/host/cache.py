"""The key/value cache: one static buffer, written in place.

Knows nothing of graphs but who writes: in the classic dialect they return new rows, which are written here; in
the modern dialect they write into the cache themselves. One allocation holds every layer, so that the new rows
of all layers are written by one strided copy, and the text stage, the representation stage and the denoiser
read the same memory.

Legend: L layers, R requests, H key/value heads, D head size, S new tokens.
"""

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
        new: [2 L, rows, H, S, D] what the graph returns; None where it writes into the cache itself.
    """

    inputs: dict[str, npt.NDArray[Any]]
    outputs: dict[str, npt.NDArray[Any]]
    new: npt.NDArray[Any] | None


class KVCache:
    """Keys and values of `num_rows` rows in `num_slots` slots.

    The memory is zero at first for every request, whether it is new or used again: graphs multiply hidden
    slots by 0, so that what an earlier request left there could never show, but its NaN or infinity would.

    Attributes:
        values: [2 L, rows, H, slots, D]; key and value of layer 0, key and value of layer 1, ...
        lengths: int64 [rows] slots in use; the next token of a row takes the slot of this number.
    """

    def __init__(
        self, model: ModelSpec, variant: Variant, num_rows: int, num_slots: int, values: npt.NDArray[Any] | None = None
    ) -> None:
        """`values` is memory to use; without, it is allocated."""
        if values is None:
            values = np.zeros(cache_shape(model, num_rows, num_slots), cache_dtype(variant))
        self.values = values
        self.lengths = np.zeros(num_rows, np.int64)
        self._num_layers = model.num_layers
        self._written_by_graphs = variant.dialect == "modern"

    def read(self, num_rows: int) -> dict[str, npt.NDArray[Any]]:
        """The tensors past_key_values.* of the first rows."""
        return self._named("past_key_values", self.values[:, :num_rows])

    def write(self, num_rows: int, num_tokens: int, *, is_empty: bool = False) -> CacheWrite:
        """Prepare runs that add up to `num_tokens` tokens to each of `num_rows` rows.

        Args:
            num_rows: Rows of the graph; of a graph that writes by itself, the first ones of the cache.
            num_tokens: New tokens of a run.
            is_empty: For one run on an empty cache: where the graph only reads it, one hidden slot stands for
                all of it.
        """
        if self._written_by_graphs:
            present = self._named("present", self.values[:, :num_rows])
            return CacheWrite(self.read(num_rows), present, None)
        new = self._zeros(num_rows, num_tokens)
        past = self._named("past_key_values", self._zeros(num_rows, 1)) if is_empty else self.read(num_rows)
        return CacheWrite(past, self._named("present", new), new)

    @property
    def takes_any_rows(self) -> bool:
        """Whether a run may add tokens to some rows only; graphs that write by themselves take the first ones."""
        return not self._written_by_graphs

    def keep(self, write: CacheWrite, line: int, row: int, tokens: slice, slot: int) -> None:
        """Keep some of the tokens that a run added; a row is in use up to the last of them then.

        Args:
            write: What was bound.
            line: The row of the graph.
            row: The row of the cache.
            tokens: Which of the run's tokens.
            slot: Where the first of them belongs.
        """
        end = slot + tokens.stop - tokens.start
        if write.new is not None:
            self.values[:, row, :, slot:end] = write.new[:, line, :, tokens]
        self.lengths[row] = end

    def forget(self, row: int, length: int) -> None:
        """Forget all but the first tokens of a row. Forgotten slots are zeroed: hidden ones have to be finite."""
        self.values[:, row, :, length:] = 0
        self.lengths[row] = length

    def _named(
        self, prefix: Literal["past_key_values", "present"], values: npt.NDArray[Any]
    ) -> dict[str, npt.NDArray[Any]]:
        """The tensors of a graph: views of `values` [2 L, ...], each contiguous."""
        return dict(zip(kv_names(prefix, self._num_layers), values, strict=True))

    def _zeros(self, num_rows: int, num_tokens: int) -> npt.NDArray[Any]:
        layers, _, heads, _, size = self.values.shape
        return np.zeros((layers, num_rows, heads, num_tokens, size), self.values.dtype)


def cache_shape(model: ModelSpec, num_rows: int, num_slots: int) -> tuple[int, ...]:
    """Key and value of every layer: [2 L, rows, H, slots, D]."""
    return (2 * model.num_layers, num_rows, model.num_kv_heads, num_slots, model.head_dim)


def cache_dtype(variant: Variant) -> type[np.floating[Any]]:
    """The dtype of keys and values."""
    return np.float16 if variant.is_half else np.float32
