"""The word-level tokenizer of the reference checkpoint, in the HF `tokenizers` format, and batches made with it."""

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

from rf_export.training.objective import Batch
from rf_export.training.questions import QUESTION_WORDS, Question
from rf_export.training.scenes import Scene, SceneConfig, vocabulary

PAD_ID, UNKNOWN_ID, BOS_ID, EOS_ID = range(4)
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
PROMPT_SLOTS = 10  # the longest caption has 8 words
TEXT_SLOTS = 11  # BOS, the longest question with its answer (9 words: where ... right of ...), EOS


def build_tokenizer(config: SceneConfig) -> Tokenizer:
    """A tokenizer that knows the words of captions, then those of questions and answers, and nothing else."""
    words = dict.fromkeys([*SPECIAL, *vocabulary(config), *QUESTION_WORDS])
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def to_pixels(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """`uint8 [H, W, 3]` pictures -> `float32 [B, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def make_batch(
    scenes: Sequence[Scene], tokenizer: Tokenizer, questions: Sequence[Sequence[Question]] | None = None
) -> Batch:
    """Tokenise and pad the captions of a batch of scenes, and as many questions about each."""
    prompts = np.full((len(scenes), PROMPT_SLOTS), PAD_ID)
    lengths = np.zeros(len(scenes), np.int64)
    num_texts = 1 + (len(questions[0]) if questions else 0)
    texts = np.full((len(scenes), num_texts, TEXT_SLOTS), PAD_ID)
    targets = np.zeros(texts.shape, bool)
    for row, scene in enumerate(scenes):
        words = tokenizer.encode(scene.demand.caption).ids
        lengths[row] = len(words)
        prompts[row, PROMPT_SLOTS - len(words) :] = words
        texts[row, 0, : len(words) + 2] = [BOS_ID, *words, EOS_ID]
        targets[row, 0, 1 : len(words) + 2] = True
        for n, question in enumerate(questions[row] if questions else (), start=1):
            asked, said = tokenizer.encode(question.text).ids, tokenizer.encode(question.answer).ids
            texts[row, n, : len(asked) + len(said) + 2] = [BOS_ID, *asked, *said, EOS_ID]
            targets[row, n, 1 + len(asked) : len(asked) + len(said) + 2] = True
    return Batch(
        pixels=to_pixels([scene.picture for scene in scenes]),
        prompt_ids=torch.from_numpy(prompts),
        prompt_starts=torch.from_numpy(PROMPT_SLOTS - lengths),
        text_ids=torch.from_numpy(texts),
        text_targets=torch.from_numpy(targets),
    )
