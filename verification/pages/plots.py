"""Plots as inline SVG: lines over a logarithmic or linear axis, a roofline, a strip of steps.

Knows nothing of benchmarks: numbers and names in, text out. Colours follow the page, light or dark.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 78, 16, 14, 48
_SMALL = 1e-4
COLOURS = ("#3b7dd8", "#d8733b", "#3ba55c", "#a855c8", "#c0392b", "#7f8c8d", "#b8860b", "#16a0a0")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A direction of a plot: its label with the unit, its ends, whether it is logarithmic."""

    label: str
    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers from low to high."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 3 else (1,)
            marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        else:
            rough = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
            marks = [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [mark for mark in marks if self.low * 0.999 <= mark <= self.high * 1.001]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that belong together."""

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    marks: bool = True
    dashed: bool = False


def plot(x: Axis, y: Axis, series: Sequence[Series], *, labels: Sequence[tuple[float, str]] = ()) -> str:
    """The plot, with a legend below it, and texts beside places of the x axis."""
    parts = [_frame(x, y)]
    for value, text in labels:
        at, bottom = _x(x, value) - 7, HEIGHT - BOTTOM - 6
        turned = f'transform="rotate(-90 {at:.1f} {bottom})" opacity=".7"'
        parts.append(f'<text x="{at:.1f}" y="{bottom}" {turned}>{html.escape(text)}</text>')
    legend = []
    for i, each in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        spots = [(_x(x, a), _y(y, b)) for a, b in each.points]
        if each.line:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
            dash = ' stroke-dasharray="6 4"' * each.dashed
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if each.marks:
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4.5" fill="{colour}"><title>'
                f"{html.escape(each.name)}: {number(point[0])}, {number(point[1])}</title></circle>"
                for (a, b), point in zip(spots, each.points, strict=True)
            ]
        legend.append(f'<span><i style="background:{colour}"></i>{html.escape(each.name)}</span>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" class="plot">{"".join(parts)}</svg>'
    return f'{_STYLE}{svg}<div class="legend">{"".join(legend)}</div>'


def spans(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis around positive values, with some room."""
    return 0.7 * min(values), 1.4 * max(values)


def strip(groups: Sequence[tuple[str, Sequence[float]]], unit: str) -> str:
    """Durations one after the other on one axis from 0: every one a bar, every group a colour."""
    total = sum(sum(values) for _, values in groups) or 1.0
    axis = Axis(label=f"time ({unit})", low=0.0, high=total)
    height, parts, legend, at = 60, [], [], 0.0
    for i, (name, values) in enumerate(groups):
        colour = COLOURS[i % len(COLOURS)]
        for j, value in enumerate(values):
            left, right = _x(axis, at), _x(axis, at + value)
            parts.append(
                f'<rect x="{left:.2f}" y="{TOP}" width="{max(right - left - 0.4, 0.2):.2f}" height="{height}" '
                f'fill="{colour}" opacity="{0.95 if j % 2 else 0.7}"><title>{html.escape(name)} {j + 1}: '
                f"{number(value)} {html.escape(unit)}</title></rect>"
            )
            at += value
        legend.append(
            f'<span><i style="background:{colour}"></i>{html.escape(name)}: {len(values)}, together '
            f"{number(sum(values))} {html.escape(unit)}</span>"
        )
    bottom = TOP + height
    for tick in axis.ticks():
        parts.append(_text(_x(axis, tick), bottom + 18, number(tick)))
    parts.append(_text(LEFT + (WIDTH - LEFT - RIGHT) / 2, bottom + 38, axis.label))
    svg = f'<svg viewBox="0 0 {WIDTH} {bottom + 46}" role="img" class="plot">{"".join(parts)}</svg>'
    return f'{_STYLE}{svg}<div class="legend">{"".join(legend)}</div>'


def number(value: float) -> str:
    """Three digits, without an exponent where it is not very small."""
    if value == 0:
        return "0"
    if abs(value) < _SMALL:
        return f"{value:.2g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


_STYLE = (
    "<style>.plot{width:100%;max-width:46rem;font:13px system-ui,sans-serif} .plot text{fill:currentColor}"
    " .legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.9rem;margin-bottom:1rem}"
    " .legend i{display:inline-block;width:.8rem;height:.8rem;margin-right:.4rem;border-radius:2px}</style>"
)


def _frame(x: Axis, y: Axis) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in x.ticks():
        at = _x(x, tick)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}" stroke="#8884"/>')
        parts.append(_text(at, bottom + 18, number(tick)))
    for tick in y.ticks():
        at = _y(y, tick)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#8884"/>')
        parts.append(_text(LEFT - 8, at + 4, number(tick), "end"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 6, x.label))
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{html.escape(y.label)}'
        "</text>"
    )
    parts.append(f'<path d="M{LEFT},{TOP}V{bottom}H{right}" fill="none" stroke="currentColor"/>')
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)
