"""Throughput and latency of `rf-export serve` over HTTP, beside a naive server: one picture after another.

    python benchmarks/serving.py BUNDLE
    python benchmarks/serving.py BUNDLE --ray ENVIRONMENT    beside Ray, with one and two replicas

The naive server is what one writes first: FastAPI, a lock, and `Pipeline.draw` with a thread for each core. Both run
in processes of their own, get the same requests, and take turns; medians of the rounds are reported. Scenarios: clients
that each ask again as soon as they are answered, and requests at random moments (a Poisson process from a seed), some
of another size, some of clients that leave after a while. Two pictures are compared with those of `Pipeline.draw`. How
long a picture takes without HTTP, through the scheduler, is measured in this process, and what the machine could draw
at most: a full batch on each core, again and again, with nothing between.

Writes `benchmarks/results/serving-<cpu>.json`. Run it on a quiet machine: the clients, too, take their share of it.
With the reference checkpoint it takes seven minutes on two cores.
"""

import asyncio
import base64
import contextlib
import io
import json
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table
from scheduler import PROMPTS

from rf_export.benchmark.environment import describe_machine, file_label
from runtime import GenerationOptions, Pipeline, Scheduler
from runtime.backends.host.machine import usable_cpus

ROOT = Path(__file__).parents[1]
ROUTE = "/v1/images/generations"
OURS = "rf-export serve"
ONE = ("1 at once", OURS)
RESULTS = Path(__file__).parent / "results"
TIMEOUT_S = 300


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request: what is drawn, when, and whether its client leaves before it is there."""

    prompt: str
    seed: int
    at_s: float = 0.0  # after the start; 0 as soon as a client is free
    size: str = "auto"
    leaves_after_s: float | None = None
    previews: int = 0


@dataclass(kw_only=True)
class Answered:
    """What became of it."""

    asked: Asked
    status: int  # 0 where the client left
    latency_s: float
    first_preview_s: float | None = None
    first_preview_step: int | None = None
    body: bytes = b""


@dataclass(kw_only=True)
class Served:
    """One run of one scenario against one server."""

    answers: list[Answered]
    wall_s: float
    cpu_s: float
    rss_mib: float


@dataclass(kw_only=True)
class Result:
    """Medians over the rounds; latencies are of finished pictures."""

    server: str
    scenario: str
    pictures_per_s: float
    cpu_s_per_picture: float
    rss_mib: float
    finished: int  # of a round, as the next ones
    refused: int
    left: int
    p50_s: float
    p95_s: float
    p99_s: float
    first_preview_p50_s: float | None
    first_preview_step: int | None  # the latest
    pictures_per_s_of_rounds: list[float] = field(default_factory=list)


class Running:
    """A server in a process of its own."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+)", line)
        if found is None:
            raise click.ClickException(f"{name} did not start: {line}")
        self.host, self.port = found[1], int(found[2])
        self._seen = psutil.Process(self._process.pid)

    def usage(self) -> tuple[float, float]:
        """CPU seconds so far, and MiB of memory, of all its processes."""
        processes = [self._seen, *self._seen.children(recursive=True)]
        times = [each.cpu_times() for each in processes]
        return sum(each.user + each.system for each in times), sum(each.memory_info().rss for each in processes) / 2**20

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


async def ask(server: Running, asked: Asked) -> Answered:
    """Send a request, and wait for its end or for the moment to leave."""
    body = {"prompt": asked.prompt, "seed": asked.seed, "size": asked.size}
    if asked.previews:
        body |= {"stream": True, "partial_images": asked.previews}
    started = time.perf_counter()
    content = json.dumps(body).encode()
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(server.host, server.port, limit=2**24)
    first_preview = None
    try:
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        answer = b""
        async with asyncio.timeout(asked.leaves_after_s or TIMEOUT_S):
            while chunk := await reader.read(65536):
                answer += chunk
                if first_preview is None and b"partial_image" in answer:
                    first_preview = time.perf_counter() - started
    except TimeoutError:
        return Answered(asked=asked, status=0, latency_s=time.perf_counter() - started, first_preview_s=first_preview)
    finally:
        writer.close()
    return Answered(
        asked=asked,
        status=int(answer.split(b" ", 2)[1]),
        latency_s=time.perf_counter() - started,
        first_preview_s=first_preview,
        first_preview_step=None if (found := re.search(rb'"step":(\d+)', answer)) is None else int(found[1]),
        body=answer.partition(b"\r\n\r\n")[2],
    )


async def at_once(server: Running, requests: list[Asked], clients: int) -> list[Answered]:
    """Each client asks again as soon as it is answered."""
    left, answers = iter(requests), []

    async def client() -> None:
        for asked in left:
            answers.append(await ask(server, asked))

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def at_random(server: Running, requests: list[Asked]) -> list[Answered]:
    """Each request comes at its moment, whatever became of the others."""

    async def one(asked: Asked) -> Answered:
        await asyncio.sleep(asked.at_s)
        return await ask(server, asked)

    return list(await asyncio.gather(*map(one, requests)))


def serve(server: Running, requests: list[Asked], clients: int | None) -> Served:
    """Run one scenario."""
    cpu, _ = server.usage()
    started = time.perf_counter()
    answers = asyncio.run(at_random(server, requests) if clients is None else at_once(server, requests, clients))
    wall, (cpu_end, rss) = time.perf_counter() - started, server.usage()
    return Served(answers=answers, wall_s=wall, cpu_s=cpu_end - cpu, rss_mib=rss)


def summarise(server: str, scenario: str, rounds: list[Served]) -> Result:
    """Medians of the rounds."""
    finished = [[each for each in run.answers if each.status == 200] for run in rounds]
    rates = [len(each) / run.wall_s for each, run in zip(finished, rounds, strict=True)]
    latencies = [[answer.latency_s for answer in each] for each in finished]
    previews = [each for run in rounds for each in run.answers if each.first_preview_s is not None]

    def percentile(which: int) -> float:
        return statistics.median(float(np.percentile(each, which)) for each in latencies)

    def count(*statuses: int) -> int:
        return round(statistics.median(sum(each.status in statuses for each in run.answers) for run in rounds))

    return Result(
        server=server,
        scenario=scenario,
        pictures_per_s=statistics.median(rates),
        cpu_s_per_picture=statistics.median(run.cpu_s / len(each) for run, each in zip(rounds, finished, strict=True)),
        rss_mib=max(run.rss_mib for run in rounds),
        finished=count(200),
        refused=count(429, 503),
        left=count(0),
        p50_s=percentile(50),
        p95_s=percentile(95),
        p99_s=percentile(99),
        first_preview_p50_s=statistics.median(each.first_preview_s for each in previews) if previews else None,
        first_preview_step=max((each.first_preview_step for each in previews), default=None),
        pictures_per_s_of_rounds=rates,
    )


def arrivals(rate: float, count: int, seed: int, sizes: list[str], seconds: float) -> list[Asked]:
    """Requests at random moments: one in four of another size, one in ten left after half of a picture's time."""
    draw, moment, requests = random.Random(seed), 0.0, []
    for index in range(count):
        moment += draw.expovariate(rate)
        requests.append(
            Asked(
                prompt=PROMPTS[index % len(PROMPTS)],
                seed=index,
                at_s=moment,
                size=draw.choice(sizes) if draw.random() < 0.25 else "auto",
                leaves_after_s=seconds / 2 if draw.random() < 0.1 else None,
            )
        )
    return requests


def alone_s(bundle: Path, count: int) -> float:
    """Median seconds of a picture through the scheduler, one at a time, without HTTP."""
    times = []
    with Pipeline.load(bundle, num_threads=1) as pipeline, Scheduler(pipeline) as scheduler:
        for index in range(count + 1):
            started = time.perf_counter()
            scheduler.submit(PROMPTS[index % len(PROMPTS)], seed=index, reports="picture").result()
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def bound(bundle: Path, rounds: int) -> float:
    """Pictures a second where each core draws full batches of 8 and does nothing else."""
    cores = usable_cpus()
    with Pipeline.load(bundle, num_threads=1) as pipeline, ThreadPoolExecutor(cores) as pool:

        def draw(seed: int) -> None:
            for _ in pipeline.generate(PROMPTS, seed=seed):
                pass

        rates = []
        for index in range(rounds + 1):
            started = time.perf_counter()
            list(pool.map(draw, range(cores)))
            if index:
                rates.append(cores * len(PROMPTS) / (time.perf_counter() - started))
    return statistics.median(rates)


def require_same(bundle: Path, served: list[Answered]) -> None:
    """Refuse to report of pictures that are not those of the pipeline; in a batch they differ by rounding."""
    pipeline = Pipeline.load(bundle, num_threads=1)
    for answer in served[:2]:
        png = base64.b64decode(json.loads(answer.body)["data"][0]["b64_json"])
        native = pipeline.draw(answer.asked.prompt, seed=answer.asked.seed)
        found = np.asarray(Image.open(io.BytesIO(png))).astype(int)
        if np.abs(found - native).max() > 1:
            raise click.ClickException(f"{answer.asked} is another picture than the pipeline's")


def naive(bundle: Path) -> None:
    """The server that one writes first."""
    import socket

    import uvicorn
    from fastapi import FastAPI

    from runtime.pictures.png import encode_png

    app, pipeline, lock = FastAPI(), Pipeline.load(bundle, num_threads=usable_cpus()), threading.Lock()

    @app.post(ROUTE)
    def draw(body: dict) -> dict:
        width, height = (None, None) if body["size"] == "auto" else map(int, body["size"].split("x"))
        with lock:
            options = GenerationOptions(height=height, width=width)
            picture = pipeline.draw(body["prompt"], seed=body["seed"], options=options)
        return {"data": [{"b64_json": base64.b64encode(encode_png(picture)).decode()}]}

    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    click.echo(f"http://127.0.0.1:{listening.getsockname()[1]}")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listening])


RAY = """
import sys
from runtime.serving.ray_app import Settings, run
from runtime.serving.server import listen

listening = listen("127.0.0.1", 0)
host, port = listening.getsockname()
listening.close()
replicas = int(sys.argv[2])
settings = Settings(bundle=sys.argv[1], min_replicas=replicas, max_replicas=replicas)
run(settings, host, port, lambda: print(f"http://{host}:{port}", flush=True))
"""


@contextlib.contextmanager
def servers(commands: dict[str, list[str]]) -> Iterator[list[Running]]:
    """Servers by their names, warmed up."""
    running: list[Running] = []
    try:
        for name, command in commands.items():
            running.append(Running(name, command))
        for each in running:
            asyncio.run(at_once(each, [Asked(prompt=PROMPTS[0], seed=0)] * 4, 2))
        yield running
    finally:
        for each in running:
            each.stop()


def print_table(results: list[Result]) -> None:
    """One line per scenario and server."""
    table = Table(title="Serving", title_justify="left")
    columns = ("scenario", "server", "pictures/s", "p50 s", "p95 s", "p99 s", "CPU s", "MiB", "refused", "left")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    for each in results:
        numbers = (each.pictures_per_s, each.p50_s, each.p95_s, each.p99_s, each.cpu_s_per_picture)
        counts = (f"{each.rss_mib:.0f}", str(each.refused), str(each.left))
        table.add_row(each.scenario, each.server, *(f"{number:.2f}" for number in numbers), *counts)
    Console(width=140).print(table)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--clients", default=(1, 8, 32), multiple=True, type=click.IntRange(1), help="Clients at once.")
@click.option("--requests", default=48, type=click.IntRange(1), help="Requests of a scenario.")
@click.option("--load", default=0.8, help="Random arrivals per second, in units of what the naive server draws.")
@click.option("--size", "sizes", default=("24x24", "60x60"), multiple=True, help="Other sizes, as WIDTHxHEIGHT.")
@click.option("--rounds", default=3, type=click.IntRange(1))
@click.option("--seed", default=0, help="Seed of the moments of arrival.")
@click.option("--ray", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Environment with Ray.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file.", show_default="see above")
@click.option("--naive", "is_naive", is_flag=True, hidden=True)
def main(
    bundle: Path,
    clients: tuple[int, ...],
    requests: int,
    load: float,
    sizes: tuple[str, ...],
    rounds: int,
    seed: int,
    ray: Path | None,
    output: Path | None,
    is_naive: bool,
) -> None:
    """Measure, print, write."""
    if is_naive:
        naive(bundle)
        return
    before, alone, most = os.getloadavg(), alone_s(bundle, 12), bound(bundle, rounds)
    plain = [Asked(prompt=PROMPTS[index % len(PROMPTS)], seed=index) for index in range(requests)]
    scenarios: dict[str, tuple[list[Asked], int | None]] = {f"{count} at once": (plain, count) for count in clients}
    results: list[Result] = []

    def measure(running: list[Running], name: str) -> None:
        work, count = scenarios[name]
        runs: dict[str, list[Served]] = {each.name: [] for each in running}
        for index in range(rounds):
            for each in running:
                click.echo(f"{name}, {index + 1} of {rounds}: {each.name}", err=True)
                runs[each.name].append(serve(each, work, count))
        if count is not None:
            require_same(bundle, runs[running[0].name][0].answers)
        results.extend(summarise(server, name, each) for server, each in runs.items())

    ours = [sys.executable, "cli.py", "serve", str(bundle), "--port", "0"]
    with servers({OURS: ours, "naive": [sys.executable, __file__, str(bundle), "--naive"]}) as running:
        for name in tuple(scenarios):
            measure(running, name)
        best = max(each.pictures_per_s for each in results if each.server == "naive")
        name = f"at random, {load * best:.2f}/s"
        scenarios[name] = arrivals(load * best, requests, seed, list(sizes), 1 / best), None
        measure(running, name)
        previewed = [Asked(**{**vars(each), "previews": 3}) for each in plain]
        previews = summarise(OURS, "8 at once, 3 previews", [serve(running[0], previewed, 8)])
        results.append(previews)
    for replicas in (1, 2) if ray is not None else ():  # one after the other: a cluster takes its share also when idle
        command = [str(ray / "bin/python"), "-c", RAY, str(bundle.resolve()), str(replicas)]
        with servers({f"Ray, {replicas}": command}) as running:
            for name in scenarios:
                measure(running, name)
    print_table(results)
    reached = targets(results, alone, most)
    for name, value in reached.items():
        click.echo(f"{name.replace('_', ' ')}: {'-' if value is None else f'{value:.3g}'}")
    machine = describe_machine()
    report = {
        "command": shlex.join(["python", "benchmarks/serving.py", *sys.argv[1:]]),
        "results": [asdict(each) for each in results],
        "targets": reached,
        "without_http_s": alone,
        "bound_pictures_per_s": most,
        "options": {"requests": requests, "rounds": rounds, "load": load, "sizes": sizes, "seed": seed},
        "load_average": {"before": before, "after": os.getloadavg()},
        "machine": machine,
        "versions": {name: version(name) for name in ("numpy", "onnxruntime", "fastapi", "uvicorn")},
    }
    path = output or RESULTS / f"serving-{file_label(machine['cpu'])}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(path)


def targets(results: list[Result], alone: float, most: float) -> dict[str, float | None]:
    """What the server is to reach: more pictures than the naive one, no later, for little; an early preview."""
    found = {(each.scenario, each.server): each for each in results}
    ours, naive_one, single = found.get(("8 at once", OURS)), found.get(("8 at once", "naive")), found.get(ONE)
    previews = [each.first_preview_step for each in results if each.first_preview_step is not None]
    return {
        "times_the_pictures_of_the_naive_server_at_8": ours
        and naive_one
        and ours.pictures_per_s / naive_one.pictures_per_s,
        "times_its_p95_at_8": ours and naive_one and ours.p95_s / naive_one.p95_s,
        "http_share_of_a_picture": single and single.p50_s / alone - 1,
        "share_of_the_bound_at_8": ours and ours.pictures_per_s / most,
        "steps_before_the_first_preview": max(previews, default=None),
    }


if __name__ == "__main__":
    main()
