"""Plots as inline SVG, drawn by matplotlib: lines and points over linear or logarithmic axes.

Narrow enough to be read on a phone; texts and axes take the colour of the page, light or dark. Knows nothing of
benchmarks.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

from markupsafe import Markup, escape

COLOURS: Final = ("#3b7dd8", "#d8733b", "#3ba55c", "#a855c8", "#c9485b", "#7f8c8d", "#b8860b", "#16a0a0")
MARKERS: Final = "osD^vPX"  # not as many as colours: sixteen lines differ in one of both
_INK: Final = "#010203"  # becomes the colour of the page's text
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 11,
    "text.parse_math": False,  # a name with dollars is a name
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "rf-export",  # equal plots are equal text
}
_LONG_SPAN: Final = 300.0  # above, a logarithmic axis has ticks at powers of ten only
_NEEDLESS: Final = (  # in a page; groups have the same names in every plot, and nothing refers to them
    r'<metadata>.*?</metadata>|<style.*?</style>| xmlns(?::xlink)?="[^"]*"| font-family: [^;"]*;|(?<=<g) id="[^"]*"'
)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A direction of a plot: its label with the unit, and whether it is logarithmic."""

    label: str
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that belong together."""

    name: str
    points: Sequence[tuple[float, float]]
    line: str = "-"  # as matplotlib spells it; empty for none
    marks: bool = True


def plot(title: str, x: Axis, y: Axis, series: Sequence[Series], *, labels: Sequence[tuple[float, str]] = ()) -> Markup:
    """The plot with a legend below it; `labels` are texts beside places of the x axis."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.4 + 0.12 * len(series)), layout="constrained")
        axes = figure.add_subplot()
        for each, colour, marker in zip(series, cycle(COLOURS), cycle(MARKERS), strict=False):
            style: dict[str, Any] = {"linestyle": each.line, "marker": marker * each.marks, "markersize": 5}
            axes.plot(*zip(*each.points, strict=True), label=each.name, color=colour, **style)
        axes.set(
            xlabel=x.label, ylabel=y.label, xscale="log" if x.log else "linear", yscale="log" if y.log else "linear"
        )
        axes.grid(alpha=0.25)
        for axis, is_log in ((axes.xaxis, x.log), (axes.yaxis, y.log)):
            if is_log:
                low, high = axis.get_view_interval()
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < _LONG_SPAN else (1,)))
                axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        for at, text in labels:
            axes.text(at, 0.02, text, rotation=90, ha="right", alpha=0.7, transform=axes.get_xaxis_transform())
        figure.legend(loc="outside lower left", ncols=2, frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    svg = re.sub(_NEEDLESS, "", svg[svg.index("<svg") :], flags=re.DOTALL).replace(_INK, "currentColor")
    return Markup(svg.replace("<svg", f'<svg class="plot" role="img" aria-label="{escape(title)}"', 1))


def _scale(axis: Axis) -> str:
    return "log" if axis.log else "linear"
