"""What a search for a plan is asked for. Knows nothing of how it is done."""

from dataclasses import dataclass
from typing import Final

MIN_PSNR: Final = 25.0  # dB; INT8's gate asks for the same


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How to tune.

    Attributes:
        max_loss: Points of the score, of 100, that the plan may lose against the full one.
        min_psnr: Least mean PSNR to the pictures of the full plan, in dB. None asks for `MIN_PSNR` where nothing else
            scores them, and for nothing where something does.
        num_pictures: Drawn with the full plan; one half is searched with, the other one held out.
        min_held_out: With fewer held-out pictures no two plans are called as good.
        max_doubt: Half of the widest 95% interval of a change, in points, with which two plans are called as good.
        min_prompts: Fewer different prompts are refused.
        max_tries: Plans that the held-out half judges at most: with more, one would pass by chance.
        num_rounds: Turns of every window and of every plan that is timed.
        seed: Picture i is drawn with seed + i.
    """

    max_loss: float = 1.0
    min_psnr: float | None = None
    num_pictures: int = 400
    min_held_out: int = 200
    max_doubt: float = 5.0
    min_prompts: int = 16
    max_tries: int = 3
    num_rounds: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_loss <= 100:
            raise ValueError(f"max_loss must be 0 to 100 points, got {self.max_loss}")
        if self.min_psnr is not None and not self.min_psnr >= 0:
            raise ValueError(f"min_psnr must be >= 0, got {self.min_psnr}")
        if self.num_pictures < 2:
            raise ValueError(f"num_pictures must be >= 2, got {self.num_pictures}")
