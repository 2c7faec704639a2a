"""What the codes of a model stand for: the cells of training scenes that got each of them.

A cell is the square of a picture that one representation token stands for. Scenes are encoded as in training: pooled
features, balanced over the batch, which here is all of them. A checkpoint holds no teacher encoder; the average of the
encoder that was trained takes its place, so these codes are close to those of training and not the same.
Knows nothing of drawing. Axes: C cells of all scenes, K codes, e encoder width.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rf_export.checkpoint import checkpoint_sha256, load_checkpoint
from rf_export.model import RFModel
from rf_export.tokens.figure import CodeRow, Place
from rf_export.training.scenes import Item, Scene, SceneConfig, make_scene
from rf_export.training.tokens import to_pixels
from rf_export.vision import pooled_features
from runtime.errors import RFError
from runtime.events import Progress

BATCH = 50
NUM_NEAREST = 8
MIN_COVER = 0.1  # share of a cell that the box of a sprite has to cover: corners of boxes are white


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """Training cells with their codes; see `make_codebook`."""

    model: RFModel
    scenes: Sequence[Scene]
    features: Tensor  # [C, e] unit-norm
    ids: Tensor  # int64 [C]

    @property
    def cell(self) -> int:
        """Side of a cell in pixels."""
        return 2 * self.model.config.patch_size

    def share(self, code: int) -> float:
        """Share of training cells with this code."""
        return float((self.ids == code).float().mean())

    def nearest(self, code: int, num: int) -> list[tuple[int, int, int]]:
        """Those with this code whose features are nearest to it, one per scene at most: (scene, row, column) each.

        Fewer than `num` where so few scenes have it.
        """
        cosines = self.features @ self.model.quantiser.prototypes[code]
        cosines[self.ids != code] = -1
        best, cells = cosines.reshape(len(self.scenes), -1).max(-1)
        order = [int(scene) for scene in best.argsort(descending=True)[:num] if best[scene] > -1]
        return [(scene, *divmod(int(cells[scene]), self._columns)) for scene in order]

    def meaning(self, code: int) -> str:
        """What is shown where training has this code: share of cells, commonest colour and commonest object."""
        found = [divmod(int(c), self._columns**2) for c in (self.ids == code).nonzero().flatten()]
        if not found:
            return "in no training cell"
        items = [_item_at(self.scenes[scene], divmod(spot, self._columns), self.cell) for scene, spot in found]
        text = f"{100 * self.share(code):.1f}% of cells"
        for counts in (Counter(i and i.colour for i in items), Counter(i and i.object for i in items)):
            (name, count), *_ = counts.most_common(1)
            text += f", {name or 'background'} {100 * count / len(items):.0f}%"
            if name is None:
                break
        return text

    def explain(self, rep_ids: NDArray[np.int64], num_codes: int) -> list[CodeRow]:
        """The codes of a grid that are rarest in training: what they mean, and their nearest cells."""
        rarest = sorted(np.unique(rep_ids).tolist(), key=self.share)[:num_codes]
        return [
            CodeRow(
                code=code,
                caption=self.meaning(code),
                places=[
                    Place(picture=self.scenes[scene].picture, row=row, column=column)
                    for scene, row, column in self.nearest(code, NUM_NEAREST)
                ],
            )
            for code in rarest
        ]

    @torch.no_grad()
    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.int64]:
        """The codes of a picture, `[3, H, W]` in [-1, 1] `-> [rows, columns]`, as one more of the training batch."""
        features = _features(self.model, torch.from_numpy(pixels)[None])
        ids = self.model.quantiser.assign_balanced(torch.cat([self.features, features]))[len(self.features) :]
        return ids.reshape(pixels.shape[1] // self.cell, -1).numpy()

    @property
    def _columns(self) -> int:
        return int(self.scenes[0].picture.shape[1]) // self.cell


@torch.no_grad()
def make_codebook(
    checkpoint: Path, expected: str, num_scenes: int, num_objects: int = 16, on_progress: Progress | None = None
) -> Codebook:
    """Encode the first scenes of the stream that training begins with.

    Args:
        checkpoint: the folder.
        expected: SHA-256 of the checkpoint that the codes in question are of.
        num_scenes: how many.
        num_objects: as in training.
        on_progress: told (what, done, total).

    Raises:
        RFError: not a checkpoint, or another one.
        ValueError: there are no such scenes.
    """
    model = load_checkpoint(checkpoint).eval()
    if checkpoint_sha256(checkpoint) != expected:
        raise RFError(f"{checkpoint} is not the checkpoint that the bundle was exported from: its codes are others")
    height, width = model.config.default_height, model.config.default_width
    config = SceneConfig(size=min(height, width), num_objects=num_objects, styles=("fluent-flat", "fluent-3d"))
    scenes, features = [], []
    for start in range(0, num_scenes, BATCH):
        some = [make_scene(0, index, config) for index in range(start, min(start + BATCH, num_scenes))]
        features.append(_features(model, to_pixels([scene.picture for scene in some])))
        scenes += some
        if on_progress is not None:
            on_progress("training scenes", len(scenes), num_scenes)
    cells = torch.cat(features)
    return Codebook(model=model, scenes=scenes, features=cells, ids=model.quantiser.assign_balanced(cells))


def _features(model: RFModel, pixels: Tensor) -> Tensor:
    """Pooled features of all cells of pictures: `[B, 3, H, W] -> [B * N, e]`."""
    rows, columns = (side // model.config.patch_size for side in pixels.shape[2:])
    return pooled_features(model.encoder(pixels), rows, columns).flatten(0, 1)


def _item_at(scene: Scene, spot: tuple[int, int], cell: int) -> Item | None:
    """The sprite whose box covers most of a cell, or None for the background."""
    top, left = spot[0] * cell, spot[1] * cell

    def cover(item: Item) -> float:
        height = min(item.y + item.size, top + cell) - max(item.y, top)
        width = min(item.x + item.size, left + cell) - max(item.x, left)
        return max(height, 0) * max(width, 0) / cell**2

    best = max(scene.items, key=cover)
    return best if cover(best) >= MIN_COVER else None
