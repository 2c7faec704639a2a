"""What a drawing keeps on a device: tables of one entry per step, and the cache of keys and values.

Knows nothing of graphs and of the order of steps: addresses and copies. Every entry starts on a boundary
(runtime/backends/cuda/layout.py), so that a step can be handed its own entry as an input or output.

Legend: L layers, B rows, H key/value heads, S new tokens, P cache slots, D head size.
"""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.backends.cuda.device import BlockCopy, CudaDevice
from runtime.backends.cuda.layout import ALIGNMENT, aligned
from runtime.signature import ModelSpec, kv_names


class StepTable:
    """An array [steps, ...] whose entries start on boundaries."""

    def __init__(self, device: CudaDevice, num_steps: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._device, self._num_steps = device, num_steps
        self._entry_bytes = math.prod(shape) * self.dtype.itemsize
        self._stride = aligned(self._entry_bytes)
        self._memory = device.allocate(num_steps * self._stride)

    def address(self, step: int = 0) -> int:
        """Where an entry lies."""
        assert 0 <= step < self._num_steps
        return int(self._memory) + step * self._stride

    def upload(self, values: npt.NDArray[Any]) -> None:
        """Write the first entries: [steps or fewer, ...], of any dtype."""
        packed = np.zeros((len(values), self._stride), np.uint8)
        entries = np.ascontiguousarray(values, self.dtype).reshape(len(values), -1)
        packed[:, : self._entry_bytes] = entries.view(np.uint8)
        self._device.upload(self.address(), packed)

    def download(self, num_steps: int, first: int = 0) -> npt.NDArray[Any]:
        """Read entries: [steps, ...], after everything that is on the stream."""
        packed = np.empty((num_steps, self._stride), np.uint8)
        self._device.download(self.address(first), packed)
        entries = np.ascontiguousarray(packed[:, : self._entry_bytes])
        return entries.view(self.dtype).reshape(num_steps, *self.shape)


class NewRows:
    """The keys and values of new tokens, as a graph returns them: [2 L] tensors [B, H, S, D] in one block."""

    def __init__(
        self, device: CudaDevice, model: ModelSpec, dtype: npt.DTypeLike, num_rows: int, num_tokens: int
    ) -> None:
        self.shape = (num_rows, model.num_kv_heads, num_tokens, model.head_dim)
        self.pitch = num_tokens * model.head_dim * np.dtype(dtype).itemsize  # bytes of one head of one row
        step = ALIGNMENT // math.gcd(ALIGNMENT, self.pitch)
        heads = num_rows * model.num_kv_heads
        self.rows = heads + -heads % step  # so that each tensor ends on a boundary
        self.num_bytes = 2 * model.num_layers * self.rows * self.pitch
        self._memory = device.allocate(self.num_bytes)
        self._num_tensors = 2 * model.num_layers

    def addresses(self) -> list[int]:
        """Where the tensors lie: key and value of layer 0, key and value of layer 1, ..."""
        return [int(self._memory) + i * self.rows * self.pitch for i in range(self._num_tensors)]


class DeviceCache:
    """The cache: [2 L] tensors [B, H, P, D] in one block, so that one copy writes the new rows of all layers.

    Where graphs write it themselves, P is theirs, and a tensor may end before the next boundary: then nothing is
    copied by `append` and `fill`, which know of no gaps.
    """

    def __init__(
        self, device: CudaDevice, model: ModelSpec, dtype: npt.DTypeLike, num_rows: int, num_slots: int
    ) -> None:
        self.shape = (num_rows, model.num_kv_heads, num_slots, model.head_dim)
        self._slot_bytes = model.head_dim * np.dtype(dtype).itemsize
        self._pitch = num_slots * self._slot_bytes  # bytes of one head of one row
        self._device = device
        self._num_heads = model.num_kv_heads
        self._num_tensors = 2 * model.num_layers
        num_bytes = num_rows * model.num_kv_heads * self._pitch
        self._tensor_bytes = aligned(num_bytes)
        self._has_gaps = self._tensor_bytes != num_bytes
        self._memory = device.allocate(self._num_tensors * self._tensor_bytes)

    def addresses(self) -> list[int]:
        """Where the tensors lie, in the order of `NewRows.addresses`."""
        return [int(self._memory) + i * self._tensor_bytes for i in range(self._num_tensors)]

    def clear(self) -> None:
        """Write zeros: what an earlier drawing left would never show, but its NaN or infinity would."""
        self._device.zero(int(self._memory), self._num_tensors * self._tensor_bytes)

    @property
    def num_slots(self) -> int:
        """Slots P."""
        return self.shape[2]

    def hide(self, row: int, num_slots: int, first: int = 0) -> None:
        """Write zeros into slots of a row, the first ones or those from `first` on."""
        if num_slots:
            for tensor in self.addresses():
                address = tensor + row * self._num_heads * self._pitch + first * self._slot_bytes
                self._device.zero_rows(address, self._pitch, num_slots * self._slot_bytes, self._num_heads)

    def append(self, new: NewRows, slot: int, num_rows: int) -> None:
        """Copy the new tokens of the first rows, in all layers, into the slots from `slot` on."""
        assert not self._has_gaps
        self._device.copy(
            BlockCopy(
                source=new.addresses()[0],
                source_pitch=new.pitch,
                source_rows=new.rows,
                target=int(self._memory) + slot * self._slot_bytes,
                target_pitch=self._pitch,
                target_rows=self.shape[0] * self._num_heads,
                width=new.pitch,
                height=num_rows * self._num_heads,
                depth=self._num_tensors,
            )
        )

    def take(self, other: "DeviceCache", num_slots: int) -> None:
        """Copy the first slots of another cache of the same rows."""
        assert not self._has_gaps
        assert not other._has_gaps
        heads = self.shape[0] * self._num_heads
        if num_slots:
            self._device.copy(
                BlockCopy(
                    source=int(other._memory),
                    source_pitch=other._pitch,
                    source_rows=heads,
                    target=int(self._memory),
                    target_pitch=self._pitch,
                    target_rows=heads,
                    width=num_slots * self._slot_bytes,
                    height=heads,
                    depth=self._num_tensors,
                )
            )

    def fill(self, new: NewRows, line: int, row: int, tokens: slice, slot: int) -> None:
        """Copy tokens of a line of `new` into a row.

        Args:
            new: Where from.
            line: Its row.
            row: The row of this cache.
            tokens: Which of its tokens.
            slot: Where the first of them belongs.
        """
        assert not self._has_gaps
        self._device.copy(
            BlockCopy(
                source=new.addresses()[0] + line * self._num_heads * new.pitch + tokens.start * self._slot_bytes,
                source_pitch=new.pitch,
                source_rows=new.rows,
                target=int(self._memory) + row * self._num_heads * self._pitch + slot * self._slot_bytes,
                target_pitch=self._pitch,
                target_rows=self.shape[0] * self._num_heads,
                width=(tokens.stop - tokens.start) * self._slot_bytes,
                height=self._num_heads,
                depth=self._num_tensors,
            )
        )


KeysValues: TypeAlias = DeviceCache | NewRows


def kv_addresses(prefix: Literal["past_key_values", "present"], block: KeysValues) -> dict[str, int]:
    """Where the tensors of a graph lie in a block."""
    addresses = block.addresses()
    return dict(zip(kv_names(prefix, len(addresses) // 2), addresses, strict=True))


def kv_shapes(
    prefix: Literal["past_key_values", "present"], block: KeysValues, num_rows: int | None = None
) -> dict[str, tuple[int, ...]]:
    """The shapes of these tensors, of the first rows or of all."""
    shape = block.shape if num_rows is None else (num_rows, *block.shape[1:])
    return dict.fromkeys(kv_addresses(prefix, block), shape)
