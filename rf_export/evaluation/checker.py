"""The checker: a small convolutional detector that says which objects, in which colours, stand where.

It has seen composed scenes and spoilt artwork only, never a generated picture. Runs in numpy, so that a
picture can be judged without torch. Knows nothing of captions or of right and wrong: that is `metric.py`. How
it was trained is in `examples/checker/train.py`. It knows only the objects, colours and styles named in
`checker.json`.

Legend: B pictures, C channels, G cells per side of the output grid (one cell = `CELL` x `CELL` pixels).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from rf_export.training.scenes import COLOURS, DATA_VERSION, SceneConfig

WEIGHTS_FILE = Path(__file__).with_name("checker.safetensors")
FACTS_FILE = Path(__file__).with_name("checker.json")
FORMAT_VERSION = 1
CELL = 4  # pixels; two layers of stride 2
NUM_BLOCKS = 2
# Training aims at 0 without a sprite, and for a good one at 0.78 (centre on a cell's corner) to 1 (middle).
HEAT_THRESHOLD = 0.5
NAME_THRESHOLD = 0.5  # below it, the most probable object or colour is not trusted
SAME_OBJECT_PIXELS = 8.0  # peaks nearer than this are one object: the smallest sprites have 17 pixels

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One thing seen in a picture. `object` or `colour` is None where the checker is not sure of it."""

    object: str | None
    colour: str | None
    x: float  # pixels from the left edge to the centre of the sprite's box
    y: float  # pixels from the upper edge
    heat: float  # 0..1, how much it looks like a complete, single object

    @property
    def centre(self) -> tuple[float, float]:
        """Centre in pixels, (x, y)."""
        return self.x, self.y


@dataclass(frozen=True, kw_only=True)
class GridMaps:
    """What the network says of every cell."""

    heat: NDArray[np.float32]  # [B, G, G], 0..1
    offset: NDArray[np.float32]  # [B, G, G, 2], (x, y) in cells from the cell's middle to the object's centre
    colours: NDArray[np.float32]  # [B, G, G, colours], probabilities
    objects: NDArray[np.float32]  # [B, G, G, objects], probabilities


@dataclass(frozen=True, kw_only=True)
class Checker:
    """The detector: weights (a bias and a kernel `[rows, columns, in, out]` per layer) and figures."""

    objects: tuple[str, ...]
    styles: tuple[str, ...]
    size: int  # pixels per side of the pictures it judges
    weights: Weights = field(repr=False)
    facts: Mapping[str, Any] = field(repr=False, default_factory=dict)

    def maps(self, pictures: NDArray[np.uint8]) -> GridMaps:
        """Run the network on `uint8 [B, size, size, 3]` pictures."""
        expected = (self.size, self.size, 3)
        if pictures.dtype != np.uint8 or pictures.shape[1:] != expected:
            got = f"{pictures.dtype} {list(pictures.shape)}"
            raise ValueError(f"pictures must be uint8 [n, {self.size}, {self.size}, 3], got {got}")
        head = run_network(self.weights, pictures)
        split = 3 + len(COLOURS)
        return GridMaps(
            heat=np.asarray(1 / (1 + np.exp(-head[..., 0])), np.float32),
            offset=head[..., 1:3],
            colours=_softmax(head[..., 3:split]),
            objects=_softmax(head[..., split:]),
        )

    def detect(self, pictures: NDArray[np.uint8], batch_size: int = 64) -> Iterator[list[Detection]]:
        """Yield what is seen in each of the `uint8 [n, size, size, 3]` pictures, best first."""
        for start in range(0, len(pictures), batch_size):
            maps = self.maps(pictures[start : start + batch_size])
            for row in range(len(maps.heat)):
                yield self._decode(maps, row)

    def _decode(self, maps: GridMaps, row: int) -> list[Detection]:
        found: list[Detection] = []
        heat = maps.heat[row]
        cells = np.argwhere(heat >= HEAT_THRESHOLD)
        for i, j in sorted(cells.tolist(), key=lambda cell: -float(heat[cell[0], cell[1]])):
            dx, dy = maps.offset[row, i, j].tolist()
            x, y = (j + 0.5 + dx) * CELL, (i + 0.5 + dy) * CELL
            if any(np.hypot(x - other.x, y - other.y) < SAME_OBJECT_PIXELS for other in found):
                continue
            found.append(
                Detection(
                    object=_sure_name(self.objects, maps.objects[row, i, j]),
                    colour=_sure_name(tuple(COLOURS), maps.colours[row, i, j]),
                    x=x,
                    y=y,
                    heat=float(heat[i, j]),
                )
            )
        return found


def run_network(weights: Weights, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`uint8 [B, H, W, 3]` -> `float32 [B, G, G, 3 + colours + objects]`: heat logit, offset (x, y), names.

    Ink is 0 where the picture is white, so that the zero padding looks like more white ground.
    """
    x = 1 - pictures.astype(np.float32) / np.float32(255)
    x = _relu(_convolve(weights, "stem", x, stride=2))
    x = _relu(_convolve(weights, "detail", x))
    x = _relu(_convolve(weights, "down", x, stride=2))
    for block in range(NUM_BLOCKS):
        inner = _relu(_convolve(weights, f"block{block}-a", x))
        x = _relu(x + _convolve(weights, f"block{block}-b", inner))
    return _convolve(weights, "head", x)


def _convolve(weights: Weights, name: str, x: NDArray[np.float32], stride: int = 1) -> NDArray[np.float32]:
    """Convolution with zero padding that keeps the size (divided by the stride), x `[B, H, W, C]`."""
    kernel, bias = weights[f"{name}.kernel"], weights[f"{name}.bias"]
    pad = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    batch, height, width, _ = x.shape
    out = np.zeros((batch * (height // stride) * (width // stride), kernel.shape[3]), np.float32)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            window = padded[:, i : i + height : stride, j : j + width : stride]
            out += window.reshape(len(out), -1) @ kernel[i, j]
    return (out + bias).reshape(batch, height // stride, width // stride, -1)


def _relu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.maximum(x, 0)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    result: NDArray[np.float32] = shifted / shifted.sum(-1, keepdims=True)
    return result


def _sure_name(names: Sequence[str], probabilities: NDArray[np.float32]) -> str | None:
    best = int(probabilities.argmax())
    return names[best] if probabilities[best] >= NAME_THRESHOLD else None


def checker_from_bytes(weights: bytes, facts: Mapping[str, Any]) -> Checker:
    """Build the checker from the contents of `checker.safetensors` and `checker.json`.

    Raises:
        ValueError: the two do not belong together, or the scenes have changed since the training.
    """
    if facts.get("format_version") != FORMAT_VERSION or facts.get("data_version") != DATA_VERSION:
        found = f"format {facts.get('format_version')} for data {facts.get('data_version')}"
        raise ValueError(
            f"the checker is of {found}, expected format {FORMAT_VERSION} for data {DATA_VERSION}: "
            "train it again with python -m examples.checker.train"
        )
    digest = hashlib.sha256(weights).hexdigest()
    if digest != facts["weights_sha256"]:
        expected = facts["weights_sha256"]
        raise ValueError(f"the checker's weights are {digest[:16]}, its figures are of {expected[:16]}")
    return Checker(
        objects=tuple(facts["config"]["objects"]),
        styles=tuple(facts["config"]["styles"]),
        size=int(facts["config"]["size"]),
        weights={name: tensor.astype(np.float32) for name, tensor in load(weights).items()},
        facts=facts,
    )


@lru_cache
def load_checker(folder: Path | None = None) -> Checker:
    """The committed checker, or another one trained into `folder`."""
    weights = folder / WEIGHTS_FILE.name if folder else WEIGHTS_FILE
    facts = folder / FACTS_FILE.name if folder else FACTS_FILE
    return checker_from_bytes(weights.read_bytes(), json.loads(facts.read_text()))


def checker_scenes(styles: tuple[str, ...]) -> SceneConfig:
    """The scenes that the committed checker judges: 16 objects at 48 pixels."""
    return SceneConfig(size=48, num_objects=16, styles=styles)
