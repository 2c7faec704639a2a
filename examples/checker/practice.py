"""Practice pictures for the checker: scenes made a little imperfect, and spoilt sprites that must not count.

Deterministic from (seed, step). Draws from the artwork only, from all (colour, object) pairs: the checker has
to judge pairs that the generating model never saw. Knows nothing of networks or of captions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rf_export.evaluation.checker import CELL
from rf_export.training.scenes import COLOURS, SceneConfig, sprite

Art = NDArray[np.float32]  # [s, s, 4], colour 0..255 premultiplied by alpha 0..1
Canvas = NDArray[np.float32]  # [size, size, 3], 0..255
Rng = np.random.Generator

PRACTICE_STREAM = 0x70726163  # keeps these random numbers apart from every scene's
SPOILT_SHARE = 0.25  # of the sprites
EMPTY_SHARE = 0.04  # of the pictures: white, plain, noise
CLEAN_SHARE = 0.3  # of the pictures: exactly as composed
HEAT_SPREAD = 1.0  # cells, standard deviation of the target around a centre
NAMED_HEAT = 0.3  # cells with at least this target heat also learn the names and the offset


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a sprite shows."""

    object: str
    colour: str
    style: str

    def art(self, size: int) -> Art:
        """The sprite in the given size, a copy."""
        return sprite(self.style, self.object, self.colour, size).copy()


@dataclass(frozen=True, kw_only=True)
class PracticeBatch:
    """Pictures and what every cell of the output grid should say; B pictures, G cells per side."""

    pictures: NDArray[np.uint8]  # [B, size, size, 3]
    heat: NDArray[np.float32]  # [B, G, G], 0..1
    offset: NDArray[np.float32]  # [B, G, G, 2], cells
    colour: NDArray[np.int64]  # [B, G, G]
    object: NDArray[np.int64]  # [B, G, G]


# --- spoilt sprites: none of them is an object any more


def _gaussian(size: int, spread: float) -> NDArray[np.float32]:
    """Blur along one axis as a matrix `[size, size]`; what leaves the edge is lost."""
    gaps = np.arange(size)[:, None] - np.arange(size)[None]
    kernel = np.exp(-0.5 * (gaps / max(spread, 1e-3)) ** 2)
    return np.asarray(kernel / kernel[size // 2].sum(), np.float32)


def blur(rows: float, columns: float, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blur `[h, w, C]` by a Gaussian of the given standard deviations in pixels, down and across."""
    down, across = _gaussian(picture.shape[0], rows), _gaussian(picture.shape[1], columns)
    blurred = down @ np.moveaxis(picture, -1, 0) @ across.T
    return np.asarray(np.moveaxis(blurred, 0, -1), np.float32)


def smeared(rng: Rng, look: Look, size: int, config: SceneConfig) -> Art:
    """Blurred beyond recognition, evenly or along one axis."""
    art = np.pad(look.art(size), ((4, 4), (4, 4), (0, 0)))
    even = rng.uniform(0.16, 0.3) * size
    along, across = rng.uniform(0.3, 0.6) * size, rng.uniform(0.03, 0.1) * size
    return blur(*[(even, even), (along, across), (across, along)][rng.integers(3)], art)


def blended(rng: Rng, look: Look, size: int, config: SceneConfig) -> Art:
    """Two different objects shining through each other, one over the other or side by side."""
    reach = round(0.3 * size)
    margin = ((reach, reach), (reach, reach), (0, 0))
    first, second = np.pad(look.art(size), margin), np.pad(_other(rng, look, config).art(size), margin)
    share = rng.uniform(0.4, 0.6)
    return share * first + (1 - share) * np.roll(second, rng.integers(-reach, reach + 1, 2), (0, 1))


def half_erased(rng: Rng, look: Look, size: int, config: SceneConfig) -> Art:
    """40 to 75 % of the ink gone behind a straight edge."""
    art = look.art(size)
    return art * _half_plane(rng, art, rng.uniform(0.25, 0.6))[..., None]


def chimera(rng: Rng, look: Look, size: int, config: SceneConfig) -> Art:
    """One part of an object, the other part of another."""
    art = look.art(size)
    kept = _half_plane(rng, art, rng.uniform(0.4, 0.6))[..., None]
    return art * kept + _other(rng, look, config).art(size) * (1 - kept)


def two_coloured(rng: Rng, look: Look, size: int, config: SceneConfig) -> Art:
    """The right shape, but half of it in another colour."""
    others = [colour for colour in COLOURS if colour != look.colour]
    second = Look(object=look.object, colour=others[rng.integers(len(others))], style=look.style).art(size)
    art = look.art(size)
    kept = _half_plane(rng, art, rng.uniform(0.35, 0.65))[..., None]
    return art * kept + second * (1 - kept)


def shuffled(rng: Rng, look: Look, size: int, config: SceneConfig) -> Art:
    """Cut into 3 x 3 or 4 x 4 pieces and put together wrongly."""
    num = int(rng.integers(3, 5))
    edges = np.linspace(0, size, num + 1).astype(int)
    art, result = look.art(size), np.zeros((size, size, 4), np.float32)
    places = [(rows, columns) for rows in pairwise(edges) for columns in pairwise(edges)]
    order = rng.permutation(len(places))
    while (order == np.arange(len(places))).mean() > 0.25:
        order = rng.permutation(len(places))
    for (to_rows, to_columns), source in zip(places, order, strict=True):
        piece = art[slice(*places[source][0]), slice(*places[source][1])]
        target = result[slice(*to_rows), slice(*to_columns)]
        height, width = min(len(piece), len(target)), min(piece.shape[1], target.shape[1])
        target[:height, :width] = piece[:height, :width]
    return result


def deformed(rng: Rng, look: Look, size: int, config: SceneConfig) -> Art:
    """Bent beyond recognition by a smooth, strong displacement."""
    return bend(rng, look.art(size), rng.uniform(0.16, 0.28) * size, 4)


def faint(rng: Rng, look: Look, size: int, config: SceneConfig) -> Art:
    """Hardly there."""
    return look.art(size) * rng.uniform(0.1, 0.35)


def blob(rng: Rng, look: Look, size: int, config: SceneConfig) -> Art:
    """A plain patch of colour without features."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    angle, power = rng.uniform(0, np.pi), rng.uniform(1.6, 6)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = np.abs(u / rng.uniform(0.5, 1)) ** power + np.abs(v / rng.uniform(0.5, 1)) ** power
    alpha = np.clip((1 - distance) * rng.uniform(1, 6), 0, 1)[..., None]
    tint = np.array(COLOURS[look.colour]) * rng.uniform(0.8, 1.1)
    return np.concatenate([tint * alpha, alpha], -1).astype(np.float32)


Spoiler = Callable[[Rng, Look, int, SceneConfig], Art]
SPOILERS: dict[str, Spoiler] = {
    "smeared": smeared,
    "blended": blended,
    "half-erased": half_erased,
    "chimera": chimera,
    "two-coloured": two_coloured,
    "shuffled": shuffled,
    "deformed": deformed,
    "faint": faint,
    "blob": blob,
}


def _other(rng: Rng, look: Look, config: SceneConfig) -> Look:
    names = [name for name in config.objects if name != look.object]
    colours = list(COLOURS)
    colour = look.colour if rng.random() < 0.5 else colours[rng.integers(len(colours))]
    return Look(object=names[rng.integers(len(names))], colour=colour, style=look.style)


def _half_plane(rng: Rng, art: Art, share: float) -> NDArray[np.float32]:
    """`[s, s]` mask in 0..1 that keeps the given share of the ink, on one side of a soft straight edge."""
    size = len(art)
    y, x = np.mgrid[:size, :size]
    angle = rng.uniform(0, 2 * np.pi)
    distance = x * np.cos(angle) + y * np.sin(angle)
    order = np.argsort(distance, axis=None)
    ink = np.cumsum(art[..., 3].ravel()[order])
    edge = distance.ravel()[order][np.searchsorted(ink, share * ink[-1])]
    return np.asarray(np.clip(edge - distance + 0.5, 0, 1), np.float32)


# --- small imperfections, which a picture may have and still be right


def bend(rng: Rng, picture: NDArray[np.float32], strength: float, knots: int) -> NDArray[np.float32]:
    """Move the pixels of `[s, s, C]` along a smooth random field of root mean square `strength` pixels."""
    size = len(picture)
    at = np.linspace(0, knots - 1, size, dtype=np.float32)
    weights = np.clip(1 - np.abs(at[:, None] - np.arange(knots, dtype=np.float32)), 0, 1)
    field = weights @ rng.standard_normal((2, knots, knots), np.float32) @ weights.T  # [2, s, s], (y, x)
    field *= strength / np.sqrt((field**2).mean())
    places = np.clip(field + np.mgrid[:size, :size].astype(np.float32), 0, size - 1)
    low = np.minimum(places.astype(np.intp), size - 2)
    fy, fx = (places - low)[..., None]
    i, j = low
    top = picture[i, j] * (1 - fx) + picture[i, j + 1] * fx
    bottom = picture[i + 1, j] * (1 - fx) + picture[i + 1, j + 1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy, np.float32)


def roughened(rng: Rng, canvas: Canvas) -> Canvas:
    """A picture as a generator might draw it: a little bent, soft, tinted, noisy, with seams of patches."""
    size = len(canvas)
    if rng.random() < 0.7:
        canvas = bend(rng, canvas, rng.uniform(0.2, 0.9), 6)
    if rng.random() < 0.5:
        spread = rng.uniform(0.3, 0.85)
        canvas = 255 - blur(spread, spread, 255 - canvas)  # in ink, so that the loss at the edge is white
    if rng.random() < 0.5:
        canvas = (canvas * rng.uniform(0.93, 1.05, 3) + rng.uniform(-8, 8, 3)).astype(np.float32)
    if rng.random() < 0.3:
        side = int(rng.choice([4, 6, 8]))
        seams = rng.standard_normal((size // side, size // side, 3), np.float32) * rng.uniform(1, 7)
        canvas = canvas + seams.repeat(side, 0).repeat(side, 1)
    if rng.random() < 0.6:
        canvas = canvas + rng.standard_normal(canvas.shape, np.float32) * rng.uniform(1, 14)
    return canvas


def _nibbled(rng: Rng, art: Art) -> Art:
    """Up to 8 % of the ink missing at one side."""
    return art * _half_plane(rng, art, rng.uniform(0.92, 1))[..., None]


# --- whole pictures


def paste(canvas: Canvas, art: Art, centre: tuple[float, float]) -> None:
    """Paste on the canvas, in place; whatever lies outside is cut off. `centre` is (x, y) in pixels."""
    side, size = len(art), len(canvas)
    x, y = round(centre[0] - side / 2), round(centre[1] - side / 2)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + side, size), min(y + side, size)
    piece = art[top - y : bottom - y, left - x : right - x]
    region = canvas[top:bottom, left:right]
    region *= 1 - piece[..., 3:]
    region += piece[..., :3]


def scatter(rng: Rng, sizes: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Upper left corners `[n, 2]` (x, y) of boxes without overlap; fewer than `sizes` if they do not fit."""
    while True:
        for _ in range(4):
            num_tries = 16 if len(sizes) < 3 else 128
            spots = rng.integers(0, (side - sizes + 1)[None, :, None], (num_tries, len(sizes), 2))
            centres = spots + sizes[None, :, None] / 2
            gaps = np.abs(centres[:, :, None] - centres[:, None]).max(-1) + np.eye(len(sizes)) * side
            fits = (gaps >= (sizes[:, None] + sizes[None]) / 2).all((1, 2))
            if fits.any():
                return np.asarray(spots[int(fits.argmax())], np.int64)
        sizes = sizes[:-1]


def draw_looks(rng: Rng, num: int, config: SceneConfig) -> list[Look]:
    """What to show: the same (colour, object) again and again, or any mixture."""

    def draw() -> Look:
        return Look(
            object=config.objects[rng.integers(len(config.objects))],
            colour=list(COLOURS)[rng.integers(len(COLOURS))],
            style=config.styles[rng.integers(len(config.styles))],
        )

    looks = [draw() for _ in range(num)]
    if rng.random() < 0.4:
        looks = [Look(object=looks[0].object, colour=looks[0].colour, style=look.style) for look in looks]
    return looks


def _empty(rng: Rng, size: int) -> Canvas:
    """White, plain, coarse clouds or noise."""
    canvas = np.full((size, size, 3), 255, np.float32)
    choice = rng.integers(4)
    if choice == 1:
        canvas[:] = rng.uniform(0, 255, 3)
    elif choice > 1:
        side = 1 if choice == 2 else int(rng.choice([2, 4, 8]))
        noise = rng.random((size // side, size // side, 3), np.float32) * 255
        canvas = blur(side / 3, side / 3, noise.repeat(side, 0).repeat(side, 1))
    return canvas


def draw_picture(rng: Rng, config: SceneConfig) -> tuple[Canvas, list[tuple[Look, tuple[float, float]]]]:
    """One picture `float32 [size, size, 3]`, and its good sprites with their centres (x, y) in pixels."""
    if rng.random() < EMPTY_SHARE:
        return _empty(rng, config.size), []
    num = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.2, 0.2]))
    low, high = {1: (22, 32), 2: (18, 25), 3: (16, 23), 4: (16, 23)}[num]
    common = rng.integers(low, high)
    uneven = rng.integers(-3, 4, num) * (rng.random() < 0.5)
    sizes = np.maximum(common + uneven, 16) * config.size // 48
    spots = scatter(rng, sizes, config.size)
    canvas, good = np.full((config.size, config.size, 3), 255, np.float32), []
    for look, (x, y), size in zip(draw_looks(rng, len(spots), config), spots.tolist(), sizes.tolist(), strict=False):
        centre = (x + size / 2, y + size / 2)
        if rng.random() < SPOILT_SHARE:
            spoil = list(SPOILERS.values())[rng.integers(len(SPOILERS))]
            paste(canvas, spoil(rng, look, size, config), centre)
            continue
        art = look.art(size)
        paste(canvas, _nibbled(rng, art) if rng.random() < 0.15 else art, centre)
        good.append((look, centre))
    return (canvas if rng.random() < CLEAN_SHARE else roughened(rng, canvas)), good


def practice_batch(seed: int, step: int, num: int, config: SceneConfig) -> PracticeBatch:
    """The `num` pictures of training step `step`, with their targets."""
    rng = np.random.default_rng([seed, PRACTICE_STREAM, step])
    grid = config.size // CELL
    batch = PracticeBatch(
        pictures=np.empty((num, config.size, config.size, 3), np.uint8),
        heat=np.zeros((num, grid, grid), np.float32),
        offset=np.zeros((num, grid, grid, 2), np.float32),
        colour=np.zeros((num, grid, grid), np.int64),
        object=np.zeros((num, grid, grid), np.int64),
    )
    middles = np.stack(np.meshgrid(np.arange(grid), np.arange(grid)), -1) + 0.5  # [G, G, 2], (x, y) in cells
    for row in range(num):
        canvas, good = draw_picture(rng, config)
        batch.pictures[row] = np.clip(np.rint(canvas), 0, 255)
        for look, centre in good:
            offset = np.array(centre) / CELL - middles
            heat = np.exp(-0.5 * (offset**2).sum(-1) / HEAT_SPREAD**2)
            nearest = heat > batch.heat[row]
            batch.heat[row][nearest] = heat[nearest]
            batch.offset[row][nearest] = offset[nearest]
            batch.colour[row][nearest] = list(COLOURS).index(look.colour)
            batch.object[row][nearest] = config.objects.index(look.object)
    return batch
