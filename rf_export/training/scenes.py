"""Captioned scenes composed from emoji artwork: the training data, the prompts and what each prompt demands.

A scene is one to four sprites on white, recoloured, without overlap, deterministic from (seed, index). Knows nothing
of models: it makes pictures `uint8 [size, size, 3]`, captions, and the facts that a checker verifies.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DATA_VERSION = "scenes-1"  # changes whenever the same (seed, index) would give another picture
ART_FOLDER = Path(__file__).parent / "art"
COLOURS = {
    "red": (222, 40, 40),
    "yellow": (240, 200, 20),
    "green": (40, 160, 60),
    "blue": (40, 100, 225),
    "purple": (130, 50, 190),
    "pink": (250, 120, 185),
}
COUNT_WORDS = ("no", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
PLURALS = {"fish": "fish", "mushroom": "mushrooms"}
NUM_HELD_OUT_PAIRS = 10
Kind = Literal["single", "count", "two", "relation"]
KINDS: tuple[Kind, ...] = ("single", "count", "two", "relation")


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What scenes are made of. `num_objects` takes the first objects of the atlas."""

    size: int = 48
    num_objects: int = 16
    styles: tuple[str, ...] = ("fluent-flat",)
    kinds: tuple[Kind, ...] = KINDS

    def __post_init__(self) -> None:
        layout = atlas_layout()
        if not 2 <= self.num_objects <= len(layout["objects"]):
            raise ValueError(f"num_objects must be 2..{len(layout['objects'])}, got {self.num_objects}")
        unknown = set(self.styles) - set(layout["styles"])
        if unknown or not self.styles:
            raise ValueError(f"styles must be among {layout['styles']}, got {self.styles}")

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects in use, in atlas order."""
        return tuple(atlas_layout()["objects"][: self.num_objects])


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sprite: what it is, and where (box in pixels, `x`, `y` its upper left corner)."""

    object: str
    colour: str
    style: str = ""
    x: int = 0
    y: int = 0
    size: int = 0

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the box in pixels, (x, y)."""
        return self.x + self.size / 2, self.y + self.size / 2


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a caption demands of a picture: exactly these (colour, object) items, and perhaps a relation."""

    kind: Kind
    items: tuple[tuple[str, str], ...]  # (colour, object) of every sprite, relation subject first
    relation: str | None = None

    @property
    def caption(self) -> str:
        """The English caption, lower case, without a full stop."""
        phrases = [f"a {colour} {name}" for colour, name in self.items]
        if self.kind == "count":
            colour, name = self.items[0]
            return f"{COUNT_WORDS[len(self.items)]} {colour} {plural(name)}"
        return f" {self.relation or 'and'} ".join(phrases)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A composed picture with its facts."""

    demand: Demand
    items: tuple[Item, ...]
    picture: NDArray[np.uint8] = field(repr=False)  # [size, size, 3]


def read_caption(caption: str, config: SceneConfig) -> Demand:
    """What a caption of ours demands; raises ValueError where it is none."""
    names = {name: name for name in config.objects} | {plural(name): name for name in config.objects}
    thing = r"(\w+) (\w+)"
    found = re.fullmatch(rf"a {thing}(?: (and|{'|'.join(RELATIONS)}) a {thing})?", caption.lower())
    counted = re.fullmatch(rf"({'|'.join(COUNT_WORDS[2:])}) {thing}", caption.lower())
    demand = None
    if found and found[3]:
        items = ((found[1], found[2]), (found[4], found[5]))
        demand = Demand(kind="two" if found[3] == "and" else "relation", items=items)
        demand = replace(demand, relation=None if found[3] == "and" else found[3])
    elif found:
        demand = Demand(kind="single", items=((found[1], found[2]),))
    elif counted:
        item = (counted[2], names.get(counted[3], ""))
        demand = Demand(kind="count", items=(item,) * COUNT_WORDS.index(counted[1]))
    if demand is None or any(colour not in COLOURS or name not in config.objects for colour, name in demand.items):
        raise ValueError(f"expected a caption such as 'a red car' or 'two blue fish', got {caption!r}")
    return demand


def plural(name: str) -> str:
    """The plural of an object's name."""
    return PLURALS.get(name, name + "s")


@lru_cache
def atlas_layout() -> dict[str, list[str]]:
    """Objects (columns) and styles (rows) of the committed atlas."""
    layout: dict[str, list[str]] = json.loads((ART_FOLDER / "atlas.json").read_text())
    return layout


@lru_cache
def _atlas() -> NDArray[np.uint8]:
    return np.asarray(Image.open(ART_FOLDER / "atlas.png").convert("RGBA"))


@cache
def sprite(style: str, name: str, colour: str, size: int) -> NDArray[np.float32]:
    """A recoloured sprite, `float32 [size, size, 4]`, colour in 0..255 premultiplied by alpha in 0..1.

    The artwork's luminance, centred on its median, runs from black over the colour to white, so that shading stays
    and every object shows the colour equally strongly.
    """
    layout = atlas_layout()
    side = int(layout["sprite_size"])  # type: ignore[call-overload]
    row, column = layout["styles"].index(style), layout["objects"].index(name)
    rgba = _atlas()[row * side : (row + 1) * side, column * side : (column + 1) * side].astype(np.float32)
    alpha = rgba[..., 3] / 255
    luminance = rgba[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    level = np.clip(0.5 + 0.8 * (luminance - np.median(luminance[alpha > 0.5])), 0.12, 0.9)[..., None]
    tint = np.array(COLOURS[colour], np.float32)
    shaded = np.where(level < 0.5, tint * level / 0.5, tint + (255 - tint) * (level - 0.5) / 0.5)
    coloured = np.concatenate([shaded * alpha[..., None], alpha[..., None] * 255], -1)
    channels = [
        Image.fromarray(coloured[..., i]).resize(
            (size, size), Image.Resampling.BOX if size * 2 <= side else Image.Resampling.BILINEAR
        )
        for i in range(4)
    ]
    resized = np.stack([np.asarray(channel) for channel in channels], -1)
    resized[..., 3] /= 255
    return resized


def compose(items: tuple[Item, ...], size: int) -> NDArray[np.uint8]:
    """Paste sprites on white; returns `uint8 [size, size, 3]`."""
    canvas = np.full((size, size, 3), 255, np.float32)
    for item in items:
        art = sprite(item.style, item.object, item.colour, item.size)
        region = canvas[item.y : item.y + item.size, item.x : item.x + item.size]
        region *= 1 - art[..., 3:]
        region += art[..., :3]
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def held_out_pairs(config: SceneConfig) -> frozenset[tuple[str, str]]:
    """The (colour, object) pairs that training never shows: the compositional test. Same for every seed."""
    rng = np.random.default_rng(20260529)
    pairs = [(colour, name) for name in config.objects for colour in COLOURS]
    order = rng.permutation(len(pairs))
    return frozenset(pairs[i] for i in order[: min(NUM_HELD_OUT_PAIRS, len(pairs) // 4)])


@lru_cache
def trained_pairs(config: SceneConfig) -> tuple[tuple[str, str], ...]:
    """The (colour, object) pairs that training shows: all but the held out ones."""
    unseen = held_out_pairs(config)
    return tuple((colour, name) for name in config.objects for colour in COLOURS if (colour, name) not in unseen)


def draw_demand(rng: np.random.Generator, config: SceneConfig, pairs: Sequence[tuple[str, str]], kind: Kind) -> Demand:
    """Draw what a scene of the given kind shows, from the allowed (colour, object) pairs."""
    first = pairs[int(rng.integers(len(pairs)))]
    if kind == "single":
        return Demand(kind=kind, items=(first,))
    if kind == "count":
        return Demand(kind=kind, items=(first,) * int(rng.integers(2, 5)))
    others = [pair for pair in pairs if pair[1] != first[1]]
    second = others[rng.integers(len(others))]
    relation = RELATIONS[rng.integers(4)] if kind == "relation" else None
    return Demand(kind=kind, items=(first, second), relation=relation)


def relation_holds(relation: str, first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether the first centre stands in the relation to the second: the named axis is the clearly larger gap."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    sign = -1 if relation in ("left of", "above") else 1
    return along * sign > abs(across)


def place(rng: np.random.Generator, config: SceneConfig, demand: Demand) -> tuple[Item, ...]:
    """Sizes and positions for what is demanded: without overlap, inside the picture, relation respected."""
    num_items = len(demand.items)
    low, high = {1: (24, 31), 2: (19, 24), 3: (17, 22), 4: (17, 22)}[num_items]
    scale = config.size / 48
    overlap_with_itself = np.eye(num_items, dtype=int) * config.size
    while True:
        size = round(int(rng.integers(low, high)) * scale)
        tries = rng.integers(0, config.size - size + 1, (32, num_items, 2))
        gaps = np.abs(tries[:, :, None] - tries[:, None]).max(-1) + overlap_with_itself
        free = (gaps > size).all((1, 2))  # a white pixel between any two boxes, so that counts are well defined
        for spots in tries[free]:
            centres = [(x + size / 2, y + size / 2) for x, y in spots.tolist()]
            if demand.relation is None or relation_holds(demand.relation, centres[0], centres[1]):
                styles = rng.integers(len(config.styles), size=num_items)
                return tuple(
                    Item(object=name, colour=colour, style=config.styles[style], x=int(x), y=int(y), size=size)
                    for (colour, name), (x, y), style in zip(demand.items, spots, styles, strict=True)
                )


def make_scene(seed: int, index: int, config: SceneConfig, *, held_out: bool = False) -> Scene:
    """The scene number `index` of the stream `seed`; with `held_out`, every scene has a pair unseen in training."""
    rng = np.random.default_rng([seed, index])
    pairs = trained_pairs(config)
    kind = config.kinds[rng.integers(len(config.kinds))]
    demand = draw_demand(rng, config, pairs, kind)
    if held_out:
        unseen = sorted(held_out_pairs(config))
        replacement = unseen[rng.integers(len(unseen))]
        rest = demand.items[1:]
        if kind == "count":
            rest = (replacement,) * len(rest)
        elif rest and rest[0][1] == replacement[1]:
            return make_scene(seed + 1_000_003, index, config, held_out=True)
        demand = replace(demand, items=(replacement, *rest))
    items = place(rng, config, demand)
    return Scene(demand=demand, items=items, picture=compose(items, config.size))


def vocabulary(config: SceneConfig) -> list[str]:
    """Every word that a caption can contain, in a fixed order."""
    names = config.objects
    words = ["a", "and", *COUNT_WORDS[2:], "left", "right", "of", "above", "below", *COLOURS, *names]
    words += map(plural, names)
    return list(dict.fromkeys(words))
