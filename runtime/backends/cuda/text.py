"""What text_decoder has read, on a device: between two words the keys and values stay where they are.

Knows nothing of the library that runs graphs: `DeviceSession`. A word takes what the host decides of it: the token
before, noise, and whether it was the last. So every word is one round trip of these few numbers and of the logits; the
run itself is captured at its second time. Runs of a shape are prepared once for all answers of a conversation: the
cache grows by many slots at a time, so that there are few shapes.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from runtime.backends.cuda.device import CudaDevice
from runtime.backends.cuda.layout import whole_slots
from runtime.backends.cuda.memory import DeviceCache, NewRows, StepTable, kv_addresses, kv_shapes
from runtime.backends.cuda.session import DeviceSession
from runtime.backends.host.text import require_slots
from runtime.backends.interface import Session
from runtime.errors import RFError
from runtime.signature import ModelSpec, Variant

_GROWTH: Final = 64  # slots
_KEPT_RUNS: Final = 4  # shapes: a first question, a further one, a word, and one more


class DeviceTextRow:
    """See `runtime.backends.host.text.TextRow`.

    Attributes:
        model: The model that reads.
        length: Tokens that were read.
    """

    def __init__(self, device: CudaDevice, session: Session, model: ModelSpec, variant: Variant) -> None:
        """`session` is of a backend whose sessions are `DeviceSession`s too."""
        self.model = model
        self.length = 0
        self._device, self._session = device, cast(DeviceSession, session)
        self._precision = variant.precision
        self._fixed_slots = session.signature.cache_slots
        self._in_place = variant.dialect == "modern"
        self._runs: dict[Any, _Run] = {}  # by the shapes of their inputs, the last used one at the end
        with device.exclusive():
            self._cache = self._new_cache(self._fixed_slots or 1)

    @property
    def kv(self) -> npt.DTypeLike:
        """The dtype of keys and values on the device."""
        return self._session.dtype("past_key_values.0.key")

    def reserve(self, num_tokens: int) -> None:
        """Make room; the tokens that were read are copied on the device."""
        needed = self.length + num_tokens
        require_slots(needed, self.model, self._fixed_slots)
        if self._fixed_slots is not None or needed <= self._cache.num_slots:
            return
        most = self._session.longest("past_key_values.0.key", 2)
        if needed > most:
            told = (
                f"That takes {needed} tokens, images included, and this engine was built for {most}. Ask with fewer "
                "images, a shorter text or a smaller max_tokens"
            )
            raise RFError(f"{told}, or build it with a longer --dim prompt.", elsewhere=f"{told}.")
        with self._device.exclusive():
            before, self._cache = self._cache, self._new_cache(min(needed + -needed % _GROWTH, most))
            self._cache.take(before, self.length)
            self._device.synchronize()  # before the old memory goes
            self._runs.clear()

    def rewind(self, length: int) -> None:
        """Forget everything but the first tokens."""
        assert 0 <= length <= self.length
        with self._device.exclusive():
            self._cache.hide(0, self.length - length, first=length)
        self.length = length

    def bind(
        self, input_ids: npt.NDArray[np.int64], inputs: dict[str, Any], outputs: dict[str, Any]
    ) -> Callable[[], None]:
        """Prepare runs, or take those that were prepared for an earlier answer."""
        past_lengths, num_tokens = np.zeros(1, np.int64), input_ids.shape[1]
        values = {"input_ids": input_ids, "row_starts": np.zeros(1, np.int64), "past_lengths": past_lengths, **inputs}
        is_empty = self.length == 0 and not self._in_place
        key = (is_empty, *(array.shape for array in values.values()))
        with self._device.exclusive():
            run = self._runs.pop(key, None) or self._prepare(values, is_empty)
            self._runs[key] = run
            if len(self._runs) > _KEPT_RUNS:
                del self._runs[next(iter(self._runs))]

        def step() -> None:
            past_lengths[0] = self.length
            with self._device.exclusive():
                run(values)
                if not self._in_place:
                    self._cache.append(run.new, self.length, 1)
                for name, array in outputs.items():
                    array[...] = run.tables[name].download(1)[0]
            self.length += num_tokens

        return step

    def _prepare(self, values: Mapping[str, npt.NDArray[Any]], is_empty: bool) -> "_Run":
        device, session, model = self._device, self._session, self.model
        shapes = {
            **{name: array.shape for name, array in values.items()},
            "next_ids": (1,),
            "logits": (1, model.vocab_size),
        }
        tables = {name: StepTable(device, 1, shape, session.dtype(name)) for name, shape in shapes.items()}
        past: DeviceCache | NewRows = self._cache
        new: DeviceCache | NewRows = self._cache
        if not self._in_place:
            new = NewRows(device, model, self.kv, 1, values["input_ids"].shape[1])
        if is_empty:  # one hidden slot stands for an empty cache
            past = NewRows(device, model, self.kv, 1, 1)
            device.zero(past.addresses()[0], past.num_bytes)
        enqueue = session.prepare({**shapes, **kv_shapes("past_key_values", past), **kv_shapes("present", new)})
        addresses = {
            **{name: table.address() for name, table in tables.items()},
            **kv_addresses("past_key_values", past),
            **kv_addresses("present", new),
        }
        return _Run(device, lambda: enqueue(addresses), session.capturable, tables, past, new)

    def _new_cache(self, num_slots: int) -> DeviceCache:
        slots = num_slots if self._in_place else whole_slots(self.model, self._precision, num_slots)
        cache = DeviceCache(self._device, self.model, self.kv, 1, slots)
        cache.clear()
        return cache


class _Run:
    """Runs of one shape, with memory of their own."""

    def __init__(
        self,
        device: CudaDevice,
        work: Callable[[], None],
        capturable: bool,
        tables: Mapping[str, StepTable],
        past: DeviceCache | NewRows,
        new: DeviceCache | NewRows,
    ) -> None:
        self.tables, self.new = tables, cast(NewRows, new)
        self._device, self._work, self._capturable, self._past = device, work, capturable, past
        self._recorded = work  # what was captured has to live as long: its kernels use the library's own memory
        self._num_runs = 0
        self._uploaded: dict[str, npt.NDArray[Any]] = {}

    def __call__(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Upload what has changed, and run."""
        for name, array in values.items():
            if name not in self._uploaded or not np.array_equal(self._uploaded[name], array):
                self.tables[name].upload(array[None])
                self._uploaded[name] = array.copy()
        if self._num_runs == 1 and self._capturable:  # the first run settles the library's own state
            self._work = self._device.capture(self._recorded)
        self._work()
        self._num_runs += 1
