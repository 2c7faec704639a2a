"""The same timings in a fresh process: its memory lies elsewhere, and small graphs are faster or slower for it.

Within a process the place of weights and buffers does not change, so that rounds alone tell nothing of it (Kalibera and
Jones 2013, "Rigorous benchmarking in reasonable time"; Mytkowicz et al. 2009, "Producing wrong data without doing
anything obviously wrong!").
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import RFError

if TYPE_CHECKING:
    from rf_export.benchmark.bench import BenchOptions

_CODE = """
import json, sys
from pathlib import Path
from rf_export.benchmark.bench import BenchOptions, time_again

bundle, checkpoint, options = sys.argv[1:]
options = {name: tuple(each) if isinstance(each, list) else each for name, each in json.loads(options).items()}
print(json.dumps(time_again(Path(bundle), Path(checkpoint), BenchOptions(**options))))
"""
_KEPT = ("samples_ms", "cpu_samples_ms")


def in_fresh_process(bundle: Path, checkpoint: Path, options: "BenchOptions") -> list[dict[str, Any]]:
    """What `time_again` measures there, samples only; raises RFError where the process fails."""
    command = [sys.executable, "-c", _CODE, str(bundle), str(checkpoint), json.dumps(asdict(options))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RFError(f"A fresh process could not repeat the benchmark: {last}. Measure without --repeat.")
    return samples_only(json.loads(done.stdout))


def samples_only(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same runs without what can be computed from the samples."""
    return [{**run, **{part: _stripped(run[part]) for part in ("timings", "yardsticks")}} for run in runs]


def _stripped(stages: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    return {stage: {name: {key: row[key] for key in _KEPT} for name, row in rows.items()}
            for stage, rows in stages.items()}  # fmt: skip
