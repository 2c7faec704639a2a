"""The native host draws on and on in the memory that it took at first."""

import os
import sys

import pytest
from building import ROOT, run

# Sizes, windows and prompts change, and conversations come and go, so that whatever is kept adds up.
DRAWINGS = """
import contextlib, sys
import numpy as np
from pathlib import Path
from runtime import AnswerOptions, GenerationOptions
from runtime.native.binding import NativePipeline

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

picture = np.zeros((24, 24, 3), np.uint8)

def work(pipeline, first, count):
    for number in range(first, first + count):
        size = 8 * (1 + number % 4)
        options = GenerationOptions(num_steps=1, window=1 + number % 3, height=size, width=32)
        pipeline.draw(["a red car", "", "two blue fish"][number % 3], seed=number, options=options)
        if number % 10 == 0:
            with contextlib.closing(pipeline.converse()) as conversation:
                conversation.show(picture, height=24, width=24)
                conversation.ask("", options=AnswerOptions(max_tokens=2))

with NativePipeline.load(sys.argv[1], num_threads=1, engine="none", library=Path(sys.argv[2])) as pipeline:
    seen = []
    for part in range(10):
        work(pipeline, 100 * part, 100)
        seen.append(resident())
print(*seen)
"""


@pytest.mark.slow
def test_a_thousand_pictures_take_no_more_memory_than_the_first_hundreds(tiny_bundle, native_library):
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    seen = list(map(int, run(sys.executable, "-c", DRAWINGS, tiny_bundle, native_library, env=quiet).split()))
    print(f"{seen} KiB after each hundred")
    assert max(seen) <= seen[0] + 8192  # 8 KiB a picture; ONNX Runtime's arena comes and goes by 4 MiB
