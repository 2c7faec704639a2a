"""What text_decoder has read in one conversation, in the host's memory. Knows nothing of words and pictures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.host.cache import KVCache
from runtime.backends.interface import Session
from runtime.errors import RFError
from runtime.signature import ModelSpec, Variant


class HostTextRow:
    """See `runtime.backends.interface.TextRow`."""

    def __init__(self, session: Session, model: ModelSpec, variant: Variant) -> None:
        self.session, self.model = session, model
        self._variant = variant
        self._cache = self._new_cache(session.signature.cache_slots or 1)

    @property
    def length(self) -> int:
        """Tokens that were read."""
        return int(self._cache.lengths[0])

    @property
    def kv(self) -> npt.DTypeLike:
        """The dtype of the cache."""
        return self._cache.values.dtype

    def reserve(self, num_tokens: int) -> None:
        """Make room."""
        needed, fixed = self.length + num_tokens, self.session.signature.cache_slots
        require_slots(needed, self.model, fixed)
        if fixed is None and needed > self._cache.values.shape[3]:
            length, before, self._cache = self.length, self._cache, self._new_cache(needed)
            self._cache.lengths[0] = length
            self._cache.values[:, :, :, :length] = before.values[:, :, :, :length]

    def rewind(self, length: int) -> None:
        """Forget everything but the first tokens."""
        assert 0 <= length <= self.length
        self._cache.forget(0, length)

    def bind(
        self, input_ids: npt.NDArray[np.int64], inputs: dict[str, Any], outputs: dict[str, Any]
    ) -> Callable[[], None]:
        """Prepare runs."""
        cache, num_tokens = self._cache, input_ids.shape[1]
        write = cache.write(1, num_tokens, is_empty=not self.length)
        past_lengths = cache.lengths.copy()
        run = self.session.bind(
            {
                "input_ids": input_ids,
                "row_starts": np.zeros(1, np.int64),
                "past_lengths": past_lengths,
                **inputs,
                **write.inputs,
            },
            {**outputs, **write.outputs},
        )

        def step() -> None:
            past_lengths[:] = cache.lengths
            run()
            cache.keep(write, 0, 0, slice(0, num_tokens), int(past_lengths[0]))

        return step

    def _new_cache(self, num_slots: int) -> KVCache:
        return KVCache(self.model, self._variant, 1, num_slots)


def require_slots(num_tokens: int, model: ModelSpec, fixed_slots: int | None) -> None:
    """Raises RFError where the model has not so many positions, or its graphs not so many slots."""
    if num_tokens > model.max_positions:
        raise RFError(
            f"That takes {num_tokens} tokens, images included, and the model has {model.max_positions} positions. "
            "Ask with fewer or smaller images, a shorter text, or a smaller max_tokens."
        )
    if fixed_slots is not None and num_tokens > fixed_slots:
        told = (
            f"That takes {num_tokens} tokens, images included, and these graphs have {fixed_slots} cache slots. Ask "
            "with fewer images"
        )
        raise RFError(
            f"{told}, a smaller max_tokens, or export with more --cache-slots.",
            elsewhere=f"{told} or a smaller max_tokens.",
        )
