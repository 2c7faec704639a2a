"""Pieces of the model against plain spellings of them."""

import torch
import torch.nn.functional as F

from rf_export.layers import patchify, unpatchify
from rf_export.model import attend

ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # fp32 in another order of sums


def test_attention_is_the_same_with_and_without_gradients() -> None:
    """Training spells it out, since the fused kernel is slow backwards; both are softmax(q k / sqrt(D)) v."""
    torch.manual_seed(1)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    mask = torch.rand(2, 1, 5, 7) < 0.5
    mask[..., 0] = True
    for allowed in (mask, None):
        spelled = attend(q, k, v, allowed)
        with torch.no_grad():
            torch.testing.assert_close(attend(q, k, v, allowed), spelled, **ROUNDING)
    scores = torch.einsum("bhgsd,bhpd->bhgsp", q.reshape(2, 2, 2, 5, 8), k) / 8**0.5
    shares = F.softmax(scores.masked_fill(~mask[:, :, None], -torch.inf), dim=-1)
    expected = torch.einsum("bhgsp,bhpd->bhgsd", shares, v).reshape(2, 4, 5, 8)
    torch.testing.assert_close(attend(q, k, v, mask), expected, **ROUNDING)


def test_patches_survive_cutting_and_joining() -> None:
    pixels = torch.rand(2, 3, 16, 24)
    assert torch.equal(unpatchify(patchify(pixels, 4), 4, 16, 24), pixels)
    assert torch.equal(patchify(pixels, 4)[0, 7].reshape(4, 4, 3), pixels[0, :, 4:8, 4:8].permute(1, 2, 0))
