"""Cold start, load time and memory, each time in a fresh process: what a program costs before its first picture.

Ours imports numpy, onnxruntime and runtime only, as on a target machine; PyTorch is measured beside it. Files may be
in the page cache: a fresh process is not a fresh machine.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from runtime.signature import Precision

# The monotonic clock of Linux is one for all processes.
_COMMON = """
import json, sys, time
started = float(sys.argv[1])
from runtime.backends.host.machine import process_memory

def tell(before, begun, loaded, loaded_bytes, engine):
    drawn, memory = time.monotonic(), process_memory()
    print(json.dumps({
        "start_seconds": begun - started, "load_seconds": loaded - begun, "first_picture_seconds": drawn - started,
        "loaded_bytes": loaded_bytes - before, "drawn_bytes": memory.now - before,
        "peak_bytes": memory.peak, "engine": engine,
    }))
"""
_OURS = (
    _COMMON
    + """
import numpy, onnxruntime
from runtime import GenerationOptions, Pipeline

bundle, precision, engine, threads = sys.argv[2:]
before, begun = process_memory().now, time.monotonic()
pipeline = Pipeline.load(bundle, precision, num_threads=int(threads), engine=engine, verify="size",
                         allow_unverified=True)
loaded, loaded_bytes = time.monotonic(), process_memory().now
pipeline.draw("", options=GenerationOptions(num_steps=1))
tell(before, begun, loaded, loaded_bytes, pipeline.engine is not None)
"""
)
_PYTORCH = (
    _COMMON
    + """
from pathlib import Path
import torch
from rf_export.benchmark.baseline import Baseline, Spelling
from rf_export.benchmark.models import manifest_of
from rf_export.benchmark.workload import DrawingWork
from rf_export.checkpoint import load_checkpoint
from runtime.options import GenerationOptions

checkpoint, threads = sys.argv[2:]
torch.set_num_threads(int(threads))
before, begun = process_memory().now, time.monotonic()
model = load_checkpoint(Path(checkpoint)).requires_grad_(False)
loaded, loaded_bytes = time.monotonic(), process_memory().now
drawer = Baseline(model, DrawingWork.of(manifest_of(model), 1, GenerationOptions(num_steps=1)), Spelling())
drawer.prefill()
drawer.draw_tokens()
drawer.denoise(1)
tell(before, begun, loaded, loaded_bytes, False)
"""
)


def measure_footprint(
    bundle: Path,
    checkpoint: Path,
    precisions: tuple[Precision, ...],
    num_threads: int,
    *,
    repeats: int = 5,
    most_seconds: float = 60.0,
) -> dict[str, dict[str, Any]]:
    """Medians over fresh processes that take turns, and what each measured (`runs`).

    Args:
        bundle: Ours.
        checkpoint: Eager PyTorch's, in fp32.
        precisions: Of our graphs.
        num_threads: Of every process.
        repeats: Processes of each kind.
        most_seconds: Begin no further turn after so long.

    Returns:
        By contender: `start_seconds` until the libraries are imported, `load_seconds` without hashing,
        `first_picture_seconds` from the start of the process to a picture of one denoising step, `loaded_bytes` and
        `drawn_bytes` above the libraries, `peak_bytes` with them.
    """
    commands = {"eager fp32": [_PYTORCH, str(checkpoint)]}
    for precision in precisions:
        for name, choice in (("engine", "auto"), ("onnx", "none")):
            commands[f"{name} {precision}"] = [_OURS, str(bundle), precision, choice]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    begun = time.monotonic()
    for turn in range(repeats):
        if turn and time.monotonic() - begun > most_seconds:
            break
        for name in list(commands):
            row = _in_child(*commands[name], num_threads=num_threads)
            if name.startswith("engine") and not row["engine"]:  # none was built
                del commands[name], rows[name]
            else:
                rows[name].append(row)
    return {
        name: {**{key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "engine"}, "runs": runs}
        for name, runs in rows.items()
    }


def _in_child(code: str, *arguments: str, num_threads: int) -> dict[str, Any]:
    command = [sys.executable, "-c", code, repr(time.monotonic()), *arguments, str(num_threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result
