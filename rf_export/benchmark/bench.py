"""The comparison: our engine, its plain ONNX graphs, eager PyTorch, torch.compile and rivals, interleaved in one run.

    open_task -> per number of threads: choose the best baselines -> agreement -> time in turns -> floor;
    then a picture step by step, scaling, what a fresh process costs, and the same timings again in fresh processes

Every fp32 contender first has to draw the right picture and give the right answers. Baselines compete with their best
variant per stage, found by a short trial, and the trial's figures are reported too. The result has every sample and
two yardsticks that took turns with the contenders; with `repeats`, from several processes, so that `compare.py` can
hold two results against each other.
"""

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rf_export.benchmark.compare import OURS
from rf_export.benchmark.energy import EnergyMeter
from rf_export.benchmark.entrants import Entrant, entrants
from rf_export.benchmark.environment import describe_machine, describe_state
from rf_export.benchmark.floor import measure_floors
from rf_export.benchmark.footprint import measure_footprint
from rf_export.benchmark.repeats import in_fresh_process
from rf_export.benchmark.scaling import measure_scaling, measure_timeline
from rf_export.benchmark.stage_timing import as_dicts, time_stages
from rf_export.benchmark.tables import FORMAT
from rf_export.benchmark.task import BenchOptions, BenchTask, open_task
from runtime.errors import RFError
from runtime.events import Progress
from runtime.pipeline import Pipeline
from verification.measures.timing import ratio


def run_bench(
    bundle: Path, checkpoint: Path, options: BenchOptions, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Measure a bundle against the checkpoint that it was exported from.

    Returns:
        JSON-ready: `machine`, `state`, `model`, `runs` (one per number of threads), `timeline`, `scaling`,
        `footprint`, `repeats` (of each fresh process what `time_again` returns), and what was `left_out`.

    Raises:
        RFError: The two do not belong together, the model cannot take the prompt, or our graphs do not do what the
            checkpoint does.
    """
    begin = describe_state()
    task = open_task(bundle, checkpoint, options)
    options = task.options
    num_stages = len(options.threads) + 2 + options.repeats

    def report(what: str, done: int) -> None:
        if on_progress is not None:
            on_progress(what, done, num_stages)

    runs = _runs(task, report)
    report("a picture step by step, and scaling", len(options.threads))
    # From here on, what was measured above and no other graph: nothing is refused any more.
    pipeline = Pipeline.load(
        bundle,
        options.precisions[0],
        num_threads=options.threads[0],
        allow_unverified=True,
        allow_spinning=options.allow_spinning,
    )
    num_pictures = 0 if "whole pictures" in task.left_out else options.num_picture_rounds
    timeline = measure_timeline(pipeline, task.work, num_pictures)
    scaling = {} if "scaling" in task.left_out else measure_scaling(pipeline, task.work, options.stage_seconds / 3)
    report("cold start, load time and memory", len(options.threads) + 1)
    footprint = measure_footprint(
        bundle, checkpoint, options.precisions, options.threads[0], repeats=min(options.num_rounds, 5)
    )
    described, left_out, repeats = _describe(task), task.left_out, []
    del pipeline, task  # fresh processes need the memory
    for i in range(options.repeats):
        report(f"fresh process {i + 1} of {options.repeats}", num_stages - options.repeats + i)
        repeats.append(in_fresh_process(bundle, checkpoint, options))
    return {
        "format": FORMAT,
        "machine": describe_machine(),
        "state": {"begin": begin, "end": describe_state()},
        "model": described,
        "options": asdict(options),
        "left_out": left_out,
        "runs": runs,
        "timeline": timeline,
        "scaling": scaling,
        "footprint": footprint,
        "repeats": repeats,
    }


def _runs(task: BenchTask, report: Callable[[str, int], None]) -> list[dict[str, Any]]:
    """The contenders in turns, once per number of threads; PyTorch has as many as before in the end."""
    threads_before = torch.get_num_threads()
    runs = []
    try:
        for i, num_threads in enumerate(task.options.threads):
            torch.set_num_threads(num_threads)
            runs.append(_run(task, num_threads, lambda what, i=i: report(what, i)))  # type: ignore[misc]
    finally:
        torch.set_num_threads(threads_before)
    return runs


def _describe(task: BenchTask) -> dict[str, Any]:
    manifest, work = task.opened.manifest, task.work
    graphs = [graph for graph in manifest.graphs if graph.precision == task.options.precisions[0]]
    weights = sum(manifest.files[name].size for name in {file for graph in graphs for file in graph.weights})
    return {
        "num_parameters": manifest.model.num_parameters,
        "bundle_id": manifest.bundle_id,
        **work.describe(),
        "question_tokens": len(task.questions.first),
        "answer_tokens": task.questions.num_words,
        "weight_bytes": weights,
    }


def _run(task: BenchTask, num_threads: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Everything with one number of threads."""
    with entrants(task, num_threads, report) as (found, trials):
        report("agreement")
        return {"threads": num_threads, **_compared(task, found, report), "trials": trials}


def _compared(task: BenchTask, found: list[Entrant], report: Callable[[str], None]) -> dict[str, Any]:
    """What they do, and how long it takes."""
    ours = [each.name for each in found if each.name.startswith(OURS)]
    agreement = {each.name: each.agreement() for each in found}
    wrong = [name for name, each in agreement.items() if not each["passed"]]
    if set(wrong) & set(ours):
        raise RFError(f"{wrong[0]} does not do what the checkpoint does: {agreement[wrong[0]]}. Run rf-export verify.")
    contenders = [each for each in found if each.name not in wrong]
    report("the machine's limits")
    costs = task.costs()
    floors = measure_floors(costs)
    timings, yards = time_stages(task, contenders, costs, floors, report)
    bests = [next(name for name in ours if name.endswith(f" {each}")) for each in task.options.precisions]
    return {
        "ours": ours[0],
        "timings": as_dicts(timings),
        "yardsticks": as_dicts(yards),
        "speedups": {
            best: {
                stage: {name: ratio(timing, rows[best]) for name, timing in rows.items() if name != best}
                for stage, rows in timings.items()
            }
            for best in bests
        },
        "floor": floors,
        "agreement": agreement,
        "joules_per_picture": _energy(contenders, task),
    }


def _energy(contenders: list[Entrant], task: BenchTask) -> dict[str, float]:
    """Of one whole picture each; nothing where the board does not tell, or a picture takes too long."""
    meter = EnergyMeter()
    if meter.source is None or "whole pictures" in task.left_out:
        return {}
    return {each.name: meter.joules(functools.partial(each.turn, "picture")) for each in contenders}
