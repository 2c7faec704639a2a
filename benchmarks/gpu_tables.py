"""The results of cells as text for a terminal. Knows nothing of measuring."""

from collections.abc import Mapping
from typing import Any

from rf_export.benchmark.tables import STAGE_TITLES, aligned


def format_cells(result: Mapping[str, Any]) -> str:
    """A table per cell, for people."""
    gpu, machine = result["gpu"], result["machine"]
    lines = [
        f"{gpu.get('name') or 'no GPU'}; {machine['cpu']}, {machine['cores']} cores",
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
    ]
    for cell in result["cells"]:
        lines += ["", *format_cell(cell)]
    return "\n".join(lines)


def format_cell(cell: Mapping[str, Any]) -> list[str]:
    """Wall milliseconds per step, how many times as fast as eager, kernel milliseconds, idle share; and the floor."""
    title = f"{cell['model']}, {cell['size']} px"
    if "contenders" not in cell:
        return [f"{title}: {cell.get('reason', 'not measured')}"]
    lines = [
        f"{title}: {cell['num_parameters'] / 1e6:.0f} M parameters ({cell.get('weights', 'random')} weights), "
        f"{cell['rep_tokens']} tokens, {cell['patches']} patches, {cell['num_steps']} steps, {cell['precision']}"
        + ("" if cell["finished"] else "; not finished")
    ]
    rows = [["ms (times eager; kernels, idle)", *STAGE_TITLES.values(), "tokens", "PSNR", "MiB"]]
    notes = []
    for name, entry in cell["contenders"].items():
        if entry["status"] == "agrees":
            rows.append(_row(name, entry))
        else:
            notes.append(f"  {name}: {entry['status']}; {entry.get('reason') or entry.get('agreement', '')}")
    rows.append(["floor", *(_floor(cell["floor"].get(stage)) for stage in STAGE_TITLES), "", "", ""])
    return [*lines, *aligned(rows), *notes]


def _row(name: str, entry: Mapping[str, Any]) -> list[str]:
    agreement = entry["agreement"]
    cells = [_timing(entry.get("stages", {}).get(stage, {})) for stage in STAGE_TITLES]
    memory = entry.get("peak_mib")
    return [
        name,
        *cells,
        f"{agreement['tokens_equal']}/{agreement['tokens']}",
        f"{agreement['psnr_db']:.0f} dB",
        "" if memory is None else str(memory),
    ]


def _timing(row: Mapping[str, Any]) -> str:
    if "median_ms" not in row:
        return row.get("error", "")[:40]
    speedup, kernel = row.get("times_eager"), row.get("kernel_ms")
    parts = [] if speedup is None else [f"{speedup['median']:.2f}x"]
    if kernel is not None:
        parts.append(f"{kernel:.2f}, {100 * row.get('idle_share', 0):.0f}%")
    return f"{row['median_ms']:.2f}" + (f" ({'; '.join(parts)})" if parts else "")


def _floor(floor: Mapping[str, Any] | None) -> str:
    if floor is None:
        return ""
    return f"{floor['floor_ms']:.2f} ({floor['bandwidth_gb_s']:.0f} GB/s, {floor['matrix_gflop_s'] / 1e3:.1f} TFLOP/s)"
