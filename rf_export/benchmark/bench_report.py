"""The result of a benchmark as an HTML report. Knows nothing of measuring: the JSON is all that it needs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rf_export.benchmark.compare import OURS
from rf_export.benchmark.tables import (
    REPEATS_HEAD,
    REPEATS_NOTE,
    STAGE_TITLES,
    TITLES,
    describe,
    footprint_lines,
    repeats_rows,
)
from verification.pages.page import Bar, number, render
from verification.pages.plots import Axis, Series, plot

STEP_TITLES = {"prefill": "prompt", **STAGE_TITLES}
SCALES = {  # what is varied: what stands on the axis, what is timed
    "prompt_tokens": ("cache slots at the end of the tokens", "ms per step"),
    "batch": ("pictures drawn together", "ms per step and picture"),
    "threads": ("threads", "ms per step"),
}


def bench_page(result: Mapping[str, Any]) -> str:
    """The whole document."""
    return render(
        Path(__file__).with_suffix(".html"),
        title="rf-export bench",
        subtitle=describe(result)[0],
        result=result,
        notes=describe(result)[1:] + footprint_lines(result),
        latency=list(latency(result)),
        rooflines=[_roofline(run) for run in result["runs"]],
        spent=_spent(result["timeline"]["pictures"][-1]),
        steps=_steps(result["timeline"]["pictures"][-1]),
        scaling=list(_scaling(result["scaling"])),
        repeats=repeats_rows(result),
        repeats_head=REPEATS_HEAD,
        repeats_note=REPEATS_NOTE.format(len(result["repeats"])),
        facts=list(_facts(result)),
        titles=TITLES,
        step_titles=STEP_TITLES,
    )


def latency(result: Mapping[str, Any]) -> Iterator[tuple[str, list[Bar]]]:
    """Bars of every stage, in brackets how many times as long as our best it takes."""
    for run in result["runs"]:
        for stage, rows in run["timings"].items():
            medians = {name: timing["median_ms"] for name, timing in rows.items()}
            if stage in run["floor"]:
                medians["floor fp32"] = run["floor"][stage]["floor_ms"]
            best = medians[run["ours"]]
            bars = []
            for name, median in medians.items():
                label = f"{number(median)} ms" + f" ({median / best:.2f}x)" * (name != run["ours"])
                bars.append(Bar(name=name, value=median, label=label, is_ours=name.startswith(OURS)))
            yield f"{TITLES[stage]}, {run['threads']} thread(s)", bars


def _roofline(run: Mapping[str, Any]) -> Markup:
    """FLOP per second over FLOP per byte: every stage of every contender under what the machine can do."""
    floors = run["floor"]
    intensity = {stage: each["flops"] / (each["weight_bytes"] + each["cache_bytes"]) for stage, each in floors.items()}
    series = []
    for name in run["timings"]["rep_step"]:
        speeds = (floors[stage]["flops"] / run["timings"][stage][name]["median_ms"] / 1e6 for stage in floors)
        series.append(Series(name=name, points=list(zip(intensity.values(), speeds, strict=True)), line=""))
    peak = max(each["matrix_gflop_s"] for each in floors.values())
    bandwidths = [pick(each["bandwidth_gb_s"] for each in floors.values()) for pick in (min, max)]
    if bandwidths[1] < 1.1 * bandwidths[0]:
        del bandwidths[0]
    low, high = 0.7 * min(1.0, *intensity.values()), 1.4 * max(intensity.values())
    for bandwidth in bandwidths:
        ridge = min(max(peak / bandwidth, low), high)
        roof = [(at, min(peak, at * bandwidth)) for at in sorted({low, ridge, high})]
        name = f"roof: {number(bandwidth)} GB/s, {number(peak)} GFLOP/s"
        series.append(Series(name=name, points=roof, line="--", marks=False))
    return plot(
        f"Roofline, {run['threads']} thread(s)",
        Axis(label="FLOP per byte that has to be read (fp32)", log=True),
        Axis(label="GFLOP/s", log=True),
        series,
        labels=[(value, TITLES[stage]) for stage, value in intensity.items()],
    )


def _spent(picture: Mapping[str, list[float]]) -> list[Bar]:
    """Where the time of one picture goes."""
    spent = {kind: sum(values) for kind, values in picture.items()}
    return [
        Bar(
            name=f"{STEP_TITLES[kind]}: {len(picture[kind])}",
            value=ms,
            label=f"{number(ms)} ms, {ms / sum(spent.values()):.0%}",
        )
        for kind, ms in spent.items()
    ]


def _steps(picture: Mapping[str, list[float]]) -> Markup:
    """Every step of one picture; nothing where no stage has several."""
    series = [
        Series(name=STEP_TITLES[kind], points=list(enumerate(picture[kind], 1)))
        for kind in ("rep_step", "denoise_step")
        if len(picture[kind]) > 1
    ]
    return plot("ms per step", Axis(label="step"), Axis(label="ms per step", log=True), series) if series else Markup()


def _scaling(scaling: Mapping[str, list[Mapping[str, Any]]]) -> Iterator[tuple[str, Markup]]:
    for kind, rows in scaling.items():
        if len(rows) > 1:
            what, unit = SCALES[kind]
            xs = [row["cache_slots"] if kind == "prompt_tokens" else row["x"] for row in rows]
            series = [
                Series(name=title, points=[(x, row[stage]["median_ms"]) for x, row in zip(xs, rows, strict=True)])
                for stage, title in STAGE_TITLES.items()
                if stage in rows[0]
            ]
            yield f"Over {what}", plot(f"Over {what}", Axis(label=what, log=True), Axis(label=unit, log=True), series)


def _facts(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The machine, its state before and after, and what was left out."""
    state = {f"{when}: {name}": value for when, values in result["state"].items() for name, value in values.items()}
    for name, value in {**result["machine"], **state}.items():
        parts = [f"{key} {each}" for key, each in value.items()] if isinstance(value, Mapping) else value
        yield name, ", ".join(map(str, parts)) if isinstance(parts, list) else str(parts)
    for what, why in result["left_out"].items():
        yield f"left out: {what}", why
