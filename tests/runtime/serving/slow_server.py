"""The command line, whose denoising steps take 50 ms longer while the file RF_EXPORT_TEST_SLOW is there.

A drawing of 1,000 steps that begins meanwhile does not end while a test looks at it, however fast the machine is.
"""

import os
import time
from pathlib import Path

from cli import main
from runtime.scheduling.batches import PixelBatch

SLOW = Path(os.environ["RF_EXPORT_TEST_SLOW"])
step = PixelBatch.step


def slow_step(batch: PixelBatch) -> object:
    if SLOW.exists():
        time.sleep(0.05)
    return step(batch)


PixelBatch.step = slow_step  # type: ignore[assignment]
if __name__ == "__main__":
    main()
