"""Counter-based random numbers: the same noise from the same seed on every host, backend and batch.

Knows nothing of models: a (seed, stage, step) in, numbers out. Nothing here keeps state between calls.

The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with
`key = [seed, stage << 32 | step]` and a 256-bit counter that starts at 1 (NumPy increments before it
generates). Only raw 64-bit outputs are used: NumPy promises these to stay the same between versions, and
not its distributions (NEP 19). A C++ host needs the Random123 header and the three formulas below.

    uniform   u = ((raw >> 11) + 0.5) * 2**-53                     in (0, 1), float64
    Gumbel    -log(-log(u))                                        float64, rounded to float32
    normal    z[2i]   = sqrt(-2 log u[2i]) * cos(2 pi u[2i + 1])   Box-Muller, float64, rounded to float32
              z[2i+1] = sqrt(-2 log u[2i]) * sin(2 pi u[2i + 1])
"""

from typing import Final

import numpy as np
import numpy.typing as npt

REPRESENTATION_STAGE: Final = 0  # step = index of the representation token
PIXEL_STAGE: Final = 1  # step = 0
TEXT_STAGE: Final = 2  # step = index of the token in the answer

MAX_SEED: Final = 2**64 - 1
_LARGEST_UNIFORM: Final = 1.0 - 2.0**-53


def gumbel(seed: int, step: int, size: int, stage: int = REPRESENTATION_STAGE) -> npt.NDArray[np.float32]:
    """Gumbel noise of one token: `argmax(logits + noise)` is a draw from softmax(logits).

    Args:
        seed: Seed of the request, 0 to 2**64 - 1.
        step: Index of the token.
        size: How many numbers: the size of the vocabulary.
        stage: `REPRESENTATION_STAGE` or `TEXT_STAGE`.

    Returns:
        [size] float32.
    """
    values = uniform(seed, stage, step, size)
    for _ in range(2):
        np.log(values, out=values)
        np.negative(values, out=values)
    return values.astype(np.float32)


def normal(seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal noise from which the denoiser starts, in C order: a picture's x_t at t = 0.

    Args:
        seed: Seed of the request, 0 to 2**64 - 1.
        shape: Shape of the result, for example (3, height, width).

    Returns:
        `shape` float32.
    """
    size = int(np.prod(shape, dtype=np.int64))
    pairs = uniform(seed, PIXEL_STAGE, 0, size + size % 2).reshape(-1, 2)
    radius = np.sqrt(-2.0 * np.log(pairs[:, 0]))
    angle = 2.0 * np.pi * pairs[:, 1]
    values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return values.reshape(-1)[:size].astype(np.float32).reshape(shape)


def uniform(seed: int, stage: int, step: int, size: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in the open interval (0, 1).

    Args:
        seed: 0 to 2**64 - 1.
        stage: One of those above.
        step: 0 to 2**32 - 1.
        size: How many numbers.

    Returns:
        [size] float64.

    Raises:
        ValueError: A key part is out of range.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be 0 to 2**64 - 1, got {seed}")
    if not (0 <= stage < 2**32 and 0 <= step < 2**32):
        raise ValueError(f"stage and step must be 0 to 2**32 - 1, got {stage} and {step}")
    key = np.array([seed, stage << 32 | step], dtype=np.uint64)
    return uniform_from_raw(np.random.Philox(key=key).random_raw(size))


def uniform_from_raw(raw: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Map raw 64-bit numbers into (0, 1); of the same shape."""
    values: npt.NDArray[np.float64] = (raw >> np.uint64(11)).astype(np.float64)
    values += 0.5
    values *= 2.0**-53
    # The largest raw number rounds up to 1, whose Gumbel noise would be infinite.
    return np.minimum(values, _LARGEST_UNIFORM, out=values)
