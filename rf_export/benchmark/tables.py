"""The result of a benchmark as text for a terminal. Knows nothing of measuring."""

import statistics
from collections.abc import Mapping
from typing import Any

FORMAT = 2  # of the result
STAGE_TITLES = {"rep_step": "AR step", "denoise_step": "denoise step", "picture": "whole picture"}
READING_TITLES = {
    "encode_image": "encode a picture",
    "first_word": "picture + question: first word",
    "next_word": "next word",
    "second_question": "2nd question: first word",
}
TITLES = {**STAGE_TITLES, **READING_TITLES}
REPEATS_HEAD = ["threads", "stage", "contender", "median ms", "lowest", "highest", "apart"]
REPEATS_NOTE = "fresh processes: {}; their medians: how fast one is depends on where its memory happens to lie"


def format_bench(result: Mapping[str, Any]) -> str:
    """All tables, for people."""
    lines = [*describe(result)]
    for run in result["runs"]:
        for ours in run["speedups"]:
            own = ours == run["ours"]
            head = f"{run['threads']} thread(s), ms: median [95% interval]; x: how many times as fast our {ours} is"
            lines += ["", head, *aligned(_drawing_table(run, ours, floor=own))]
            lines += ["", *aligned(_reading_table(run, ours, floor=own))]
    if result["repeats"]:
        lines += ["", REPEATS_NOTE.format(len(result["repeats"])), *aligned([REPEATS_HEAD, *repeats_rows(result)])]
    lines += ["", *_speed_lines(result), *footprint_lines(result)]
    lines += [f"left out: {what}: {why}" for what, why in result["left_out"].items()]
    return "\n".join(lines)


def describe(result: Mapping[str, Any]) -> list[str]:
    """The machine and the model, three lines."""
    machine, model, state = result["machine"], result["model"], result["state"]
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['features'])}; load "
        f"{state['begin']['load_average']} before, {state['end']['load_average']} after",
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        f"{model['num_parameters'] / 1e6:.1f} M parameters, {model['height']} x {model['width']} px: "
        f"{model['rep_tokens']} tokens, {model['patches']} patches, {model['num_steps']} steps, "
        f"{model['cache_slots']} cache slots; guided in {model.get('guided_steps', model['num_steps'])} steps; "
        f"questions of {model['question_tokens']} tokens",
    ]


def _drawing_table(run: Mapping[str, Any], ours: str, *, floor: bool) -> list[list[str]]:
    rows = [["", *STAGE_TITLES.values(), "tokens", "PSNR"]]
    for name in run["timings"]["rep_step"]:
        agreement = run["agreement"][name]
        agreed = f"{agreement['tokens_equal']}/{agreement['tokens']}", f"{agreement['psnr_db']:.0f} dB"
        rows.append([name, *(_cell(run, stage, name, ours) for stage in STAGE_TITLES), *agreed])
    rates = run["floor"]
    note = (
        f"{rates['rep_step']['bandwidth_gb_s']:.1f} GB/s at this working set, "
        f"{rates['denoise_step']['matrix_gflop_s']:.0f} GFLOP/s"
    )
    return [*rows, _floor_row(run, ours, tuple(STAGE_TITLES)[:2], [note, "", ""])] if floor else rows


def _reading_table(run: Mapping[str, Any], ours: str, *, floor: bool) -> list[list[str]]:
    rows = [["", *READING_TITLES.values(), "words/s", "words"]]
    for name, timing in run["timings"]["next_word"].items():
        agreement = run["agreement"][name]
        speed = f"{1e3 / timing['median_ms']:.0f}", f"{agreement['words_equal']}/{agreement['words']}"
        rows.append([name, *(_cell(run, stage, name, ours) for stage in READING_TITLES), *speed])
    return [*rows, _floor_row(run, ours, tuple(READING_TITLES), ["", ""])] if floor else rows


def _cell(run: Mapping[str, Any], stage: str, name: str, ours: str) -> str:
    timing = run["timings"].get(stage, {}).get(name)
    if timing is None:
        return "left out"
    text = f"{timing['median_ms']:.2f} [{timing['low_ms']:.2f}, {timing['high_ms']:.2f}]"
    speedup = run["speedups"][ours][stage].get(name)
    return text if speedup is None else f"{text} {speedup['median']:.2f}x"


def _floor_row(run: Mapping[str, Any], ours: str, stages: tuple[str, ...], rest: list[str]) -> list[str]:
    cells = []
    for stage in stages:
        floor, measured = run["floor"][stage]["floor_ms"], run["timings"][stage][ours]["median_ms"]
        cells.append(f"{floor:.2f}; ours {measured / floor:.2f}x of it")
    return ["floor fp32", *cells, *rest]


def _speed_lines(result: Mapping[str, Any]) -> list[str]:
    """What the steps of our engine are like one by one, and energy."""
    timeline = result["timeline"]
    lines = [
        f"{steps['num']} {STAGE_TITLES[kind]}s of ours one by one, ms: median {steps['p50_ms']:.2f}, "
        f"95% within {steps['p95_ms']:.2f}, 99% within {steps['p99_ms']:.2f}"
        for kind, steps in timeline["steps"].items()
        if kind in STAGE_TITLES
    ]
    for run in result["runs"]:
        energy = ", ".join(f"{name} {joules:.1f} J" for name, joules in run["joules_per_picture"].items())
        if energy:
            lines.append(f"energy of a picture ({result['machine']['energy']}), {run['threads']} thread(s): {energy}")
    return lines


def footprint_lines(result: Mapping[str, Any]) -> list[str]:
    """What a fresh process costs, by contender."""
    weights = result["model"]["weight_bytes"]
    return [
        f"{name}: first picture (one denoising step) {row['first_picture_seconds']:.2f} s after the process starts, "
        f"{row['start_seconds']:.2f} s of it imports, {row['load_seconds']:.2f} s loading; resident "
        f"{row['loaded_bytes'] / 2**20:.0f} MiB after loading, {row['drawn_bytes'] / 2**20:.0f} MiB after drawing "
        f"({row['drawn_bytes'] / weights:.2f} x the weights), peak with libraries {row['peak_bytes'] / 2**20:.0f} MiB"
        for name, row in result["footprint"].items()
    ]


def repeats_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """How far fresh processes lie apart: a row per number of threads, stage and contender."""
    medians: dict[tuple[str, str, str], list[float]] = {}
    for runs in result["repeats"]:
        for run in runs:
            for stage, rows in run["timings"].items():
                for name, row in rows.items():
                    key = str(run["threads"]), TITLES[stage], name
                    medians.setdefault(key, []).append(statistics.median(row["samples_ms"]))
    return [
        [
            *key,
            f"{statistics.median(values):.3g}",
            f"{min(values):.3g}",
            f"{max(values):.3g}",
            f"{max(values) / min(values) - 1:.0%}",
        ]
        for key, values in medians.items()
    ]


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table whose columns stand below one another."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
