"""Load time and resident memory of a bundle in a fresh process that has nothing but the runtime.

Knows nothing of torch: the child imports numpy, onnxruntime and runtime only, as on a target machine.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from runtime.signature import Precision

_CHILD = """
import json, sys, time
import numpy, onnxruntime
from runtime import GenerationOptions, Pipeline

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

bundle, precision, engine, threads = sys.argv[1:]
before = status("VmRSS")
started = time.perf_counter()
pipeline = Pipeline.load(bundle, precision, num_threads=int(threads), engine=engine, verify="size")
seconds = time.perf_counter() - started
loaded = status("VmRSS") - before
pipeline.draw("", options=GenerationOptions(num_steps=1))
print(json.dumps({"load_seconds": seconds, "loaded_bytes": loaded, "drawn_bytes": status("VmRSS") - before,
                  "peak_bytes": status("VmHWM") - before, "engine": pipeline.engine is not None}))
"""


def measure_footprint(
    bundle: Path, precision: Precision, num_threads: int, repeats: int = 5
) -> dict[str, dict[str, Any]]:
    """Medians over fresh processes, engine and plain ONNX graphs in turn; bytes are above numpy and onnxruntime.

    Returns:
        For "engine" (left out if the bundle has none that fits) and "onnx": `load_seconds` without hashing,
        `loaded_bytes` after loading all graphs, `drawn_bytes` after a picture of one step, `peak_bytes`.
    """
    rows: dict[str, list[dict[str, Any]]] = {"engine": [], "onnx": []}
    for _ in range(repeats):
        for name, choice in (("engine", "auto"), ("onnx", "none")):
            rows[name].append(_in_child(bundle, precision, choice, num_threads))  # type: ignore[arg-type]
    if not rows["engine"][0]["engine"]:
        del rows["engine"]
    keys = ("load_seconds", "loaded_bytes", "drawn_bytes", "peak_bytes")
    return {name: {key: statistics.median(run[key] for run in runs) for key in keys} for name, runs in rows.items()}


def _in_child(bundle: Path, precision: Precision, engine: Literal["auto", "none"], num_threads: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(bundle), precision, engine, str(num_threads)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    return result
