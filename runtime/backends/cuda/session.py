"""A graph or engine that reads and writes device memory: what the device stages ask of a library. Knows none."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import numpy.typing as npt

Enqueue: TypeAlias = Callable[[Mapping[str, int]], None]  # puts one run on the stream; names -> addresses


class DeviceSession(Protocol):
    """A graph or engine that reads and writes device memory."""

    @property
    def capturable(self) -> bool:
        """Whether its runs may be captured in a CUDA graph."""

    def dtype(self, name: str) -> npt.DTypeLike:
        """The dtype that a tensor has on the device."""

    def sizes(self, name: str, axis: int) -> tuple[int, int]:
        """The smallest and the largest size of an input's dimension; of text_decoder's where it reads a prompt."""

    def longest(self, name: str, axis: int) -> int:
        """The largest size of an input's dimension in any run."""

    def prepare(self, shapes: Mapping[str, tuple[int, ...]]) -> Enqueue:
        """Prepare runs with these shapes of all inputs and outputs, on state of their own; raises RFError."""
