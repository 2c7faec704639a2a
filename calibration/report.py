"""The report of a calibration as one HTML file that opens offline. Knows nothing of how figures come about."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.statistics import GUIDANCE, Recorded
from runtime.bundle.atomic import write_text
from verification.pages.page import Bar, Columns, render

_MOST_DIGITS = 9.0  # of a cosine that are shown


def write_report(path: Path, name: str, summary: Mapping[str, Any], recorded: Recorded) -> None:
    """Write the report of a summary, as `calibration.calibrate` makes it."""
    settings = summary["calibration"]
    smoothed = ", smoothed" * settings["smooth"]
    text = render(
        Path(__file__).with_suffix(".html"),
        title=f"INT8 calibration of {name}",
        subtitle=f"target {settings['target']}, everything else in {settings['base']}; ranges by {settings['method']}"
        f"{smoothed}; {settings['prompts']} prompts",
        summary=summary,
        saved=_saved(summary["decisions"]),
        quality=_quality(summary["quality"]),
        agreement=_agreement(summary["quality"]["x_pred_cosine"]),
        coverage=[list(row.values()) for row in summary["coverage"]],
        ranges=list(_ranges(recorded)),
    )
    write_text(path, text)


def _saved(decisions: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """What each kind of layer that was kept saves by itself."""
    return [
        Bar(name=f"{row['graph']} {row['kind']}", value=max(row["saved_ms"], 0.0), label=f"{row['saved_ms']:.3f} ms")
        for decision in decisions
        for row in decision["rows"]
        if row["kept"] and row["saved_ms"] is not None
    ]


def _quality(quality: Mapping[str, Any]) -> list[tuple[str, str, str, int]]:
    """What is judged, its value, its 95% interval, of how many."""
    percent = 100.0
    rows = [
        ("tokens equal, same history, %", quality["tokens_equal"], percent, quality["tokens"]),
        ("picture PSNR, same tokens, dB", quality["psnr_db"], 1.0, quality["prompts"]),
    ]
    captions = quality["captions"]
    if captions is not None:
        rows += [
            (f"{what}, %", _share(captions, key, of), percent, captions[of])
            for what, key, of in (
                ("captions equal", "answers_equal", "answers"),
                ("their tokens equal, same history", "tokens_equal", "tokens"),
                ("equal or near ties (judged)", "tokens_alike", "tokens"),
            )
        ]
    if quality["score_change"] is not None:
        rows += [
            (what, quality[key], 1.0, quality["scored_pictures"])
            for what, key in (
                ("task score before, %", "score_before"),
                ("task score after, %", "score_after"),
                ("change, points", "score_change"),
            )
        ]
    return [
        (what, f"{k * each['value']:.1f}", f"{k * each['low']:.1f} to {k * each['high']:.1f}", count)
        for what, each, k, count in rows
    ]


def _share(captions: Mapping[str, Any], key: str, of: str) -> dict[str, float]:
    low, high = captions[f"{key}_interval"]
    return {"value": captions[key] / captions[of], "low": low, "high": high}


def _agreement(cosines: Sequence[float]) -> Columns:
    return Columns(
        name=f"{len(cosines)} timesteps: mean cosine {min(cosines):.6f} or more",
        values=[min(_MOST_DIGITS, max(0.0, -math.log10(max(1 - cosine, 1e-9)))) for cosine in cosines],
        labels=[f"step {step}: {cosine:.6f}" for step, cosine in enumerate(cosines)],
        highest=_MOST_DIGITS,
    )


def _ranges(recorded: Recorded) -> Iterator[Columns]:
    """By timestep or position: the largest input of any layer, which a static range has to cover."""
    for graph, layers in recorded.items():
        peaks = np.stack(
            [activations.step_max / max(activations.histogram.largest, 1e-30) for activations in layers.values()]
        ).mean(0)  # [T, G]
        for guidance, row in zip(GUIDANCE, peaks.T, strict=True):
            if len(row) > 1 and row.any():
                yield Columns(
                    name=f"{graph}, {guidance} row: {len(row)} steps, {row.min():.2f} to {row.max():.2f}",
                    values=row.tolist(),
                    labels=[f"step {step}: {peak:.2f}" for step, peak in enumerate(row)],
                    highest=1.0,
                )


def decision_lines(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table for a terminal: one line per graph."""
    lines = []
    for decision in decisions:
        speed = "" if decision["speedup"] is None else f"  {decision['speedup']:.2f}x as fast"
        kept = ", ".join(f"{row['kind']} {row['format']}" for row in decision["rows"] if row["kept"]) or "nothing"
        lines.append(f"  {decision['graph']}{speed}  INT8: {kept}")
    return lines
