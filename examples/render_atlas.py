"""Render the emoji artwork into the sprite atlas that the scenes are composed from.

Run once by a maintainer (the result, `atlas.png`, is committed, so training needs neither npm nor a network):

    npm install --ignore-scripts @lobehub/fluent-emoji-3d@1.1.0 @lobehub/fluent-emoji-flat@1.1.0 \
        @iconify-json/noto@1.2.9 @twemoji/svg@15.0.0
    pip install resvg_py
    python examples/render_atlas.py node_modules

Knows nothing of scenes: one row of sprites per style, one column per object.
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

SPRITE_SIZE = 64
STYLES = ("fluent-flat", "fluent-3d", "noto", "twemoji")
# Object name -> Unicode code point of the emoji. The order is part of the data version: append only.
OBJECTS = {
    "car": "1f697",
    "fish": "1f41f",
    "house": "1f3e0",
    "cat": "1f431",
    "tree": "1f333",
    "mushroom": "1f344",
    "cup": "2615",
    "balloon": "1f388",
    "heart": "2764",
    "key": "1f511",
    "star": "2b50",
    "umbrella": "2602",
    "guitar": "1f3b8",
    "apple": "1f34e",
    "bell": "1f514",
    "hat": "1f3a9",
    "crown": "1f451",
    "book": "1f4d6",
    "turtle": "1f422",
    "rocket": "1f680",
    "snail": "1f40c",
    "cactus": "1f335",
    "whale": "1f433",
    "bus": "1f68c",
    "shirt": "1f455",
    "banana": "1f34c",
    "lock": "1f512",
    "clock": "23f0",
    "rabbit": "1f430",
    "moon": "1f319",
    "gift": "1f381",
    "camera": "1f4f7",
}


def load_artwork(packages: Path, style: str, code_point: str) -> Image.Image:
    """The artwork of one emoji as an RGBA picture; raises FileNotFoundError if the package lacks it."""
    if style == "noto":
        folder = packages / "@iconify-json/noto"
        names = json.loads((folder / "chars.json").read_text())
        name = names.get(code_point) or names[code_point + "-fe0f"]
        body = json.loads((folder / "icons.json").read_text())["icons"][name]["body"]
        view_box = 'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128"'
        return render_svg(f"<svg {view_box}>{body}</svg>")
    folder, suffix = {
        "fluent-flat": (packages / "@lobehub/fluent-emoji-flat/assets", "svg"),
        "fluent-3d": (packages / "@lobehub/fluent-emoji-3d/assets", "webp"),
        "twemoji": (packages / "@twemoji/svg", "svg"),
    }[style]
    for name in (code_point, f"{code_point}-fe0f"):
        file = folder / f"{name}.{suffix}"
        if file.exists():
            return Image.open(file).convert("RGBA") if suffix == "webp" else render_svg(file.read_text())
    raise FileNotFoundError(f"{style} has no artwork for U+{code_point} in {folder}")


def render_svg(svg: str) -> Image.Image:
    """Rasterise an SVG document at 256 px."""
    import resvg_py  # only the maintainer who renders the atlas needs it

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=256, height=256)))).convert("RGBA")


def trim_and_fit(picture: Image.Image) -> Image.Image:
    """Crop to the visible pixels, centre on a square, and scale to `SPRITE_SIZE`."""
    alpha = np.asarray(picture)[..., 3] > 16
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    cropped = picture.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    side = max(cropped.size)
    square = Image.new("RGBA", (side, side))
    square.paste(cropped, ((side - cropped.width) // 2, (side - cropped.height) // 2))
    return square.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS)


def main() -> None:
    """Write `atlas.png` and `atlas.json` where the scenes read them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("packages", type=Path, help="the node_modules folder with the four packages")
    packages = parser.parse_args().packages
    atlas = Image.new("RGBA", (SPRITE_SIZE * len(OBJECTS), SPRITE_SIZE * len(STYLES)))
    for row, style in enumerate(STYLES):
        for column, code_point in enumerate(OBJECTS.values()):
            sprite = trim_and_fit(load_artwork(packages, style, code_point))
            atlas.paste(sprite, (column * SPRITE_SIZE, row * SPRITE_SIZE))
    folder = Path(__file__).parents[1] / "rf_export/training/art"
    atlas.save(folder / "atlas.png", optimize=True)
    layout = {"version": 1, "sprite_size": SPRITE_SIZE, "styles": STYLES, "objects": list(OBJECTS)}
    (folder / "atlas.json").write_text(json.dumps(layout, indent=1) + "\n")


if __name__ == "__main__":
    main()
