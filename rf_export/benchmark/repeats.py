"""The same timings in a fresh process: its memory lies elsewhere, and small graphs are faster or slower for it.

Within a process the place of weights and buffers does not change, so that rounds alone tell nothing of it (Kalibera and
Jones 2013, "Rigorous benchmarking in reasonable time"; Mytkowicz et al. 2009, "Producing wrong data without doing
anything obviously wrong!").
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rf_export.benchmark.entrants import entrants
from rf_export.benchmark.floor import measure_floors
from rf_export.benchmark.stage_timing import Timings, as_dicts, time_stages
from rf_export.benchmark.task import BenchOptions, open_task
from runtime.errors import RFError

ROUNDS_AGAIN = 8  # more processes tell more than more rounds

_KEPT = ("samples_ms", "cpu_samples_ms")


def in_fresh_process(bundle: Path, checkpoint: Path, options: BenchOptions) -> list[dict[str, Any]]:
    """What `time_again` measures there; raises RFError where the process fails."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as process:
        try:
            return process.submit(time_again, bundle, checkpoint, options).result()
        except Exception as error:  # whatever it is, and the end of the process
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise RFError(
                f"A fresh process could not repeat the benchmark: {last} Measure without --repeat."
            ) from error


def time_again(bundle: Path, checkpoint: Path, options: BenchOptions) -> list[dict[str, Any]]:
    """Ours, eager PyTorch and yardsticks only, for a comparison with other processes; correctness was judged before.

    For a process of its own, whose number of threads it sets. PyTorch is always the same variant: a trial might choose
    another in every process.

    Returns:
        Per number of threads: `threads`, and `timings` and `yardsticks` by stage as in `run_bench`, samples only.
    """
    few = replace(options, num_rounds=min(options.num_rounds, ROUNDS_AGAIN), compile=False)
    task = open_task(bundle, checkpoint, few)
    runs = []
    for num_threads in options.threads:
        torch.set_num_threads(num_threads)
        with entrants(task, num_threads, _silent, plain=True) as (found, _):
            for each in found:
                each.prepare()
            costs = task.costs()
            timings, yards = time_stages(task, found, costs, measure_floors(costs), _silent)
        runs.append({"threads": num_threads, "timings": _samples(timings), "yardsticks": _samples(yards)})
    return runs


def _silent(what: str) -> None:
    """Nobody hears of it."""


def _samples(timings: Timings) -> dict[str, Any]:
    """For JSON, without what can be computed from the samples."""
    return {
        stage: {name: {key: row[key] for key in _KEPT} for name, row in rows.items()}
        for stage, rows in as_dicts(timings).items()
    }
