"""A report as one HTML file that opens offline: a Jinja2 template, filled in. No script, and nothing to fetch.

Templates stand beside the module that fills them in. They extend `base.html`, which has the style, and take tables,
bars, columns and pictures from `parts.html`. Whatever is put in is text: no prompt or file name becomes markup. Knows
nothing of models.
"""

import base64
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from runtime.pictures.png import encode_png

_SMALL: Final = 1e-4


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A horizontal bar, as long as its value among those of its group."""

    name: str
    value: float
    label: str
    is_ours: bool = True  # drawn in full colour: what the report is about, not what it is compared with


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Thin vertical columns side by side, a value each."""

    name: str
    values: list[float]  # not negative
    labels: list[str]  # of each value
    highest: float  # of the axis


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture `uint8 [H, W, 3]`, and what stands below it."""

    pixels: npt.NDArray[np.uint8]
    caption: str


def render(template: Path, **values: object) -> str:
    """The whole document."""
    folders = [template.parent, Path(__file__).parent]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "png": png}
    return environment.get_template(template.name).render(values)


def png(pixels: npt.NDArray[np.uint8]) -> str:
    """The address of a picture that needs no file."""
    return f"data:image/png;base64,{base64.b64encode(encode_png(pixels)).decode('ascii')}"


def number(value: float) -> str:
    """Three digits, without an exponent where it is not very small."""
    if value == 0:
        return "0"
    if abs(value) < _SMALL:
        return f"{value:.2g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
