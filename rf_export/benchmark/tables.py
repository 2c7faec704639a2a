"""The result of a benchmark as text for a terminal and as sections of an HTML report. Knows nothing of measuring."""

from collections.abc import Mapping
from typing import Any

from runtime import report

STAGE_TITLES = {"rep_step": "AR step", "denoise_step": "denoise step", "picture": "whole picture"}


def format_bench(result: Mapping[str, Any]) -> str:
    """All tables, for people."""
    machine, model = result["machine"], result["model"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['features'])}; load {machine['load_average']}",
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        f"{model['num_parameters'] / 1e6:.1f} M parameters, {model['height']} x {model['width']} px: "
        f"{model['rep_tokens']} tokens, {model['patches']} patches, {model['num_steps']} steps, "
        f"{model['cache_slots']} cache slots; both guidance rows in every step",
    ]
    for run in result["runs"]:
        for ours in run.get("speedups", {run["ours"]: run["speedup"]}):
            lines += ["", f"{run['threads']} thread(s), ms: median [95% interval]; x: how many times as fast our "
                          f"{ours} is"]  # fmt: skip
            floor = _floor_rows(run) if ours == run["ours"] else []
            lines += aligned([["", *STAGE_TITLES.values(), "tokens", "PSNR"], *_rows(run, ours), *floor])
    lines += ["", *_footprint_lines(result)]
    return "\n".join(lines)


def _rows(run: Mapping[str, Any], ours: str) -> list[list[str]]:
    rows, speedups = [], run.get("speedups", {ours: run["speedup"]})[ours]
    for name in run["timings"]["rep_step"]:
        cells = []
        for stage in STAGE_TITLES:
            timing = run["timings"][stage][name]
            speedup = speedups[stage].get(name)
            text = f"{timing['median_ms']:.2f} [{timing['low_ms']:.2f}, {timing['high_ms']:.2f}]"
            cells.append(text if speedup is None else f"{text} {speedup['median']:.2f}x")
        agreement = run["agreement"][name]
        rows.append(
            [name, *cells, f"{agreement['tokens_equal']}/{agreement['tokens']}", f"{agreement['psnr_db']:.0f} dB"]
        )
    return rows


def _floor_rows(run: Mapping[str, Any]) -> list[list[str]]:
    ours = run["ours"]
    cells = []
    for stage, floor in run["floor"].items():
        measured = run["timings"][stage][ours]["median_ms"]
        cells.append(f"{floor['floor_ms']:.2f}; ours {measured / floor['floor_ms']:.2f}x of it")
    rates = run["floor"]
    note = (
        f"{rates['rep_step']['bandwidth_gb_s']:.1f} GB/s at this working set, "
        f"{rates['denoise_step']['matrix_gflop_s']:.0f} GFLOP/s"
    )
    return [["floor fp32", *cells, note, "", ""]]


def _footprint_lines(result: Mapping[str, Any]) -> list[str]:
    weights = result["model"]["weight_bytes"]
    lines = []
    for name, row in result["footprint"].items():
        lines.append(
            f"{name}: loads in {1e3 * row['load_seconds']:.0f} ms; resident {row['loaded_bytes'] / 2**20:.0f} MiB "
            f"after loading, {row['drawn_bytes'] / 2**20:.0f} MiB after drawing "
            f"({row['drawn_bytes'] / weights:.2f} x the weights' {weights / 2**20:.0f} MiB)"
        )
    return lines


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table whose columns stand below one another."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def report_section(result: Mapping[str, Any]) -> report.Section:
    """Bars and a table for the HTML report."""
    parts = []
    for run in result["runs"]:
        for stage, title in STAGE_TITLES.items():
            bars = []
            for name, timing in run["timings"][stage].items():
                speedup = run["speedup"][stage].get(name)
                label = f"{timing['median_ms']:.2f} ms"
                if speedup is not None:
                    label += f"; ours is {speedup['median']:.2f}x as fast"
                bars.append((name, timing["median_ms"], label))
            floor = run["floor"].get(stage)
            if floor is not None:
                bars.append(("floor fp32", floor["floor_ms"], f"{floor['floor_ms']:.2f} ms, what memory and arithmetic "
                                                              "allow"))  # fmt: skip
            parts.append(f"<h3>{title}, {run['threads']} thread(s)</h3>" + report.bars(bars))
    machine = result["machine"]
    parts.append(report.note(
        f"{machine['cpu']}, {machine['cores']} cores; {', '.join(f'{n} {v}' for n, v in machine['versions'].items())}; "
        "medians of rounds in which all contenders take turns. " + " ".join(_footprint_lines(result))
    ))  # fmt: skip
    return report.Section("Latency against eager PyTorch", "\n".join(parts))
