"""Answer questions about pictures with a checkpoint in eager PyTorch: greedy, whole sequences, no cache.

The sequence is that of training: [image features][BOS][question][answer][EOS]; an empty question asks for a caption.
Knows nothing of scenes and of what is right. Axes: B texts of equal length, S tokens.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from rf_export.model import RFModel, Segment
from rf_export.training.tokens import BOS_ID, EOS_ID, TEXT_SLOTS, to_pixels

BATCH = 64  # texts answered together


@torch.no_grad()
def answer_eager(
    model: RFModel, tokenizer: Tokenizer, pictures: Sequence[NDArray[np.uint8]], questions: Sequence[str]
) -> list[str]:
    """One greedy answer per (picture, question), as words apart by spaces.

    Args:
        model: in evaluation mode.
        tokenizer: the checkpoint's.
        pictures: `[H, W, 3]`, of one size.
        questions: one per picture; an empty one asks for a caption.
    """
    groups: dict[int, list[int]] = defaultdict(list)  # by length of the question: no padding
    prompts = [[BOS_ID, *tokenizer.encode(question, add_special_tokens=False).ids] for question in questions]
    for index, prompt in enumerate(prompts):
        groups[len(prompt)].append(index)
    answers = [""] * len(prompts)
    for group in groups.values():
        for start in range(0, len(group), BATCH):
            chosen = group[start : start + BATCH]
            pixels = to_pixels([pictures[index] for index in chosen])
            said = _greedy(model, pixels, torch.tensor([prompts[index] for index in chosen]))
            for index, ids in zip(chosen, said.tolist(), strict=True):
                words = ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids
                answers[index] = " ".join(str(tokenizer.id_to_token(token)) for token in words)
    return answers


def _greedy(model: RFModel, pixels: Tensor, prompt: Tensor) -> Tensor:
    """Continue every row until all have ended: `[B, 3, H, W]`, `int64 [B, S] -> int64 [B, answer]`."""
    rows, columns = (side // model.config.patch_size for side in pixels.shape[2:])
    image = model.connector(model.encoder(pixels), rows, columns)
    ids = prompt
    for _ in range(TEXT_SLOTS):
        hidden = torch.cat([image, F.embedding(ids, model.text_embedding)], dim=1)
        length = hidden.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        segment = Segment("understanding", hidden, torch.arange(length).expand(len(ids), -1))
        (out,), _ = model.run([segment], causal)
        ids = torch.cat([ids, model.text_head(out[:, -1]).argmax(-1, keepdim=True)], dim=1)
        if (ids[:, prompt.shape[1] :] == EOS_ID).any(1).all():
            break
    return ids[:, prompt.shape[1] :]
