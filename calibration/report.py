"""The report of a calibration as one HTML file that opens offline. Knows nothing of how figures come about."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.statistics import GUIDANCE, Recorded
from runtime.bundle.atomic import write_text
from verification.pages import html as report
from verification.pages.html import Section


def write_report(path: Path, name: str, summary: Mapping[str, Any], recorded: Recorded) -> None:
    """Write the report of a summary, as `calibration.calibrate` makes it."""
    settings = summary["calibration"]
    subtitle = (
        f"target {settings['target']}, everything else in {settings['base']}; ranges by {settings['method']}"
        f"{', smoothed' if settings['smooth'] else ''}; {settings['prompts']} prompts"
    )
    sections = [_verdict(summary), _decisions(summary), _quality(summary), _coverage(summary), _ranges(recorded)]
    text = report.page(f"INT8 calibration of {name}", subtitle, sections)
    write_text(path, text)


def _verdict(summary: Mapping[str, Any]) -> Section:
    problems = summary["problems"]
    text = "Passed." if not problems else f"Failed: {'; '.join(problems)}."
    rows = [
        (
            decision["graph"],
            decision["int8_layers"],
            _ms(decision["before"]),
            _ms(decision["after"]),
            _times(decision["speedup"]),
            f"{decision['agreement']['cosine']:.6f}",
        )
        for decision in summary["decisions"]
    ]
    header = ("graph", "INT8 layers", "before, ms", "after, ms", "speed-up", "worst cosine, single steps")
    share = f"Weights take {100 * summary['weights_share']:.1f}% of their size in fp32."
    return Section("Verdict", report.note(text) + report.table(header, rows) + report.note(share))


def _decisions(summary: Mapping[str, Any]) -> Section:
    rows = [
        (
            row["graph"],
            row["kind"],
            row["format"],
            f"{row['kept']}/{row['layers']}",
            f"{100 * row['weights_share']:.1f}%",
            f"{row['cosine']:.6f}",
            f"{row['error']:.2%}",
            "" if row["saved_ms"] is None else f"{row['saved_ms']:.3f}",
            row["why"],
        )
        for decision in summary["decisions"]
        for row in decision["rows"]
    ]
    header = ("graph", "layers", "format", "kept", "of weights", "cosine", "error", "saves, ms", "why")
    saved = [
        (f"{row['graph']} {row['kind']}", max(row["saved_ms"], 0.0), f"{row['saved_ms']:.3f} ms")
        for decision in summary["decisions"]
        for row in decision["rows"]
        if row["kept"] and row["saved_ms"] is not None
    ]
    text = "Each kind of layer alone, against the graph without INT8, on recorded inputs."
    return Section("Each group earns its place", report.note(text) + report.table(header, rows) + report.bars(saved))


def _quality(summary: Mapping[str, Any]) -> Section:
    quality = summary["quality"]
    rows = [
        (
            "tokens equal, same history",
            f"{100 * quality['tokens_equal']['value']:.1f}%",
            _interval(quality["tokens_equal"], 100),
            quality["tokens"],
        ),
        (
            "picture PSNR, same tokens, dB",
            f"{quality['psnr_db']['value']:.1f}",
            _interval(quality["psnr_db"]),
            quality["prompts"],
        ),
    ]
    captions = quality["captions"]
    if captions is not None:
        rows += [
            (what, f"{100 * captions[key] / captions[of]:.1f}%", _percent(captions[f"{key}_interval"]), captions[of])
            for what, key, of in (
                ("captions equal", "answers_equal", "answers"),
                ("their tokens equal, same history", "tokens_equal", "tokens"),
                ("equal or near ties (judged)", "tokens_alike", "tokens"),
            )
        ]
    if quality["score_change"] is not None:
        count = quality["scored_pictures"]
        rows += [
            (what, f"{quality[key]['value']:.1f}", _interval(quality[key]), count)
            for what, key in (
                ("task score before, %", "score_before"),
                ("task score after, %", "score_after"),
                ("change, points", "score_change"),
            )
        ]
    steps = [
        (f"step {step}", -np.log10(max(1 - value, 1e-9)), f"{value:.6f}")
        for step, value in enumerate(quality["x_pred_cosine"])
    ]
    tokens = quality["logits_cosine"]
    worst = f"Logits: worst cosine {min(tokens):.6f}, in step {int(np.argmin(tokens))} of {len(tokens)}."
    worst += f" Features of the image encoder: mean cosine {quality['features_cosine']:.6f}."
    body = report.table(("figure", "value", "95% interval", "of"), rows) + report.note(worst)
    body += report.note("The denoiser's estimate by timestep, mean cosine; bars in digits.")
    return Section("Quality gate", body + report.bars(steps))


def _coverage(summary: Mapping[str, Any]) -> Section:
    header = ("graph", "layers", "steps", "guidance rows", "cells", "fewest rows", "most rows", "values")
    rows = [tuple(row.values()) for row in summary["coverage"]]
    text = "A cell is a step, a guidance row and a layer. Random data have no place here."
    return Section("What was recorded", report.note(text) + report.table(header, rows))


def _ranges(recorded: Recorded) -> Section:
    """By timestep and position: the largest input of any layer, which a static range has to cover."""
    body = ""
    for graph, layers in recorded.items():
        peaks = np.stack(
            [activations.step_max / max(activations.histogram.largest, 1e-30) for activations in layers.values()]
        ).mean(0)  # [T, G]
        for guidance in range(peaks.shape[1]):
            if len(peaks) < 2 or not peaks[:, guidance].any():
                continue
            chosen = np.unique(np.linspace(0, len(peaks) - 1, 12).astype(int))
            items = [(f"step {step}", float(peaks[step, guidance]), f"{peaks[step, guidance]:.2f}") for step in chosen]
            body += report.note(f"{graph}, {GUIDANCE[guidance]} row") + report.bars(items)
    text = "Largest input by step, as a part of the largest of all steps, mean over the layers."
    return Section("Ranges over the trajectory", report.note(text) + body)


def _ms(time: Mapping[str, float] | None) -> str:
    return "" if time is None else f"{time['ms']:.3f}"


def _times(value: float | None) -> str:
    return "not timed" if value is None else f"{value:.2f}x"


def _interval(value: Mapping[str, float], factor: float = 1.0) -> str:
    return f"{factor * value['low']:.1f} to {factor * value['high']:.1f}"


def _percent(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def decision_lines(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table for a terminal: one line per graph."""
    lines = []
    for decision in decisions:
        speed = "" if decision["speedup"] is None else f"  {decision['speedup']:.2f}x as fast"
        kept = ", ".join(f"{row['kind']} {row['format']}" for row in decision["rows"] if row["kept"]) or "nothing"
        lines.append(f"  {decision['graph']}{speed}  INT8: {kept}")
    return lines
