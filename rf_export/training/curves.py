"""Loss curves of training runs as a PNG, from their `log.jsonl`.

python -m rf_export.training.curves OUT.png RUN_FOLDER [RUN_FOLDER ...]
"""

import json
import sys
from pathlib import Path

import numpy as np

PANELS = {"lm": "L_LM, nats per word", "rep": "L_Rep, nats per token", "fm": "L_FM", "codes_used": "codes in use"}
SMOOTHING_STEPS = 100


def read_log(folder: Path) -> dict[str, np.ndarray]:
    """Columns of a run's log, NaN where a phase has no such loss; a repeated step (after a resume) counts once."""
    rows: dict[int, list[float]] = {}
    columns = ("step", "cpu_seconds", *PANELS)
    for line in (folder / "log.jsonl").read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows[int(row["step"])] = [np.nan if row[name] is None else float(row[name]) for name in columns]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # a kill cut it off, and the step was logged again after the resume
    table = np.array([rows[step] for step in sorted(rows)]).reshape(-1, len(columns))
    return dict(zip(columns, table.T, strict=True))


def smooth(values: np.ndarray, width: int = SMOOTHING_STEPS) -> np.ndarray:
    """Trailing mean over `width` values, NaN kept where there is none."""
    width = max(1, min(width, len(values)))
    known = np.isfinite(values)
    sums = np.convolve(np.where(known, values, 0.0), np.ones(width))[: len(values)]
    counts = np.convolve(known.astype(float), np.ones(width))[: len(values)]
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


def draw_curves(folders: list[Path], out: Path) -> None:
    """One panel per loss, one line per run, over optimiser steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(4.2 * len(PANELS), 3.4), layout="constrained")
    for folder in folders:
        log = read_log(folder)
        for axis, name in zip(axes, PANELS, strict=True):
            axis.plot(log["step"], smooth(log[name]), label=folder.name, linewidth=1.2)
    for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if name in ("lm", "fm"):
            axis.set_yscale("log")
    axes[0].legend()
    figure.savefig(out, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw_curves([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]))
