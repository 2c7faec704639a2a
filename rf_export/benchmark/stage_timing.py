"""Times every stage: the contenders in turns with yardsticks. Knows nothing of who they are and what comes of it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from rf_export.benchmark.contenders import READING_STAGES, STAGES
from rf_export.benchmark.entrants import Entrant
from rf_export.benchmark.floor import StepCost
from rf_export.benchmark.task import BenchTask
from rf_export.benchmark.yardstick import NAMES, bounding, yardsticks
from verification.measures.timing import Timing, interleave

Timings = dict[str, dict[str, Timing]]  # stage -> who


def time_stages(
    task: BenchTask,
    contenders: list[Entrant],
    costs: Mapping[str, StepCost],
    floors: Mapping[str, Any],
    report: Callable[[str], None],
) -> tuple[Timings, Timings]:
    """Of the contenders and of the yardsticks, by stage; whole pictures only where they do not take too long."""
    timings: Timings = {}
    yards: Timings = {}
    for stage in (*STAGES, *READING_STAGES):
        report(f"timing {stage.replace('_', ' ')}")
        if stage == "picture" and (seconds := _picture_seconds(task, timings)) > task.options.stage_seconds:
            task.left_out["whole pictures"] = f"one of every contender takes {seconds:.0f} s"
            continue
        marks = yardsticks(NAMES)
        if stage in costs:
            floor, num_bytes = floors[stage], costs[stage].num_bytes
            bounds = bounding(floor["flops"] / floor["matrix_gflop_s"], num_bytes / floor["bandwidth_gb_s"])
            marks = yardsticks(bounds, num_bytes)
        timings[stage], yards[stage] = _time_stage(stage, contenders, marks, task)
    return timings, yards


def as_dicts(timings: Timings) -> dict[str, dict[str, Any]]:
    """For JSON."""
    return {stage: {name: each.as_dict() for name, each in rows.items()} for stage, rows in timings.items()}


def _picture_seconds(task: BenchTask, timings: Timings) -> float:
    """About how long one picture of every contender takes."""
    runs = {"rep_step": task.work.num_decoder_runs, "denoise_step": task.work.plan.num_steps}
    return sum(count * timing.median for stage, count in runs.items() for timing in timings[stage].values())


def _time_stage(
    stage: str, contenders: list[Entrant], marks: dict[str, Callable[[], int]], task: BenchTask
) -> tuple[dict[str, Timing], dict[str, Timing]]:
    """Of the contenders, and of the yardsticks that took turns with them."""
    runs = {each.name: functools.partial(each.turn, stage) for each in contenders}
    num_rounds = task.options.num_picture_rounds if stage == "picture" else task.options.num_rounds
    timings = interleave(
        {**runs, **{f"yardstick {name}": run for name, run in marks.items()}},
        num_rounds,
        warm=stage != "picture",
        most_seconds=task.options.stage_seconds,
    )
    return {name: timings[name] for name in runs}, {name: timings[f"yardstick {name}"] for name in marks}
