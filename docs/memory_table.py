"""The memory tables of docs/jetson.md.

    python docs/memory_table.py                 # shapes up to Qwen3-4B, and how many pictures fit on which board
    python docs/memory_table.py BUNDLE          # the estimate against what ONNX Runtime took here, in fresh processes

The first needs the `export` extra, the second `ort` and Linux.
"""

import json
import subprocess
import sys
from pathlib import Path

from runtime.bundle.folder import open_bundle
from runtime.commands.memory_plan import BOARDS_GIB, MIB, Workload, drawing_memory, fits

SHAPES = ("base-90m", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b")
SIDES = (256, 1024)  # pixels
CASES = ((1, 1), (2, 1), (1, 2), (8, 1))  # pictures at once, and their side as a multiple of the default
MEASURE = """
import json, sys
import numpy
from runtime import GenerationOptions, Pipeline
from runtime.backends.host.machine import process_memory

bundle, requests, height, width = sys.argv[1], *map(int, sys.argv[2:])
pipeline = Pipeline.load(bundle, num_threads=1, engine="none", verify="size")
loaded = process_memory().now
rows, columns = pipeline.bundle.manifest.model.rep_grid(height, width)
ids = numpy.zeros((requests, rows * columns), numpy.int64)
options = GenerationOptions(num_steps=1, height=height, width=width)
list(pipeline.generate([""] * requests, options=options, rep_ids=ids, previews=False))
print(json.dumps((process_memory().peak - loaded) / 2**20))
"""


def print_shapes() -> None:
    """What every preset needs in fp16 for one picture, held by TensorRT engines: the attention is in three of them."""
    from rf_export.benchmark.floor import attention_parameters
    from rf_export.benchmark.models import preset_spec
    from rf_export.config import preset

    boards = " | ".join(f"at once on {board} GB" for board in BOARDS_GIB)
    print(f"| model | parameters | pixels | weights, MiB | cache | activations, at most | together | {boards} |")
    print("|---" * (7 + len(BOARDS_GIB)) + "|")
    for name in SHAPES:
        model, config = preset_spec(name), preset(name)
        held = model.num_parameters + 2 * config.num_layers * attention_parameters(config)
        for side in SIDES:
            (row,) = fits(model, {"fp16": 2 * held}, Workload(height=side, width=side))
            print(f"| {name} | {model.num_parameters / 1e6:,.0f} M | {side} | {' | '.join(row.cells())} |")


def compare(bundle: Path) -> None:
    """The estimate beside the peak, above what the loaded graphs take."""
    model = open_bundle(bundle).manifest.model
    print("| pictures at once | pixels | cache and activations, estimated MiB | measured MiB |\n|---|---|---|---|")
    for requests, scale in CASES:
        height, width = scale * model.default_height, scale * model.default_width
        work = Workload(num_requests=requests, height=height, width=width, prompt_tokens=1)
        estimate = drawing_memory(model, "fp32", 0, work).total / MIB
        arguments = [sys.executable, "-c", MEASURE, str(bundle), *map(str, (requests, height, width))]
        measured = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
        print(f"| {requests} | {height} x {width} | {estimate:.0f} | {measured:.0f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compare(Path(sys.argv[1]))
    else:
        print_shapes()
