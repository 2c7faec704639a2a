"""The report of a search as one HTML file that opens offline: cost against score, pictures, what was lost and won.

Knows nothing of how figures come about.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.bundle.atomic import write_text
from tuning.tune import TuneResult
from verification.pages.page import Bar, Picture, render

_WIDTH, _HEIGHT = 400.0, 220.0
_ROOM = 20.0  # of a number below the axis


def write_report(path: Path, name: str, result: TuneResult) -> None:
    """Write the report of a search in a bundle of that name."""
    evidence, sheet = result.evidence, result.sheet
    text = render(
        Path(__file__).with_suffix(".html"),
        title=f"Tuned plan of {name}",
        subtitle=f"{evidence['date'][:10]}, {evidence['precision']}, {evidence['runs']}, {evidence['machine']['cpu']}, "
        f"threads: {evidence['machine']['threads']}; scored by: {evidence['scorer']}",
        evidence=evidence,
        chart=_chart(evidence),
        sheet=[
            (
                plan,
                [
                    Picture(pixels=each, caption=subject.prompt)
                    for subject, each in zip(sheet.subjects, row, strict=True)
                ],
            )
            for plan, row in sheet.rows.items()
        ],
        changed=[
            (what, [pair for each in sheet.changed if (each[4] < each[3]) == fell for pair in _pair(*each)])
            for what, fell in (("Lost", True), ("Won", False))
        ],
        windows=_bars(evidence["windows"]),
        times=[Bar(name=plan, value=ms, label=f"{ms:.1f} ms") for plan, ms in evidence["picture_ms"].items()],
    )
    write_text(path, text)


def _pair(subject: Any, before: Any, after: Any, score: float, other: float) -> list[Picture]:
    return [
        Picture(pixels=before, caption=f"{subject.prompt}\nfull plan, score {score:g}"),
        Picture(pixels=after, caption=f"{subject.prompt}\nthis plan, score {other:g}"),
    ]


def _bars(windows: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    return [
        Bar(
            name=f"window {window}",
            value=each["ms"],
            label=f"{each['ms']:.2f} ms"
            + (f", {each['tokens_different']} tokens differ" * bool(each["tokens_different"])),
        )
        for window, each in windows.items()
    ]


def _chart(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Points of rows against score in percent, or PSNR in dB, in the units of an SVG; each with its interval."""
    points = [
        (each["rows"], each["score"] or each["psnr_db"], each["pictures"], kind)
        for kind, rows in (("search", evidence["tried"]), ("held out", evidence["held_out"]))
        for each in rows
    ]
    full = next((each["full"] for each in (*evidence["held_out"], *evidence["tried"]) if each["full"]), None)
    if full is not None:
        points.append((evidence["rows"][1], full, evidence["tried"][0]["pictures"], "full plan"))
    if not points:
        return {"points": [], "unit": "", "width": _WIDTH, "height": _HEIGHT, "ticks": [], "marks": []}
    fewest, most = (end(rows for rows, *_ in points) for end in (min, max))
    low = min(each["low"] for _, each, *_ in points)
    high = max(each["high"] for _, each, *_ in points)

    def y(value: float) -> float:
        return _HEIGHT * (1 - float(value - low) / float(max(high - low, 1e-9)))

    def x(rows: int) -> float:
        return _WIDTH * (math.log(rows / fewest) / math.log(most / fewest) if most > fewest else 0.5)

    marks: list[tuple[float, int]] = []
    for rows in sorted({rows for rows, *_ in points}):
        if not marks or x(rows) - marks[-1][0] >= _ROOM:
            marks.append((x(rows), rows))
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "unit": "score, %" if full is not None else "PSNR to the full plan, dB",
        "ticks": [(y(value), f"{value:.0f}") for value in (low, (low + high) / 2, high)],
        "marks": marks,
        "points": [
            {
                "x": x(rows),
                "y": y(each["value"]),
                "low": y(each["low"]),
                "high": y(each["high"]),
                "kind": kind,
                "label": f"{kind}, {rows} rows, {n} pictures: "
                f"{each['value']:.1f} [{each['low']:.1f}, {each['high']:.1f}]",
            }
            for rows, each, n, kind in points
        ],
    }
