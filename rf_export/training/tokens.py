"""The word-level tokenizer of the reference checkpoint, in the HF `tokenizers` format, and batches made with it."""

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

from rf_export.training.objective import Batch
from rf_export.training.scenes import Scene, SceneConfig, vocabulary

PAD_ID, UNKNOWN_ID, BOS_ID, EOS_ID = range(4)
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
PROMPT_SLOTS = 10  # the longest caption has 8 words
CAPTION_SLOTS = 11


def build_tokenizer(config: SceneConfig) -> Tokenizer:
    """A tokenizer that knows the words of the captions and nothing else."""
    words = [*SPECIAL, *vocabulary(config)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def to_pixels(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """`uint8 [H, W, 3]` pictures -> `float32 [B, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def make_batch(scenes: Sequence[Scene], tokenizer: Tokenizer) -> Batch:
    """Tokenise and pad the captions of a batch of scenes."""
    ids = [tokenizer.encode(scene.demand.caption).ids for scene in scenes]
    prompts = np.full((len(ids), PROMPT_SLOTS), PAD_ID)
    captions = np.full((len(ids), CAPTION_SLOTS), PAD_ID)
    for row, words in enumerate(ids):
        prompts[row, PROMPT_SLOTS - len(words) :] = words
        captions[row, : len(words) + 2] = [BOS_ID, *words, EOS_ID]
    lengths = np.array([len(words) for words in ids])
    slots = np.arange(CAPTION_SLOTS)
    return Batch(
        pixels=to_pixels([scene.picture for scene in scenes]),
        prompt_ids=torch.from_numpy(prompts),
        prompt_starts=torch.from_numpy(PROMPT_SLOTS - lengths),
        caption_ids=torch.from_numpy(captions),
        caption_mask=torch.from_numpy((slots >= 1) & (slots < lengths[:, None] + 2)),
    )
