"""Throughput and latency of `rf-export serve` under load, beside other servers of the same bundle.

    python benchmarks/serving.py BUNDLE                         beside a naive server: one picture after another
    python benchmarks/serving.py BUNDLE --ray ENVIRONMENT       beside Ray, with one and with two replicas
    python benchmarks/serving.py BUNDLE --triton ENVIRONMENT    beside NVIDIA's Triton
    python benchmarks/serving.py BUNDLE --precision int8        any of them with these graphs

The naive server is what one writes first: FastAPI, a lock, and `Pipeline.draw` with a thread for each core. All run in
processes of their own and get the same requests; they take turns, in another order each round, and medians of the
rounds are reported. Scenarios: clients that each ask again as soon as they are answered, with and without previews, and
requests at random moments (a Poisson process from a seed), some of another size, some of clients that leave after a
while. Eight pictures of each server are compared with those of `Pipeline.draw`. In turns with them this process draws
without HTTP: lone pictures through the scheduler, and what the machine draws at most, which is a full batch on each
core, again and again, with nothing between.

Ray has one cluster of this machine with both applications, so that both pay for what it does when it is idle; its CPU
and memory are those of all of it. An environment has `rf-export[ort,ray]`, or nvidia-pytriton, tritonclient[grpc] and
rf-export[ort]; Triton's own client sends its load, through gRPC.

Writes `benchmarks/results/serving[-int8][-ray|-triton]-<cpu>.json`. Run it on a quiet machine: the clients, too, take
their share of it.
"""

import base64
import contextlib
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import serving_triton
from PIL import Image
from rich.console import Console
from rich.table import Table
from scheduler import PROMPTS
from serving_load import ROUTE, Answered, Asked, Process, Result, Served, Server, arrivals, summarise

from rf_export.benchmark.environment import describe_machine, file_label
from runtime import GenerationOptions, Pipeline, Scheduler
from runtime.backends.host.machine import usable_cpus

OURS, NAIVE, TRITON = "rf-export serve", "naive", "Triton"
ONE, EIGHT, PREVIEWS = "1 at once", "8 at once", "8 at once, 3 previews"
LEAST_DB, LARGEST_DB = 30.0, 200.0  # of INT8 pictures in a batch; of equal ones
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Triton(Server):
    """Triton, whose client runs in its environment."""

    python: Path = Path()

    def send(self, requests: list[Asked], clients: int | None) -> tuple[list[Answered], float]:
        """As of `Server`."""
        address = f"{self.process.host}:{self.process.port}"
        work = json.dumps({"requests": [vars(each) for each in requests], "clients": clients})
        command = [str(self.python), serving_triton.__file__, address]
        done = subprocess.run(command, input=work, check=True, stdout=subprocess.PIPE, text=True)
        told = json.loads(done.stdout)
        answers = []
        for asked, answer in zip(requests, told["answers"], strict=True):
            png = answer.pop("png", None)
            body = b"" if png is None else json.dumps({"data": [{"b64_json": png}]}).encode()
            answers.append(Answered(asked=asked, body=body, **answer))
        return answers, told["wall_s"]


class Here:
    """The same bundle in this process, without a server."""

    def __init__(self, bundle: Path, precision: str) -> None:
        self._pipeline = Pipeline.load(bundle, precision, num_threads=1)  # type: ignore[arg-type]

    def alone_s(self, asked: Asked, scheduler: Scheduler) -> float:
        """Seconds of a picture through the scheduler."""
        started = time.perf_counter()
        scheduler.submit(asked.prompt, seed=asked.seed, reports="picture").result()
        return time.perf_counter() - started

    def http_share(self, server: Server, pairs: int) -> dict[str, float]:
        """What a lone picture takes with HTTP and without, in turns, and the median of what HTTP adds."""
        alone, asked = [], []
        with Scheduler(self._pipeline) as scheduler:
            for index in range(pairs + 2):
                request = Asked(prompt=PROMPTS[index % len(PROMPTS)], seed=index)
                turns = [
                    lambda each=request: alone.append(self.alone_s(each, scheduler)),
                    lambda each=request: asked.append(server.send([each], 1)[0][0].latency_s),
                ]
                for turn in turns[:: 1 if index % 2 else -1]:
                    turn()
        alone, asked = alone[2:], asked[2:]
        return {
            "pairs": pairs,
            "without_http_s": statistics.median(alone),
            "with_http_s": statistics.median(asked),
            "http_s": statistics.median(b - a for a, b in zip(alone, asked, strict=True)),
            "http_share": statistics.median(b / a - 1 for a, b in zip(alone, asked, strict=True)),
        }

    def most(self) -> float:
        """Pictures a second where each core draws full batches of 8 and does nothing else."""
        cores = usable_cpus()

        def draw(seed: int) -> None:
            for _ in self._pipeline.generate(PROMPTS, seed=seed):
                pass

        started = time.perf_counter()
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(draw, range(cores)))
        return cores * len(PROMPTS) / (time.perf_counter() - started)

    def require_same(self, server: str, served: list[Answered], *, alone: bool) -> float:
        """The least PSNR, in dB, of eight pictures against those of the pipeline.

        Raises:
            ClickException: They are others. Alone they are equal, in a batch by rounding; INT8 graphs round in coarse
                steps, so that there a batch differs by as much as INT8 does from fp32.
        """
        least = LARGEST_DB
        for answer in sorted(served, key=lambda each: each.asked.seed)[:8]:
            png = base64.b64decode(json.loads(answer.body)["data"][0]["b64_json"])
            native = self._pipeline.draw(answer.asked.prompt, seed=answer.asked.seed)
            difference = np.asarray(Image.open(io.BytesIO(png))).astype(float) - native
            mean = float(np.square(difference).mean())
            least = min(least, 10 * np.log10(255**2 / mean) if mean else LARGEST_DB)
            is_coarse = self._pipeline.precision.startswith("int8") and not alone
            if np.abs(difference).max() > 1 and not (is_coarse and least >= LEAST_DB):
                raise click.ClickException(f"{answer.asked} of {server} is another picture than the pipeline's")
        return float(least)


def naive(bundle: Path, precision: str) -> None:
    """The server that one writes first."""
    import socket

    import uvicorn
    from fastapi import FastAPI

    from runtime.pictures.png import encode_png

    pipeline = Pipeline.load(bundle, precision, num_threads=usable_cpus())  # type: ignore[arg-type]
    app, lock = FastAPI(), threading.Lock()

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
import shutil, signal, sys, tempfile, threading
import ray
from ray import serve
from runtime.serving.ray_app import Settings, app
from runtime.serving.server import listen

folder, stopped = tempfile.mkdtemp(prefix="rf-ray-"), threading.Event()
quiet = {"log_level": "WARNING", "enable_access_log": False}
listening = listen("127.0.0.1", 0)
port = listening.getsockname()[1]
listening.close()
ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=256 << 20, logging_level="WARNING",
         _temp_dir=folder)
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
for replicas in (1, 2):
    settings = Settings(bundle=sys.argv[1], precision=sys.argv[2], min_replicas=replicas, max_replicas=replicas)
    serve.run(app(settings), name=str(replicas), route_prefix=f"/{replicas}", logging_config=quiet)
print(f"http://127.0.0.1:{port}", flush=True)
stopped.wait()
serve.shutdown()
ray.shutdown()
shutil.rmtree(folder, ignore_errors=True)
"""


@contextlib.contextmanager
def servers(bundle: Path, precision: str, ray: Path | None, triton: Path | None) -> Iterator[list[Server]]:
    """Ours and those beside it, warmed up."""
    python, given = sys.executable, ["--precision", precision]
    with contextlib.ExitStack() as stack:

        def start(*arguments: object, **more: object) -> Process:
            process = Process([str(each) for each in arguments], **more)  # type: ignore[arg-type]
            stack.callback(process.stop)
            return process

        found = [Server(OURS, start(python, "cli.py", "serve", bundle, "--port", 0, *given))]
        if ray is not None:
            patience = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_USAGE_STATS_ENABLED": "0"}
            cluster = start(ray / "bin/python", "-c", RAY, bundle, precision, environment=patience)
            found += [Server(f"Ray, {n} replica{'s'[: n - 1]}", cluster, f"/{n}") for n in (1, 2)]
        elif triton is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            command = serving_triton.prepare(triton, bundle, folder, *given)
            process = start(
                *command.words, "--log-info=false", address=command.address, environment=command.environment
            )
            found.append(Triton(TRITON, process, python=triton / "bin/python"))
        else:
            found.append(Server(NAIVE, start(python, __file__, bundle, "--naive", *given)))
        for each in found:
            each.send([Asked(prompt=PROMPTS[0], seed=0)] * 8, 4)
        yield found


def print_table(results: list[Result]) -> None:
    """One line per scenario and server."""
    table = Table(title="Serving", title_justify="left")
    columns = ("scenario", "server", "pictures/s", "p50 s", "p95 s", "p99 s", "preview s", "CPU s", "MiB")
    for column in (*columns, "refused", "left"):
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    for each in results:
        numbers = (each.pictures_per_s, each.p50_s, each.p95_s, each.p99_s, each.first_preview_p50_s)
        shown = ["-" if number is None else f"{number:.2f}" for number in (*numbers, each.cpu_s_per_picture)]
        table.add_row(each.scenario, each.server, *shown, f"{each.rss_mib:.0f}", str(each.refused), str(each.left))
    Console(width=150).print(table)


@click.command(help=__doc__, context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--precision", default="fp32", help="Graphs of the bundle.")
@click.option("--clients", default=(1, 8, 32), multiple=True, type=click.IntRange(1), help="Clients at once.")
@click.option("--requests", default=48, type=click.IntRange(1), help="Requests of a scenario.")
@click.option("--load", default=0.8, help="Random arrivals per second, in units of what the slowest server draws.")
@click.option("--size", "sizes", default=("24x24", "60x60"), multiple=True, help="Other sizes, as WIDTHxHEIGHT.")
@click.option("--rounds", default=3, type=click.IntRange(1))
@click.option("--pairs", default=40, type=click.IntRange(1), help="Lone pictures with HTTP and without.")
@click.option("--seed", default=0, help="Seed of the moments of arrival.")
@click.option("--ray", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Environment with Ray.")
@click.option("--triton", type=click.Path(exists=True, file_okay=False, path_type=Path), help="One with Triton.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file.", show_default="see above")
@click.option("--naive", "is_naive", is_flag=True, hidden=True)
def main(
    bundle: Path,
    precision: str,
    clients: tuple[int, ...],
    requests: int,
    load: float,
    sizes: tuple[str, ...],
    rounds: int,
    pairs: int,
    seed: int,
    ray: Path | None,
    triton: Path | None,
    output: Path | None,
    is_naive: bool,
) -> None:
    """Measure, print, write."""
    if is_naive:
        naive(bundle, precision)
        return
    if ray is not None and triton is not None:
        raise click.UsageError("Give --ray or --triton: one at a time has the machine beside ours.")
    bundle, before, here = bundle.resolve(), os.getloadavg(), Here(bundle, precision)
    plain = [Asked(prompt=PROMPTS[index % len(PROMPTS)], seed=index) for index in range(requests)]
    results: list[Result] = []
    most: list[float] = []
    psnr: dict[str, dict[str, float]] = {}

    def measure(running: list[Server], name: str, work: list[Asked], count: int | None) -> None:
        runs: dict[str, list[Served]] = {each.name: [] for each in running}
        for index in range(rounds):
            if name == EIGHT:
                most.append(here.most())
            for each in running[:: -1 if index % 2 else 1]:
                click.echo(f"{name}, {index + 1} of {rounds}: {each.name}", err=True)
                runs[each.name].append(each.serve(work, count))
        if count is not None and name != PREVIEWS:
            psnr[name] = {
                server: here.require_same(server, served[0].answers, alone=count == 1)
                for server, served in runs.items()
            }
        results.extend(summarise(server, name, each) for server, each in runs.items())

    with servers(bundle, precision, ray, triton) as running:
        lone = here.http_share(running[0], pairs)
        for count in clients:
            measure(running, f"{count} at once", plain, count)
        previewed = [Asked(**{**vars(each), "previews": 3}) for each in plain]
        measure([each for each in running if each.name != NAIVE], PREVIEWS, previewed, 8)
        slowest = min(max(each.pictures_per_s for each in results if each.server == one.name) for one in running)
        moments = arrivals(load * slowest, requests, seed, list(sizes), 1 / slowest)
        measure(running, f"at random, {load * slowest:.2f}/s", moments, None)
    print_table(results)
    reached = targets(results, lone["http_share"], most)
    for name, value in reached.items():
        click.echo(f"{name.replace('_', ' ')}: {value:.3g}")
    command = shlex.join(Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])
    report = {
        "command": f"python benchmarks/serving.py {command}",
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "precision": precision,
        "results": [asdict(each) for each in results],
        "targets": reached,
        "lone": lone,
        "bound_pictures_per_s_of_rounds": most,
        "least_psnr_db": psnr,
        "options": {"requests": requests, "rounds": rounds, "load": load, "sizes": sizes, "seed": seed},
        "load_average": {"before": before, "after": os.getloadavg()},
        "machine": describe_machine() | {"command": f"serving.py {command}"},
        "versions": {name: version(name) for name in ("numpy", "onnxruntime", "fastapi", "uvicorn")}
        | beside(ray, triton),
    }
    kind = ("" if precision == "fp32" else f"-{precision}") + ("-ray" if ray else "-triton" if triton else "")
    path = output or RESULTS / f"serving{kind}-{file_label(report['machine']['cpu'])}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(path)


def beside(ray: Path | None, triton: Path | None) -> dict[str, str]:
    """The versions of what is in the other environment."""
    package, environment = ("ray", ray) if ray else ("nvidia-pytriton", triton)
    if environment is None:
        return {}
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    command = [environment / "bin/python", "-c", code, package]
    return {package: subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()}


def targets(results: list[Result], http_share: float, most: list[float]) -> dict[str, float]:
    """What the server is to reach: more pictures than the naive one, no later, for little; an early preview."""
    found = {(each.scenario, each.server): each for each in results}
    ours, plain = found.get((EIGHT, OURS)), found.get((EIGHT, NAIVE))
    one, two = found.get((EIGHT, "Ray, 1 replica")), found.get((EIGHT, "Ray, 2 replicas"))
    triton, previewed = found.get((EIGHT, TRITON)), found.get((PREVIEWS, OURS))
    reached = {
        "times_the_pictures_of_the_naive_server_at_8": ours and plain and ours.pictures_per_s / plain.pictures_per_s,
        "times_its_p95_at_8": ours and plain and ours.p95_s / plain.p95_s,
        "times_the_pictures_of_triton_at_8": ours and triton and ours.pictures_per_s / triton.pictures_per_s,
        "times_the_pictures_of_one_replica_with_two_at_8": one and two and two.pictures_per_s / one.pictures_per_s,
        "http_share_of_a_picture": http_share,
        "share_of_the_bound_at_8": ours and ours.pictures_per_s / statistics.median(most),
        "steps_before_the_first_preview": previewed and previewed.first_preview_step,
    }
    return {name: value for name, value in reached.items() if value is not None}


if __name__ == "__main__":
    main()
