"""A simulation of 1 to 64 replicas behind one front: how waiting scales, from step times that were measured here.

    python benchmarks/serving_simulation.py BUNDLE

Nothing but one replica is measured: how long a step of each stage takes in batches of 1 to 8, one worker with one
thread. The replicas of the simulation are the scheduler's own `Dispatcher` over batches that only let time pass, each
with a processor core to itself; the front gives a request to the emptier one of two replicas, as Ray does, and keeps
what finds none with a place. It knows no network, no HTTP and no neighbours on a memory bus. How far it can be trusted
is told beside it: one real scheduler gets the same arrivals as one simulated replica.

Writes `benchmarks/results/serving-simulation-<cpu>.json`. Two minutes with the reference checkpoint, on a quiet
machine.
"""

import heapq
import json
import random
import shlex
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
from scheduler import PROMPTS

from rf_export.benchmark.environment import describe_machine, file_label
from runtime import Pipeline, Scheduler
from runtime.scheduling.batches import PixelBatch, TokenBatch
from runtime.scheduling.dispatch import Dispatcher

MAX_BATCH = 8
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a replica takes."""

    token_steps: int  # of a picture
    pixel_steps: int
    token_s: list[float]  # of a step, by the requests of its batch from 1 on
    pixel_s: list[float]


def measure(pipeline: Pipeline, pictures: int) -> Measured:
    """Mean seconds of steps, by batch; sizes between those that were met are interpolated."""
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    counts = {"tokens": 0, "pixels": 0}
    for size in (1, 2, 4, MAX_BATCH):
        steps: list[tuple[str, int, float]] = []
        with Scheduler(
            pipeline, max_batch=size, num_workers=1, on_step=lambda *step, steps=steps: steps.append(step)
        ) as scheduler:
            handles = [
                scheduler.submit(PROMPTS[index % len(PROMPTS)], seed=index, reports="picture")
                for index in range(max(2 * size, pictures))
            ]
            for each in handles:
                each.result()
        for stage, num_requests, step_s in steps[2:]:  # the first ones make what is made once
            seconds[stage, num_requests].append(step_s)
        if size == 1:
            counts = {stage: round(sum(each[0] == stage for each in steps) / len(handles)) for stage in counts}

    def by_size(stage: str) -> list[float]:
        known = sorted(size for name, size in seconds if name == stage)
        means = [statistics.fmean(seconds[stage, size]) for size in known]
        return [float(each) for each in np.interp(range(1, MAX_BATCH + 1), known, means)]

    return Measured(
        token_steps=counts["tokens"], pixel_steps=counts["pixels"], token_s=by_size("tokens"), pixel_s=by_size("pixels")
    )


@dataclass(eq=False)
class Handle:
    """What a dispatcher asks of a request, and when it came."""

    came_s: float
    left: dict[str, int]
    ended: bool = False

    def move(self, stage: str) -> None:
        """Nothing that matters here."""


@dataclass(eq=False)
class Job:
    """A request on its way."""

    handle: Handle


@dataclass(eq=False)
class Batch:
    """A batch that lets time pass."""

    stage: str
    step_s: list[float]
    clock: "Clock"
    jobs: list[Job] = field(default_factory=list)

    def step(self) -> list[Job]:
        """One step of all of its jobs; returns those that are through."""
        self.clock.now_s += self.step_s[len(self.jobs) - 1]
        for job in self.jobs:
            job.handle.left[self.stage] -= 1
        done = [job for job in self.jobs if job.handle.left[self.stage] == 0]
        for job in done:
            job.handle.ended = self.stage == "pixels"
        return done

    def clear(self) -> None:
        """Nothing is kept."""


@dataclass
class Clock:
    """The time of a replica."""

    now_s: float = 0.0


class Replica:
    """One worker at the dispatcher of a scheduler."""

    def __init__(self, measured: Measured) -> None:
        self.clock, self.running = Clock(), cast(list[Job], [])
        self.is_stepping = False
        tokens, pixels = (Batch("tokens", measured.token_s, self.clock), Batch("pixels", measured.pixel_s, self.clock))
        self.dispatcher = Dispatcher(
            cast(TokenBatch, tokens),
            [cast(PixelBatch, pixels)],
            max_batch=MAX_BATCH,
            max_queue=2 * MAX_BATCH,
            clock=lambda: self.clock.now_s,
        )

    def take(self, job: Job) -> None:
        """A request joins its queue."""
        self.running.append(job)
        self.dispatcher.submit(cast(Any, job), "refuse")


@dataclass(kw_only=True)
class Simulated:
    """What came of it."""

    replicas: int
    load: float  # arrivals, in units of what all replicas can draw
    pictures_per_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    queued_share: float  # of the requests that found no replica with a place


def simulate(measured: Measured, replicas: int, arrivals_s: list[float], seed: int) -> tuple[list[float], float, int]:
    """Latencies, the moment of the last picture, and how many waited in the front."""
    draw, machines = random.Random(seed), [Replica(measured) for _ in range(replicas)]
    queue: deque[Job] = deque()
    latencies: list[float] = []
    num_queued, order = 0, 0
    events: list[tuple[float, int, Replica | None]] = []  # None is an arrival
    for moment in arrivals_s:
        heapq.heappush(events, (moment, order := order + 1, None))

    def place() -> Replica | None:
        two = draw.sample(machines, min(2, replicas))
        free = [each for each in two if len(each.running) < 2 * MAX_BATCH] or [
            each for each in machines if len(each.running) < 2 * MAX_BATCH
        ]
        return min(free, key=lambda each: len(each.running), default=None)

    def start(machine: Replica, now: float) -> None:
        nonlocal order
        if machine.is_stepping or not machine.running:
            return
        machine.is_stepping, machine.clock.now_s = True, now
        machine.dispatcher.step()  # its effects are seen when its time is over
        heapq.heappush(events, (machine.clock.now_s, order := order + 1, machine))

    now = 0.0
    while events:
        now, _, machine = heapq.heappop(events)
        if machine is None:
            job = Job(Handle(now, {"tokens": measured.token_steps, "pixels": measured.pixel_steps}))
            machine = place()
            if machine is None:
                num_queued += 1
                queue.append(job)
                continue
            machine.take(job)
        else:
            machine.is_stepping = False
            latencies += [now - job.handle.came_s for job in machine.running if job.handle.ended]
            machine.running = [job for job in machine.running if not job.handle.ended]
            while queue and len(machine.running) < 2 * MAX_BATCH:
                machine.take(queue.popleft())
        start(machine, now)
    return latencies, now, num_queued


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Moments of arrival."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count)).tolist()


def percentiles(latencies: list[float]) -> dict[str, float]:
    """p50_s, p95_s, p99_s."""
    return {f"p{each}_s": float(np.percentile(latencies, each)) for each in (50, 95, 99)}


def real(pipeline: Pipeline, arrivals_s: list[float]) -> list[float]:
    """The same arrivals at a real scheduler with one worker: latencies."""
    latencies: list[float] = []
    with Scheduler(pipeline, max_batch=MAX_BATCH, max_queue=len(arrivals_s), num_workers=1) as scheduler:
        started, waiters = time.perf_counter(), []

        def wait(handle: Any, moment: float) -> None:
            handle.result()
            latencies.append(time.perf_counter() - started - moment)

        for index, moment in enumerate(arrivals_s):
            time.sleep(max(0.0, started + moment - time.perf_counter()))
            handle = scheduler.submit(PROMPTS[index % len(PROMPTS)], seed=index, reports="picture")
            waiters.append(threading.Thread(target=wait, args=(handle, moment)))
            waiters[-1].start()
        for each in waiters:
            each.join()
    return latencies


@click.command(help=__doc__, context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--replicas", default=(1, 2, 8, 64), multiple=True, type=click.IntRange(1), help="How many.")
@click.option("--load", "loads", default=(0.5, 0.8, 0.9), multiple=True, help="Of what all replicas can draw.")
@click.option("--requests", default=2000, type=click.IntRange(1), help="Simulated, for each replica at most 500.")
@click.option("--pictures", default=16, type=click.IntRange(1), help="Drawn at least for each size of batch.")
@click.option("--trials", default=60, type=click.IntRange(1), help="Requests that a real scheduler gets, too.")
@click.option("--seed", default=0, help="Seed of arrivals and of the front's choices.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file.", show_default="see above")
def main(
    bundle: Path,
    replicas: tuple[int, ...],
    loads: tuple[float, ...],
    requests: int,
    pictures: int,
    trials: int,
    seed: int,
    output: Path | None,
) -> None:
    """Measure, simulate, print, write."""
    with Pipeline.load(bundle, num_threads=1) as pipeline:
        measured = measure(pipeline, pictures)
        *_, end, _ = simulate(measured, 1, [0.0] * 20 * MAX_BATCH, seed)
        capacity = 20 * MAX_BATCH / end
        arrivals = poisson(0.8 * capacity, trials, seed)
        trusted = {
            "requests": trials,
            "load": 0.8,
            "measured": percentiles(real(pipeline, arrivals)),
            "simulated": percentiles(simulate(measured, 1, arrivals, seed)[0]),
        }
    click.echo(f"one replica draws {capacity:.2f} pictures/s at most; at 0.8 of that:")
    for name in ("measured", "simulated"):
        click.echo(f"  {name:10}" + "".join(f"  {key} {value:.2f}" for key, value in trusted[name].items()))
    results = []
    click.echo("a simulation:\nreplicas  load  pictures/s  p50 s  p95 s  p99 s  queued")
    for load in loads:
        for count in replicas:
            asked = max(requests, 500 * count)
            moments = poisson(load * count * capacity, asked, seed)
            latencies, end, num_queued = simulate(measured, count, moments, seed)
            found = Simulated(
                replicas=count,
                load=load,
                pictures_per_s=asked / end,
                queued_share=num_queued / asked,
                **percentiles(latencies),
            )
            results.append(vars(found))
            click.echo(
                f"{count:8}  {load:4.2f}  {found.pictures_per_s:10.2f}  {found.p50_s:5.2f}  {found.p95_s:5.2f}  "
                f"{found.p99_s:5.2f}  {found.queued_share:6.1%}"
            )
    machine = describe_machine()
    command = shlex.join(Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])
    report = {
        "what": "a simulation: only the step times and the trial of one scheduler are measured",
        "command": f"python benchmarks/serving_simulation.py {command}",
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine | {"command": f"serving_simulation.py {command}"},
        "measured": vars(measured),
        "capacity_of_a_replica": capacity,
        "trial": trusted,
        "simulated": results,
    }
    path = output or RESULTS / f"serving-simulation-{file_label(machine['cpu'])}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(path)


if __name__ == "__main__":
    main()
