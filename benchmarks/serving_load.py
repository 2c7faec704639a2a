"""Requests, how they are sent to a server, and what came of them: what benchmarks/serving.py measures with.

Knows nothing of which servers there are, but that they speak the API of OpenAI; serving_triton.py sends otherwise.
"""

import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import psutil
from scheduler import PROMPTS

ROOT = Path(__file__).parents[1]
ROUTE = "/v1/images/generations"
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


class Process:
    """A program that serves; it tells its address in a line, or in `address`."""

    def __init__(
        self, command: list[str], address: str | None = None, environment: dict[str, str] | None = None
    ) -> None:
        pipe = subprocess.PIPE if address is None else subprocess.DEVNULL
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        self.popen = subprocess.Popen(command, stdout=pipe, text=True, cwd=ROOT, env=environment)
        line = address or (self.popen.stdout.readline() if self.popen.stdout else "")
        found = re.search(r"([\d.]+):(\d+)", line)
        if found is None:
            raise click.ClickException(f"{command[:3]} did not start: {line}")
        self.host, self.port = found[1], int(found[2])
        self._seen = psutil.Process(self.popen.pid)

    def usage(self) -> tuple[float, float]:
        """CPU seconds so far, and MiB of memory, of all its processes."""
        processes = [self._seen, *self._seen.children(recursive=True)]
        times = [each.cpu_times() for each in processes]
        return sum(each.user + each.system for each in times), sum(each.memory_info().rss for each in processes) / 2**20

    def stop(self) -> None:
        """End it."""
        self.popen.terminate()
        self.popen.wait()


@dataclass(frozen=True)
class Server:
    """One that draws, below a route of a process."""

    name: str
    process: Process
    route: str = ""

    def send(self, requests: list[Asked], clients: int | None) -> tuple[list[Answered], float]:
        """Send them, as so many clients or at their moments; the answers, and seconds."""
        started = time.perf_counter()
        answers = asyncio.run(self._at_random(requests) if clients is None else self._at_once(requests, clients))
        return answers, time.perf_counter() - started

    def serve(self, requests: list[Asked], clients: int | None) -> Served:
        """Run one scenario."""
        cpu, _ = self.process.usage()
        answers, wall = self.send(requests, clients)
        cpu_end, rss = self.process.usage()
        return Served(answers=answers, wall_s=wall, cpu_s=cpu_end - cpu, rss_mib=rss)

    async def _at_once(self, requests: list[Asked], clients: int) -> list[Answered]:
        """Each client asks again as soon as it is answered."""
        left, answers = iter(requests), []

        async def client() -> None:
            for asked in left:
                answers.append(await self._ask(asked))

        await asyncio.gather(*(client() for _ in range(clients)))
        return answers

    async def _at_random(self, requests: list[Asked]) -> list[Answered]:
        """Each request comes at its moment, whatever became of the others."""

        async def one(asked: Asked) -> Answered:
            await asyncio.sleep(asked.at_s)
            return await self._ask(asked)

        return list(await asyncio.gather(*map(one, requests)))

    async def _ask(self, asked: Asked) -> Answered:
        """Send a request, and wait for its end or for the moment to leave."""
        body = {"prompt": asked.prompt, "seed": asked.seed, "size": asked.size}
        if asked.previews:
            body |= {"stream": True, "partial_images": asked.previews}
        started = time.perf_counter()
        content, (host, port) = json.dumps(body).encode(), (self.process.host, self.process.port)
        head = f"POST {self.route}{ROUTE} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        reader, writer = await asyncio.open_connection(host, port, limit=2**24)
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
            latency = time.perf_counter() - started
            return Answered(asked=asked, status=0, latency_s=latency, first_preview_s=first_preview)
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
        first_preview_step=max((each.first_preview_step or 0 for each in previews), default=None),
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
