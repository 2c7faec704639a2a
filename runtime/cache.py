"""The key/value cache of one request: static buffers, written in place.

Knows nothing of graphs. One allocation holds every layer, so that the new rows of all layers are written by
one strided copy, and the text stage, the representation stage and the denoiser read the same memory.

Legend: L layers, H key/value heads, D head size, S new tokens.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from runtime.signature import ModelSpec, Precision, kv_names


class KVCache:
    """Keys and values of `num_rows` rows in `num_slots` slots.

    The memory is new and zero for every request: graphs multiply hidden slots by 0, so that what an earlier
    request left there could never show, but its NaN or infinity would.

    Attributes:
        values: [2 L, rows, H, slots, D]; key and value of layer 0, key and value of layer 1, ...
        length: Slots in use; the next token takes the slot of this number.
    """

    def __init__(self, model: ModelSpec, precision: Precision, num_rows: int, num_slots: int) -> None:
        shape = (2 * model.num_layers, num_rows, model.num_kv_heads, num_slots, model.head_dim)
        self.values: npt.NDArray[Any] = np.zeros(shape, np.float16 if precision == "fp16" else np.float32)
        self.length = 0
        self._num_layers = model.num_layers

    def new_rows(self, num_rows: int, num_tokens: int) -> npt.NDArray[Any]:
        """A buffer for what a graph returns, or an empty past: zeros [2 L, rows, H, S, D]."""
        layers, _, heads, _, size = self.values.shape
        return np.zeros((layers, num_rows, heads, num_tokens, size), self.values.dtype)

    def named(
        self, prefix: Literal["past_key_values", "present"], values: npt.NDArray[Any] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """The tensors of a graph: views of `values`, or of this cache, each contiguous."""
        return dict(zip(kv_names(prefix, self._num_layers), self.values if values is None else values, strict=True))

    def append(self, new: npt.NDArray[Any]) -> None:
        """Write the new tokens of all rows into the next slots: [2 L, rows, H, S, D]."""
        end = self.length + new.shape[3]
        self.values[:, :, :, self.length : end] = new
        self.length = end
