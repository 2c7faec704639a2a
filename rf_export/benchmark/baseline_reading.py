"""Eager PyTorch and torch.compile answering the same questions: the baselines of understanding.

As in `baseline.py`: a static cache written in place, a picture that was read is kept for the next question, attention
that reads only what is visible, greedy words. Axes: F image tokens, S new tokens, P cache slots.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rf_export.benchmark.baseline import Spelling, StaticDecoder, compiled
from rf_export.benchmark.workload import ReadingWork
from rf_export.model import RFModel


class BaselineReader:
    """Answers the workload's questions; everything may be repeated after `prepare`; see `contenders.Reader`.

    Args:
        model: From `spelt`; several baselines may share it.
        workload: What to look at and to answer.
        spelling: How.
    """

    def __init__(self, model: RFModel, workload: ReadingWork, spelling: Spelling) -> None:
        self.model, self.work, self.spelling = model, workload, spelling
        self._decoder, self._asked = (  # what the second question overwrites, the first one's answer still sees
            StaticDecoder(model, workload.num_slots, spelling.attention, num_rows=1) for _ in range(2)
        )
        self._slots = torch.arange(workload.num_slots)
        self._pixels = torch.from_numpy(workload.pixels)[None].to(spelling.dtype)
        self._first, self._second = torch.from_numpy(workload.first), torch.from_numpy(workload.second)
        self._no_features = torch.zeros(0, model.config.hidden_size, dtype=spelling.dtype)
        self._encode = compiled(self.encode_image, spelling, self._decoder)
        self._read = compiled(self.read, spelling, self._decoder)

    @torch.no_grad()
    def prepare(self) -> None:
        """Fill the caches."""
        self.first_word()
        self._drawn(self._asked, self._encode(self._pixels), self._first, 0)

    @torch.no_grad()
    def encode(self) -> NDArray[Any]:
        """The tokens of the picture, `[F, d]`."""
        features: NDArray[Any] = self._encode(self._pixels).float().numpy()
        return features

    @torch.no_grad()
    def first_word(self) -> int:
        """Encode the picture, read it and the first question: the first word of the answer."""
        return self._drawn(self._decoder, self._encode(self._pixels), self._first, 0)

    @torch.no_grad()
    def second_question(self) -> int:
        """Read the second question after the picture that is in the cache: the first word of the answer."""
        return self._drawn(self._asked, self._no_features, self._second, self.work.num_image_tokens)

    @torch.no_grad()
    def words(self, forced: Sequence[int] | None = None) -> list[int]:
        """The answer to the first question, word by word; it goes on with `forced` where that is given."""
        start, last, drawn = self.work.num_image_tokens + len(self._first) - 1, self._first[-1:], []
        for i in range(self.work.num_words):
            drawn.append(self._drawn(self._decoder, self._no_features, last, start + i))
            last = torch.tensor([drawn[-1] if forced is None else forced[i]])
        return drawn

    def _drawn(self, decoder: StaticDecoder, features: Tensor, ids: Tensor, start: int) -> int:
        num_tokens = len(features) + len(ids)
        # Compiled code needs one shape, and so sees all slots; eager code reads only the visible ones.
        visible = self.work.num_slots if self.spelling.compile else start + num_tokens
        return int(self._read(decoder, features, ids, self._slots[start : start + num_tokens], visible))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """`[1, 3, H, W] -> [F, d]`."""
        rows, columns = (side // self.model.config.patch_size for side in pixels.shape[2:])
        return self.model.connector(self.model.encoder(pixels), rows, columns)[0]

    def read(self, decoder: StaticDecoder, features: Tensor, ids: Tensor, slots: Tensor, visible: int) -> Tensor:
        """Read image tokens and words into `slots [S]`: the next word, `[]`."""
        hidden = torch.cat([features, F.embedding(ids, self.model.text_embedding)])[None]
        seen = (self._slots[:visible] <= slots[:, None])[None, None]  # [1, 1, S, visible]
        out = decoder.decode("understanding", hidden, slots[None], slots, seen)
        return self.model.text_head(out[0, -1]).argmax()
