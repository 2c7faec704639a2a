"""Throughput and latency of many requests: through the scheduler, one at a time, and as static batches.

    python benchmarks/scheduler.py BUNDLE --output benchmarks/results/scheduler.json

Two scenarios: all requests at once, and arrivals at random moments (a Poisson process from a seed). Every way of
serving them is run in turn, again and again, so that what else the machine does falls on all of them; medians are
reported, and the CPU time beside the wall time. Every picture is compared with the one that is drawn alone.

Run it on a quiet machine: on a busy one the wall times say more of the others. With the reference checkpoint it
takes about four minutes on two cores; `--arrivals 0` leaves out the second scenario, the longer one.
"""

import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from runtime import GenerationOptions, PictureEvent, Pipeline, Scheduler
from runtime.backends.host.machine import cpu_name, usable_cpus

# Of the reference checkpoint's vocabulary, of one to eight words.
PROMPTS = (
    "a red car",
    "two blue fish",
    "a green cat left of a blue mushroom",
    "a yellow tree",
    "three red balloons",
    "a purple cup and a yellow tree",
    "a blue house",
    "a red key above a green fish",
)
MAX_VALUE_RANGE = 2.0  # pixels are -1 to 1


@dataclass(frozen=True, kw_only=True)
class Work:
    """What has to be drawn: prompt i with seed i, from its moment of arrival on."""

    prompts: list[str]
    arrivals_s: list[float]
    options: GenerationOptions


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of one way."""

    wall_s: float  # from the first arrival to the last picture
    cpu_s: float
    latencies_s: list[float]
    pictures: list[PictureEvent]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Medians over the runs of one way."""

    way: str
    pictures_per_s: float
    wall_s: float
    cpu_s_per_picture: float
    latency_p50_s: float
    latency_p95_s: float
    same_tokens: bool
    bit_identical: int  # pictures, of all
    worst_psnr_db: float | None  # None: all are bit-identical
    wall_s_of_runs: list[float]


def serve_batches(pipeline: Pipeline, work: Work, max_batch: int) -> Run:
    """Draw whoever waits, `max_batch` at most, and do not look up before they are all finished."""
    start, cpu = time.perf_counter(), time.process_time()
    finished: list[float] = []
    pictures: list[PictureEvent] = []
    while len(pictures) < len(work.prompts):
        first = len(pictures)
        _sleep_until(start + work.arrivals_s[first])
        now = time.perf_counter() - start
        last = first + max(1, min(max_batch, sum(arrival <= now for arrival in work.arrivals_s[first:])))
        events = pipeline.generate(work.prompts[first:last], seed=first, options=work.options)
        pictures += [event for event in events if isinstance(event, PictureEvent)]
        finished += [time.perf_counter() - start] * (last - first)
    return _run(start, cpu, work, finished, pictures)


def serve_scheduled(pipeline: Pipeline, work: Work, max_batch: int, num_workers: int) -> Run:
    """Submit each request when it arrives."""
    count = len(work.prompts)
    finished, pictures = [0.0] * count, [None] * count
    with Scheduler(pipeline, max_batch=max_batch, max_queue=count, num_workers=num_workers) as scheduler:
        start, cpu = time.perf_counter(), time.process_time()

        def wait(index: int, handle) -> None:
            pictures[index] = handle.result()
            finished[index] = time.perf_counter() - start

        readers = []
        for index, (prompt, arrival) in enumerate(zip(work.prompts, work.arrivals_s, strict=True)):
            _sleep_until(start + arrival)
            handle = scheduler.submit(prompt, seed=index, options=work.options)
            readers.append(threading.Thread(target=wait, args=(index, handle)))
            readers[-1].start()
        for reader in readers:
            reader.join()
        return _run(start, cpu, work, finished, pictures)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def _run(start: float, cpu: float, work: Work, finished: list[float], pictures: list[PictureEvent]) -> Run:
    latencies = [end - arrival for end, arrival in zip(finished, work.arrivals_s, strict=True)]
    wall = max(finished) - work.arrivals_s[0]
    return Run(wall_s=wall, cpu_s=time.process_time() - cpu, latencies_s=latencies, pictures=pictures)


def summarise(way: str, runs: list[Run], alone: list[PictureEvent]) -> Result:
    """Medians, and how the pictures compare with those that are drawn alone."""
    count = len(alone)
    pairs = [pair for run in runs for pair in zip(run.pictures, alone, strict=True)]
    errors = [float(np.mean((one.pixels.astype(np.float64) - other.pixels) ** 2)) for one, other in pairs]
    worst = max(errors)
    return Result(
        way=way,
        pictures_per_s=statistics.median(count / run.wall_s for run in runs),
        wall_s=statistics.median(run.wall_s for run in runs),
        cpu_s_per_picture=statistics.median(run.cpu_s / count for run in runs),
        latency_p50_s=statistics.median(float(np.percentile(run.latencies_s, 50)) for run in runs),
        latency_p95_s=statistics.median(float(np.percentile(run.latencies_s, 95)) for run in runs),
        same_tokens=all((one.rep_ids == other.rep_ids).all() for one, other in pairs),
        bit_identical=min(
            sum(np.array_equal(one.pixels, other.pixels) for one, other in zip(run.pictures, alone, strict=True))
            for run in runs
        ),
        worst_psnr_db=float(10 * np.log10(MAX_VALUE_RANGE**2 / worst)) if worst else None,
        wall_s_of_runs=[run.wall_s for run in runs],
    )


def ways_to_serve(
    pipelines: dict[int, Pipeline], count: int, max_batches: Iterable[int]
) -> dict[str, Callable[[Work], Run]]:
    """What is compared; the first ones are the baselines."""
    ways: dict[str, Callable[[Work], Run]] = {}
    for threads, pipeline in pipelines.items():
        ways[f"one at a time, {threads} threads"] = lambda work, p=pipeline: serve_batches(p, work, 1)
    for threads, pipeline in pipelines.items():
        ways[f"static batch of {count}, {threads} threads"] = lambda work, p=pipeline: serve_batches(p, work, count)
    for size in max_batches:
        for threads, pipeline in pipelines.items():
            workers = max(pipelines) // threads
            name = f"scheduler, max_batch {size}, {workers} workers x {threads} threads"
            ways[name] = lambda work, p=pipeline, s=size, w=workers: serve_scheduled(p, work, s, w)
    return ways


def measure(ways: dict[str, Callable[[Work], Run]], work: Work, repeat: int, alone: list[PictureEvent]) -> list[Result]:
    """Run every way in turn, `repeat` times."""
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for index in range(repeat):
        for name, serve in ways.items():
            click.echo(f"{index + 1} of {repeat}: {name}", err=True)
            runs[name].append(serve(work))
    return [summarise(name, each, alone) for name, each in runs.items()]


def print_table(title: str, results: list[Result], baseline: float) -> None:
    """One line per way; ratios are to the best of one at a time."""
    table = Table(title=title, title_justify="left")
    for column in ("way", "pictures/s", "ratio", "CPU s/picture", "p50 s", "p95 s", "PSNR dB"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for result in results:
        psnr = "identical" if result.worst_psnr_db is None else f"{result.worst_psnr_db:.0f}"
        table.add_row(
            result.way,
            f"{result.pictures_per_s:.2f}",
            f"{result.pictures_per_s / baseline:.2f}",
            f"{result.cpu_s_per_picture:.3f}",
            f"{result.latency_p50_s:.2f}",
            f"{result.latency_p95_s:.2f}",
            psnr + ("" if result.same_tokens else ", other tokens"),
        )
    Console(width=120).print(table)


def _machine() -> dict[str, dict]:
    names = ("numpy", "onnxruntime")
    return {
        "machine": {"cpu": cpu_name(), "cores": usable_cpus(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    }


def _load_average() -> list[float]:
    return list(os.getloadavg())


@click.command(help=__doc__, context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--requests", "num_requests", default=8, type=click.IntRange(1), help="Requests that come at once.")
@click.option("--arrivals", "num_arrivals", default=16, help="Requests that come one by one; 0 for none.")
@click.option("--load", default=0.8, help="Arrivals per second, in units of what one at a time can draw.")
@click.option("--max-batch", "max_batches", default=(8, 4), multiple=True, type=click.IntRange(1))
@click.option("--steps", type=click.IntRange(1), help="Denoising steps; the bundle's default otherwise.")
@click.option("--repeat", default=3, type=click.IntRange(1))
@click.option("--cores", default=usable_cpus(), type=click.IntRange(1), help="Threads in all.")
@click.option("--seed", default=0, help="Of the moments of arrival.")
@click.option("--precision", default="fp32", type=click.Choice(["fp32", "fp16"]))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file.")
def main(
    bundle: Path,
    num_requests: int,
    num_arrivals: int,
    load: float,
    max_batches: tuple[int, ...],
    steps: int | None,
    repeat: int,
    cores: int,
    seed: int,
    precision: str,
    output: Path | None,
) -> None:
    """Measure, print, write."""
    before = _load_average()
    pipelines = {
        threads: Pipeline.load(bundle, precision, num_threads=threads) for threads in dict.fromkeys((1, cores))
    }
    options = GenerationOptions(num_steps=steps)

    def work_for(arrivals_s: list[float]) -> Work:
        prompts = [PROMPTS[index % len(PROMPTS)] for index in range(len(arrivals_s))]
        return Work(prompts=prompts, arrivals_s=arrivals_s, options=options)

    longest = work_for([0.0] * max(num_requests, num_arrivals))
    alone = serve_batches(pipelines[1], longest, 1).pictures  # warms up too
    ways = ways_to_serve(pipelines, num_requests, max_batches)
    for serve in ways.values():
        serve(work_for([0.0] * num_requests))
    at_once = measure(ways, work_for([0.0] * num_requests), repeat, alone[:num_requests])
    baseline = max(result.pictures_per_s for result in at_once if result.way.startswith("one at a time"))
    print_table(f"{num_requests} requests at once, {cores} cores", at_once, baseline)

    report = {
        "bundle_id": pipelines[1].bundle.manifest.bundle_id,
        "engine": pipelines[1].engine is not None,
        "precision": precision,
        "options": {"steps": steps, "repeat": repeat, "cores": cores, "seed": seed, "load": load},
        "load_average_before": before,
        "baseline_pictures_per_s": baseline,
        "at_once": [asdict(result) for result in at_once],
        **_machine(),
    }
    _write(output, report)
    if num_arrivals:
        gaps = np.random.default_rng(seed).exponential(1 / (load * baseline), num_arrivals - 1)
        arrivals = [0.0, *np.cumsum(gaps).tolist()]
        one_by_one = measure(ways, work_for(arrivals), repeat, alone[:num_arrivals])
        print_table(f"{num_arrivals} requests, {load * baseline:.2f} per second at random", one_by_one, baseline)
        report |= {"arrivals_s": arrivals, "one_by_one": [asdict(result) for result in one_by_one]}
    _write(output, report | {"load_average_after": _load_average()})


def _write(output: Path | None, report: dict) -> None:
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
