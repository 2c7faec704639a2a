"""The result of a benchmark as an HTML report. Knows nothing of measuring: the JSON is all that it needs."""

from collections.abc import Mapping, Sequence
from typing import Any

from rf_export.benchmark.tables import (
    REPEATS_HEAD,
    REPEATS_NOTE,
    STAGE_TITLES,
    TITLES,
    describe,
    footprint_lines,
    repeats_rows,
)
from verification.pages import html as report
from verification.pages.plots import Axis, Series, number, plot, spans, strip


def bench_page(result: Mapping[str, Any]) -> str:
    """The whole document."""
    sections = [latency_section(result)]
    for run in result["runs"]:
        title = f"Every stage, {run['threads']} thread(s)"
        sections.append(report.Section(title, _stage_table(run)))
        sections.append(report.Section(f"Roofline, {run['threads']} thread(s)", _roofline(run, result["machine"])))
    sections += [
        report.Section("One picture, step by step", _timeline(result)),
        report.Section("Scaling", _scaling(result)),
        report.Section("Cold start and memory", _footprint(result)),
        *([report.Section("Fresh processes", _repeats(result))] if result["repeats"] else []),
        report.Section("Where it was measured", _environment(result)),
    ]
    return report.page("rf-export bench", describe(result)[0], sections)


def latency_section(result: Mapping[str, Any]) -> report.Section:
    """Bars of every stage, with how many times as fast our engine is."""
    parts = []
    for run in result["runs"]:
        for stage, rows in run["timings"].items():
            bars = []
            for name, timing in rows.items():
                speedup = run["speedups"][run["ours"]][stage].get(name)
                label = f"{timing['median_ms']:.2f} ms"
                if speedup is not None:
                    label += f"; ours is {speedup['median']:.2f}x as fast"
                bars.append((name, timing["median_ms"], label))
            floor = run["floor"].get(stage)
            if floor is not None:
                bars.append(
                    ("floor fp32", floor["floor_ms"], f"{floor['floor_ms']:.2f} ms, what memory and arithmetic allow")
                )
            parts.append(f"<h3>{TITLES[stage]}, {run['threads']} thread(s)</h3>" + report.bars(bars))
    parts.append(
        report.note(
            " ".join(
                [*describe(result), "Medians of rounds in which all contenders take turns.", *footprint_lines(result)]
            )
        )
    )
    return report.Section("Latency against eager PyTorch", "\n".join(parts))


def _stage_table(run: Mapping[str, Any]) -> str:
    header = [
        "stage",
        "contender",
        "median ms",
        "95% interval",
        "p95 ms",
        "p99 ms",
        "CPU ms",
        "rounds",
        f"times {run['ours']}",
    ]
    rows = []
    for stage, contenders in run["timings"].items():
        for name, timing in contenders.items():
            speedup = run["speedups"][run["ours"]][stage].get(name)
            ratio = "" if speedup is None else f"{speedup['median']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]"
            rows.append(
                [
                    TITLES[stage],
                    name,
                    number(timing["median_ms"]),
                    f"{number(timing['low_ms'])} to {number(timing['high_ms'])}",
                    number(timing["p95_ms"]),
                    number(timing["p99_ms"]),
                    number(timing["cpu_median_ms"]),
                    timing["rounds"],
                    ratio,
                ]
            )
    agreement = [
        [
            name,
            f"{each['tokens_equal']} of {each['tokens']}",
            f"{each['psnr_db']:.0f} dB",
            f"{each['features_cosine']:.6f}",
            f"{each['words_equal']} of {each['words']}",
        ]
        for name, each in run["agreement"].items()
    ]
    head = ["against eager fp32", "tokens equal", "picture PSNR", "image features, cosine", "words equal"]
    return (
        report.table(head, agreement)
        + report.table(header, rows)
        + report.note(
            "Wall time per step; CPU time is that of all threads. With few rounds p95 and p99 are the slowest round; "
            "those of single steps are below."
        )
    )


def _roofline(run: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """FLOP per second over FLOP per byte: every stage of every contender under what the machine can do."""
    floors = run["floor"]
    intensity = {stage: each["flops"] / (each["weight_bytes"] + each["cache_bytes"]) for stage, each in floors.items()}
    series = []
    for name in run["timings"]["rep_step"]:
        points = [
            (intensity[stage], floors[stage]["flops"] / run["timings"][stage][name]["median_ms"] / 1e6)
            for stage in floors
        ]
        series.append(Series(name=name, points=points, line=False))
    peak = max(each["matrix_gflop_s"] for each in floors.values())
    bandwidths = [pick(each["bandwidth_gb_s"] for each in floors.values()) for pick in (min, max)]
    if bandwidths[1] < 1.1 * bandwidths[0]:
        del bandwidths[0]
    reached = [rate for each in series for _, rate in each.points]
    x = Axis(label="FLOP per byte that has to be read (fp32)", **_ends([*intensity.values(), 1.0]))
    y = Axis(label="GFLOP/s", **_ends([*reached, peak, x.low * min(bandwidths)]))
    for bandwidth in bandwidths:
        ridge = peak / bandwidth
        roof = [(at, min(peak, at * bandwidth)) for at in sorted({x.low, min(max(ridge, x.low), x.high), x.high})]
        name = f"roof: {number(bandwidth)} GB/s, {number(peak)} GFLOP/s"
        series.append(Series(name=name, points=roof, marks=False, dashed=True))
    labels = [(value, TITLES[stage]) for stage, value in intensity.items()]
    return plot(x, y, series, labels=labels) + report.note(
        f"{machine['cpu']}, {run['threads']} thread(s). Both rates are measured, the bandwidth at the "
        "smallest and largest working set (a small model stays in the caches). Work is counted in fp32, so what has "
        "fewer bits may lie above the roof."
    )


def _ends(values: Sequence[float]) -> dict[str, Any]:
    low, high = spans(values)
    return {"low": low, "high": high, "log": True}


def _timeline(result: Mapping[str, Any]) -> str:
    timeline = result["timeline"]
    titles = {"prefill": "prompt", **STAGE_TITLES}
    picture = timeline["pictures"][-1]
    drawn = strip([(titles[kind], values) for kind, values in picture.items()], "ms")
    rows = [
        [titles[kind], steps["num"], *(number(steps[f"{share}_ms"]) for share in ("p50", "p95", "p99"))]
        for kind, steps in timeline["steps"].items()
    ]
    steps = [
        Series(name=titles[kind], points=list(enumerate(picture[kind], 1)))
        for kind in ("rep_step", "denoise_step")
        if len(picture[kind]) > 1
    ]
    lines = ""
    if steps:
        x = Axis(label="step", low=0, high=max(len(each.points) for each in steps) + 1)
        values = [value for each in steps for _, value in each.points]
        lines = plot(x, Axis(label="ms per step", **_ends(values)), steps)
    table = report.table(["step", "number", "p50 ms", "p95 ms", "p99 ms"], rows)
    return (
        drawn
        + lines
        + table
        + report.note(
            f"Our {timeline['precision']} graphs on {result['machine']['cpu']}, {timeline['threads']} thread(s); the "
            f"strip and the lines are one picture; the table counts the steps of {len(timeline['pictures'])}."
        )
    )


def _scaling(result: Mapping[str, Any]) -> str:
    labels = {
        "prompt_tokens": "cache slots at the end of the tokens",
        "batch": "pictures drawn together",
        "threads": "threads",
    }
    parts = []
    for kind, rows in result["scaling"].items():
        if len(rows) < 2:
            continue
        xs = [row["cache_slots"] if kind == "prompt_tokens" else row["x"] for row in rows]
        series = []
        for stage in ("rep_step", "denoise_step"):
            medians = (row[stage]["median_ms"] for row in rows)
            series.append(Series(name=STAGE_TITLES[stage], points=list(zip(xs, medians, strict=True))))
        unit = "ms per step and picture" if kind == "batch" else "ms per step"
        values = [value for each in series for _, value in each.points]
        parts.append(f"<h3>Over {labels[kind]}</h3>")
        parts.append(plot(Axis(label=labels[kind], **_ends(xs)), Axis(label=unit, **_ends(values)), series))
    if not parts:
        return report.note(f"Not measured: {result['left_out'].get('scaling', 'there is nothing to vary')}.")
    what = f"Our {result['timeline']['precision']} graphs on {result['machine']['cpu']}."
    return "\n".join(parts) + report.note(what)


def _footprint(result: Mapping[str, Any]) -> str:
    header = [
        "contender",
        "imports s",
        "loading s",
        "first picture s",
        "resident after loading MiB",
        "after drawing MiB",
        "peak, all MiB",
    ]
    rows = [
        [
            name,
            *(f"{row[key]:.2f}" for key in ("start_seconds", "load_seconds", "first_picture_seconds")),
            *(f"{row[key] / 2**20:.0f}" for key in ("loaded_bytes", "drawn_bytes", "peak_bytes")),
        ]
        for name, row in result["footprint"].items()
    ]
    return report.table(header, rows) + report.note(
        "Medians over fresh processes that take turns; from the start of the process to a picture of one denoising "
        "step. Resident memory is above that of the libraries, the peak is all of the process."
    )


def _repeats(result: Mapping[str, Any]) -> str:
    table = report.table(REPEATS_HEAD, repeats_rows(result))
    return table + report.note(f"{REPEATS_NOTE.format(len(result['repeats']))}.")


def _environment(result: Mapping[str, Any]) -> str:
    state = {f"{when}: {name}": value for when, values in result["state"].items() for name, value in values.items()}
    rows = [[name, _shown(value)] for name, value in {**result["machine"], **state}.items()]
    left_out = [[f"left out: {what}", why] for what, why in result["left_out"].items()]
    return report.table(["what", "value"], [*rows, *left_out])


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
