"""What is demanded of each precision. Knows nothing of how it is measured."""

from dataclasses import dataclass
from typing import Final

from runtime.signature import Precision
from verification.cases import DrawCase


@dataclass(frozen=True)
class Limits:
    """What is demanded of a precision, and why it is no tighter.

    fp32 differs by the order of sums only; fp16 rounds every tensor to 11 bits, which guidance and 25 Euler steps
    amplify: a random model with a guidance of 4 was seen at 0.99998.
    INT8 rounds weights, and inputs too, to 8 bits: its quality is judged by the calibration's gate, on prompts that
    mean something, and here it only has to be the same model. Ranges are calibrated on pictures of the default size;
    of others, less is demanded.
    """

    cosine: float  # of logits, x_pred and image features, worst step
    cache_cosine: float  # of one token's keys or values in a layer: few numbers, before any averaging
    norm: float  # how far the ratio of two norms may be from 1: a cosine sees no wrong scale
    psnr_db: float  # of the picture, from the same tokens


LIMITS: Final[dict[Precision, Limits]] = {
    "fp32": Limits(cosine=0.999999, cache_cosine=0.99999, norm=1e-3, psnr_db=60.0),
    "fp16": Limits(cosine=0.9999, cache_cosine=0.9999, norm=1e-2, psnr_db=40.0),
    "int8": Limits(cosine=0.98, cache_cosine=0.99, norm=0.1, psnr_db=15.0),
    "int8-fp16": Limits(cosine=0.98, cache_cosine=0.99, norm=0.1, psnr_db=15.0),
}
_INT8_OTHER_SIZES: Final = Limits(cosine=0.9, cache_cosine=0.98, norm=0.2, psnr_db=10.0)


def limits_of(precision: Precision, case: DrawCase | None = None) -> Limits:
    """The limits of a precision, in a case."""
    other = case is not None and (case.options.height, case.options.width) != (None, None)
    return _INT8_OTHER_SIZES if other and precision in ("int8", "int8-fp16") else LIMITS[precision]
