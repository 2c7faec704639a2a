"""How the memory of a drawing lies on a device: sizes that the builder of engines and the runtime have to agree on.

Knows nothing of CUDA. Every tensor starts at a multiple of 256 bytes, as TensorRT wants of its memory. The cache of all
layers is one block, so its number of slots is rounded up until each layer ends on such a boundary. Prompts are padded
on the left to a multiple of 32 tokens: captured work has its addresses baked in, so this is what lets most drawings
replay it. Padding is never visible: rows have starts.
"""

import math
from typing import Final

from runtime.signature import ModelSpec, Precision, is_half

ALIGNMENT: Final = 256
PROMPT_STEP: Final = 32


def aligned(num_bytes: int) -> int:
    """A size rounded up to the next boundary."""
    return num_bytes + -num_bytes % ALIGNMENT


def padded_prompt(num_tokens: int, shortest: int, longest: int) -> int:
    """How many slots a prompt takes, where an engine reads from `shortest` to `longest` tokens."""
    num_tokens = max(num_tokens, 1)  # drawings without a text are of the same shape as those with a short one
    return min(max(num_tokens + -num_tokens % PROMPT_STEP, shortest), longest)


def cache_slots(model: ModelSpec, precision: Precision, prompt_slots: int, num_rep_tokens: int) -> int:
    """Slots of the cache of a drawing: the prompt, the start token, N tokens, rounded up to a boundary."""
    return whole_slots(model, precision, prompt_slots + num_rep_tokens + 1)


def whole_slots(model: ModelSpec, precision: Precision, num_slots: int) -> int:
    """Slots of a cache, rounded up until each layer of any number of rows ends on a boundary."""
    row_bytes = model.num_kv_heads * model.head_dim * (2 if is_half(precision) else 4)
    step = ALIGNMENT // math.gcd(ALIGNMENT, row_bytes)
    return num_slots + -num_slots % step
