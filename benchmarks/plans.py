"""Whole pictures as the paper draws and by the tuned plan, by all contenders, in turns in one run on one thread.

    python benchmarks/plans.py reference base-90m

For every model: export with the committed plan of the reference checkpoint, calibrate, build both engines, and time
pictures and denoising steps by both plans: our engines in fp32 and INT8, eager PyTorch, torch.compile, AOTInductor,
and OpenVINO over our graphs. So INT8 stands beside eager fp32 at the same plan. Writes
`benchmarks/results/plans-<name>-<cpu>.json`. Weights of presets other than `reference` are random: their speed counts,
their pictures do not. Keep the machine quiet meanwhile; takes half an hour.
"""

import contextlib
import functools
import json
import shlex
import sys
from pathlib import Path
from typing import Any, Final, Literal

import click
import torch
from cpu import HERE, prepare, progress_line

from calibration import CalibrationConfig, GateLimits, calibrate, read_prompts
from engines import EngineConfig, build
from rf_export.benchmark.entrants import entrants
from rf_export.benchmark.environment import describe_machine, describe_state, file_label
from rf_export.benchmark.models import REFERENCE
from rf_export.benchmark.tables import aligned
from rf_export.benchmark.task import RIVALS, BenchOptions, open_task
from rf_export.checkpoint import checkpoint_sha256
from runtime.bundle.folder import open_bundle
from runtime.bundle.plan import PLAN_NAME, describe_plan, read_plan
from runtime.events import Progress
from runtime.options import Plan
from verification.measures.timing import interleave, ratio

PROMPTS: Final = HERE.parent / "examples" / "reference" / "prompts.txt"
STAGES: Final = ("denoise_step", "picture")


@click.command(help=__doc__)
@click.argument("names", nargs=-1, required=True, metavar="PRESET...")
@click.option("--rounds", "num_rounds", type=click.IntRange(1), default=9, show_default=True)
@click.option("--compile/--no-compile", default=True, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=HERE / "work", help="For bundles; kept between runs.")
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results")
def main(names: tuple[str, ...], num_rounds: int, compile: bool, work: Path, results: Path) -> None:
    """Run it for every named shape."""
    results.mkdir(parents=True, exist_ok=True)
    tuned = read_plan(REFERENCE / PLAN_NAME, checkpoint_sha256(REFERENCE)).plan
    for name in names:
        checkpoint, bundle = prepare(name, work)
        _quantise(bundle, is_trained=name == "reference")
        options = BenchOptions(
            num_rounds=num_rounds,
            num_picture_rounds=num_rounds,
            compile=compile,
            rivals=RIVALS,
            precisions=("fp32", "int8"),
            allow_unverified=True,  # large shapes: every contender is held against eager PyTorch here
        )
        measured = measure(bundle, checkpoint, {"paper": "paper", "tuned": tuned}, options, progress_line)
        result = {"command": shlex.join(["python", "benchmarks/plans.py", *sys.argv[1:]]), "preset": name, **measured}
        path = results / f"plans-{name}-{file_label(result['machine']['cpu'])}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        click.echo(f"{name}\n{table(result)}\n-> {path}\n")


def _quantise(bundle: Path, *, is_trained: bool) -> None:
    """INT8 graphs and their engine, if they are not there."""
    if "int8" not in open_bundle(bundle).manifest.precisions:
        limits = GateLimits() if is_trained else GateLimits(cosine=0.9, psnr_db=10, answer_tokens=0.5)
        prompts = read_prompts(PROMPTS) if is_trained else read_prompts(PROMPTS)[:16]
        calibrate(bundle, prompts, CalibrationConfig(limits=limits, force=not is_trained), on_progress=progress_line)
    build(bundle, EngineConfig(precision="int8", allow_unverified=not is_trained))


def measure(
    bundle: Path,
    checkpoint: Path,
    plans: dict[str, Plan | Literal["paper", "tuned"]],
    options: BenchOptions,
    on_progress: Progress,
) -> dict[str, Any]:
    """All contenders by all plans, in turns.

    Args:
        bundle: With the engines that are to run.
        checkpoint: What it was exported from.
        plans: By name.
        options: Its plan is not looked at.
        on_progress: Told what is done.
    """
    num_threads = options.threads[0]
    torch.set_num_threads(num_threads)
    begin, told, agreement, left_out, trials = describe_state(), {}, {}, {}, {}
    turns: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    with contextlib.ExitStack() as stack:
        for done, (label, plan) in enumerate(plans.items()):
            task = open_task(bundle, checkpoint, BenchOptions(**{**vars(options), "plan": plan}))
            report = functools.partial(_tell, on_progress, label, done, len(plans) + len(STAGES))
            found, trials[label] = stack.enter_context(entrants(task, num_threads, report))
            for each in found:
                name = f"{each.name}, {label}"
                agreement[name] = each.agreement()
                if agreement[name]["passed"]:
                    for stage in STAGES:
                        turns[stage][name] = functools.partial(each.turn, stage)
            words = describe_plan(plan) if isinstance(plan, Plan) else plan
            told[label] = {"plan": words, **task.work.describe()}
            left_out |= task.left_out
        timings = {}
        for done, (stage, runs) in enumerate(turns.items(), len(plans)):
            on_progress(f"timing {stage}", done, len(plans) + len(STAGES))
            rounds = options.num_picture_rounds if stage == "picture" else options.num_rounds
            timings[stage] = interleave(runs, rounds, warm=stage != "picture")
    return {
        "machine": describe_machine(),
        "state": {"begin": begin, "end": describe_state()},
        "plans": told,
        "left_out": left_out,
        "agreement": agreement,
        "trials": trials,
        "timings": {stage: {name: each.as_dict() for name, each in rows.items()} for stage, rows in timings.items()},
        "speedups": {
            stage: {
                base: {name: ratio(rows[base], each) for name, each in rows.items()}
                for base in (f"eager fp32, {label}" for label in plans)
            }
            for stage, rows in timings.items()
        },
    }


def _tell(on_progress: Progress, label: str, done: int, total: int, what: str) -> None:
    on_progress(f"{label}: {what}", done, total)


def table(result: dict[str, Any]) -> str:
    """Milliseconds, and how many times as fast as eager PyTorch in fp32 by either plan."""
    bases = list(result["speedups"]["picture"])
    rows = [["", "denoise step, ms", "picture, ms", *(f"x {base}" for base in bases)]]
    for name, timing in result["timings"]["picture"].items():
        step = result["timings"]["denoise_step"][name]
        ratios = [f"{result['speedups']['picture'][base][name]['median']:.2f}" for base in bases]
        rows.append([name, f"{step['median_ms']:.2f}", f"{timing['median_ms']:.1f}", *ratios])
    left_out = [f"left out: {what}: {why}" for what, why in result["left_out"].items()]
    return "\n".join([*aligned(rows), *left_out])


if __name__ == "__main__":
    main()
