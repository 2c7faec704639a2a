"""The timesteps of the denoising loop. Knows nothing of models: counts in, times out.

t = 0 is noise, t = 1 is the picture. Steps are spread evenly over the noise level `sigma = 1 - t` and then
shifted towards noise, the more the larger the picture: it takes more noise to hide it.

    s      = shift * sqrt(num_patches / shift_base_patches)
    sigma' = s * sigma / (1 + (s - 1) * sigma)            (Esser et al., SD3, arXiv 2403.03206, equation 23)
"""

import math

import numpy as np
import numpy.typing as npt


def timesteps(
    num_steps: int, num_patches: int, *, shift: float = 1.0, shift_base_patches: int | None
) -> npt.NDArray[np.float32]:
    """The times between which the Euler steps go.

    Args:
        num_steps: Number of Euler steps, at least 1.
        num_patches: Pixel patches M of the picture.
        shift: Shift at `shift_base_patches` patches; 1 leaves the steps even.
        shift_base_patches: Number of patches that `shift` is meant for; None where it is the same for all sizes.

    Returns:
        [num_steps + 1] float32, strictly increasing, from exactly 0 to exactly 1.

    Raises:
        ValueError: An argument is not positive.
    """
    base = num_patches if shift_base_patches is None else shift_base_patches
    if min(num_steps, num_patches, base) < 1 or not (math.isfinite(shift) and shift > 0):
        raise ValueError(
            "num_steps, num_patches, shift_base_patches and shift must be positive, "
            f"got {num_steps}, {num_patches}, {shift_base_patches} and {shift}"
        )
    s = shift * math.sqrt(num_patches / base)
    sigma = 1.0 - np.arange(num_steps + 1, dtype=np.float64) / num_steps
    times = 1.0 - s * sigma / (1.0 + (s - 1.0) * sigma)
    times[0], times[-1] = 0.0, 1.0  # exact, whatever the rounding
    return times.astype(np.float32)
