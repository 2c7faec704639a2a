"""Numbers of more than 8 bits as levels of 8. Knows nothing of files but what they say of their numbers.

A file of 8 bits is black at 0 and white at 255. Wider numbers seldom fill their type: a camera stores 12 bits in 16, a
microscope counts in 32, a simulation writes floats. What is black and white is taken from what the file says, or else
from the type that the numbers fill. Numbers that leave more than seven eighths of 16 bits empty were made by a camera
or a scanner of 8, 10, 12 or 14. Where that fits neither, nobody can know, and the picture is refused: read as it
stands, it would be nearly black.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from runtime.errors import RFError

if TYPE_CHECKING:
    from PIL.Image import Image

UNSIGNED: Final = 1  # as TIFF counts them
SIGNED: Final = 2
FLOAT: Final = 3
_ROWS_AT_ONCE: Final = 64
_LEAST_SHARE: Final = 1 / 8  # of a type's range, that numbers which mean it fill
_CONTAINERS: Final = {  # what is white in numbers that may have been of a smaller type
    (UNSIGNED, 32): (255, 65535, 2**32 - 1),
    (SIGNED, 32): (255, 65535, 2**31 - 1),
    (FLOAT, 32): (1, 255, 65535),
}
_CAMERA_BITS: Final = (8, 10, 12, 14)  # that are stored in 16


@dataclass(frozen=True, kw_only=True)
class Samples:
    """How a file stores its numbers."""

    bits: int
    kind: int = UNSIGNED
    is_inverted: bool = False  # the smallest is white
    low: float | None = None  # of the range from black to white, where the file says it
    high: float | None = None
    largest: float | None = None  # that its bits can hold
    colours: int = 0  # for each pixel, where the decoder gives all channels side by side, as if each were a pixel
    channels: int = 1  # those and opacity
    is_differences: bool = False  # of each number from the one of the pixel before


def eight_bits(values: npt.NDArray[Any], samples: Samples | None, name: str) -> npt.NDArray[np.uint8]:
    """Scale numbers.

    Args:
        values: [H, W], or [H, W, channels] of one range.
        samples: None for numbers that are known to fill 16 bits.
        name: Of the picture, for messages.

    Returns:
        Of the same shape, 0 is black.

    Raises:
        RFError: Nobody can tell which numbers are black and white.
    """
    if samples is None:
        low, high = 0.0, 65535.0
    else:
        # Pillow's numbers of 32 bits have a sign, and those of 8 have none.
        wrong = {"i": UNSIGNED, "u": SIGNED}.get(values.dtype.kind)
        if samples.kind == wrong:
            values = values.view(f"{'u' if wrong == UNSIGNED else 'i'}{values.dtype.itemsize}")
        low, high = _range(values, samples, name)
    result = np.empty(values.shape, np.uint8)
    for row, numbers in _strips(values):  # a whole picture of float64 would take eight times its pixels
        scaled = np.clip((np.nan_to_num(numbers, nan=low) - low) / (high - low), 0, 1) * 255
        result[row : row + len(scaled)] = np.rint(255 - scaled if samples and samples.is_inverted else scaled)
    return result


def full(bits: int, kind: int) -> int:
    """The largest number of a type; 1 for floats, of which it is white."""
    return 1 if kind == FLOAT else 2 ** (bits - (kind == SIGNED)) - 1


def require_full_range(image: "Image", samples: Samples, name: str) -> None:
    """Refuse colours of 16 bits that fill less than an eighth of them; raises RFError."""
    largest = int(np.asarray(image).max())
    if samples.bits == 16 and 0 < largest < 255 * _LEAST_SHARE:
        raise _unclear(name, samples, f"its largest number is below {(largest + 1) << 8}")


def _range(values: npt.NDArray[Any], samples: Samples, name: str) -> tuple[float, float]:
    if samples.high is not None and samples.high > (samples.low or 0):
        return samples.low or 0, samples.high
    smallest, largest = 0.0, 0.0
    for _, numbers in _strips(values):
        finite = numbers[np.isfinite(numbers)]
        smallest, largest = finite.min(initial=smallest), finite.max(initial=largest)
    if samples.largest is not None and largest <= samples.largest:
        limit = samples.largest
    else:
        limits: tuple[int, ...] = _CONTAINERS.get((samples.kind, samples.bits), (full(samples.bits, samples.kind),))
        if samples.bits == 16 and largest < limits[-1] * _LEAST_SHARE:
            limits = tuple(2**used - 1 for used in _CAMERA_BITS)
        limit = next((limit for limit in limits if largest <= limit), 0)
        is_guessed = samples.bits >= 16  # 12 bits or 8 are no container
        if not limit or (is_guessed and 0 < largest < limit * _LEAST_SHARE):
            raise _unclear(name, samples, f"its largest number is {largest:g}")
    if smallest < -limit / 255:
        raise _unclear(name, samples, f"its smallest number is {smallest:g}")
    return 0, limit


def _unclear(name: str, samples: Samples, why: str) -> RFError:
    return RFError(
        f"{name} has numbers of {samples.bits} bits, and what is black and white in it cannot be told: {why}. Say it "
        "in the tags SMinSampleValue and SMaxSampleValue, or save it as a PNG file of 8 bits."
    )


def _strips(values: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    for row in range(0, len(values), _ROWS_AT_ONCE):
        yield row, values[row : row + _ROWS_AT_ONCE].astype(np.float64)
