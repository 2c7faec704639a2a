"""Which INT8 products ONNX Runtime multiplies as such. Asks for a version and imports no library.

Every version has kernels for products whose inputs are INT8 too. Weights alone are INT8 in a DequantizeLinear before a
MatMul: from 1.25 on that becomes MatMulNBits, which rounds its inputs by block and multiplies integers; before, on
x86-64 and ARM alike, the weights are made floats again in every run.
"""

import re
from typing import Final

_FIRST: Final = (1, 25)


def weight_only_problem(version: str) -> str | None:
    """Why weight-only INT8 saves no time with a version such as "1.24.4"; None where it may."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) >= _FIRST:
        return None
    first = ".".join(map(str, _FIRST))
    return (
        f"ONNX Runtime {numbers[0]} multiplies weight-only INT8 as floats, and {first} is the first that does not: "
        "it saves memory and no time"
    )
