"""The native host against the Python runtime: from a process's start to its first picture, memory, time per picture.

    python benchmarks/native.py

Both draw the same pictures of the reference checkpoint from the same bundle, in processes of their own that take turns,
and every picture is compared by its hash. Writes `benchmarks/results/native-<cpu>.json`. Keep the machine quiet
meanwhile; it takes about four minutes with the default options.
"""

import contextlib
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
from cpu import HERE, progress_line

from engines import EngineConfig
from engines import build as build_engine
from rf_export.benchmark.environment import describe_machine, file_label
from rf_export.export import ExportOptions, export
from runtime.native.library import find_onnxruntime
from verification.measures.timing import Timing

ROOT: Final = HERE.parent
_STARTED: Final = ("first", "first_cpu", "resident", "peak")  # of a process, at its first picture
REFERENCE: Final = ROOT / "examples" / "reference" / "checkpoint"
# The same as native_worker.c, in the same words.
PYTHON: Final = """
import sys, time
begun, bundle, precision, engine, threads = sys.argv[1:]
from runtime import Pipeline
pipeline = Pipeline.load(bundle, precision, num_threads=int(threads), engine=engine, allow_unverified=True)
def memory(key):
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
def draw(seed):
    wall, cpu = time.monotonic(), time.process_time()
    picture = pipeline.draw("a red car", seed=seed)
    now, used = time.monotonic(), time.process_time()
    value = 14695981039346656037
    for byte in picture.tobytes():
        value = (value ^ byte) * 1099511628211 % 2**64
    row = {"first": now - float(begun), "first_cpu": used, "wall": now - wall, "cpu": used - cpu}
    row |= {"resident": memory("VmRSS"), "peak": memory("VmHWM"), "hash": f"{value:016x}"}
    print(str(row).replace("'", '"'), flush=True)
draw(0)
for line in sys.stdin:
    draw(int(line))
"""


class Worker:
    """A process that draws; the row of its first picture."""

    def __init__(self, command: Sequence[str], arguments: Sequence[str]) -> None:
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RF_ONNXRUNTIME": find_onnxruntime() or ""}
        line = [command[0], *command[1:], repr(time.monotonic()), *arguments]
        self._process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.first = self._row()

    def draw(self, seed: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seed}\n")
        self._process.stdin.flush()
        return self._row()

    def _row(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self._process.args} ended; see above")
        row: dict[str, Any] = json.loads(line)
        return row

    def close(self) -> None:
        self._process.communicate()


@click.command(help=__doc__)
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="Bundle; default: of the reference.")
@click.option("--precision", default="fp32", show_default=True)
@click.option("--engine", default="none", show_default=True, help='"auto" takes that of the bundle.')
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--starts", type=click.IntRange(2), default=15, show_default=True, help="Fresh processes of each.")
@click.option("--rounds", type=click.IntRange(6), default=60, show_default=True, help="Pictures of each in turns.")
@click.option("--output", type=click.Path(path_type=Path), help="File of the result; default: benchmarks/results.")
def main(
    bundle: Path | None, precision: str, engine: str, threads: int, starts: int, rounds: int, output: Path | None
) -> None:
    """See the module."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        progress_line("building the native host", 0, 4)
        native, size = build(folder)
        if bundle is None:
            progress_line("exporting", 1, 4)
            bundle = folder / "bundle"
            export(REFERENCE, bundle, ExportOptions(precisions=("fp32", "fp16"), verify=False))
            if engine == "auto":
                build_engine(bundle, EngineConfig(precision=precision, num_threads=threads, allow_unverified=True))
        arguments = [str(bundle.resolve()), precision, engine, str(threads)]
        commands = {"native": [str(native)], "python": [sys.executable, "-c", PYTHON]}
        progress_line("starting", 2, 4)
        first = start(commands, arguments, starts)
        progress_line("drawing", 3, 4)
        timings, different = draw(commands, arguments, rounds)
        progress_line("done", 4, 4)
    result = {
        "command": shlex.join(["python", "benchmarks/native.py", *sys.argv[1:]]),
        "machine": describe_machine(),
        "bundle": "the reference checkpoint" if bundle.parent == folder else bundle.name,
        "precision": precision,
        "engine": engine,
        "threads": threads,
        "library_bytes": size,
        "pictures_that_differ": different,
        "start": first,
        "picture": {name: timing.as_dict() for name, timing in timings.items()},
        "ratio": ratios(first, timings),
    }
    path = output or HERE / "results" / f"native-{file_label(result['machine']['cpu'])}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(json.dumps(result["ratio"], indent=1))
    click.echo(path)


def build(folder: Path) -> tuple[Path, int]:
    """The worker of the native host, built as `make native` builds it, and the bytes of the library without symbols."""
    library, include = folder / "native", ROOT / "runtime/native/include"
    link = ["-L", library, "-lrf_runtime", f"-Wl,-rpath,{library}"]
    for command in (
        ["cmake", "-S", ROOT / "runtime/native", "-B", library, "-DRF_EXAMPLES=OFF"],
        ["cmake", "--build", library],
        ["strip", "-o", folder / "stripped.so", library / "librf_runtime.so"],
        ["cc", "-std=c99", "-O2", "-I", include, HERE / "native_worker.c", "-o", folder / "worker", *link],
    ):
        subprocess.run([*map(str, command)], check=True, stdout=sys.stderr)
    return folder / "worker", (folder / "stripped.so").stat().st_size


def start(commands: Mapping[str, Sequence[str]], arguments: Sequence[str], repeats: int) -> dict[str, Any]:
    """Medians over fresh processes in turns, and what each measured at its first picture."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for turn in range(repeats + 1):
        for name in sorted(commands, reverse=bool(turn % 2)):
            worker = Worker(commands[name], arguments)
            worker.close()
            if turn:  # the first brings files into the system's cache
                rows[name].append(worker.first)
    return {
        name: {**{f"{key}_median": statistics.median(row[key] for row in runs) for key in _STARTED}, "runs": runs}
        for name, runs in rows.items()
    }


def draw(commands: Mapping[str, Sequence[str]], arguments: Sequence[str], rounds: int) -> tuple[dict[str, Timing], int]:
    """Pictures in turns, one of each at a time, and how many were not the same."""
    timings, different = {name: Timing([], []) for name in commands}, 0
    with workers(commands, arguments) as found:
        for turn in range(rounds):
            hashes = set()
            for name in sorted(found, reverse=bool(turn % 2)):
                row = found[name].draw(turn)
                timings[name].wall.append(row["wall"])
                timings[name].cpu.append(row["cpu"])
                hashes.add(row["hash"])
            different += len(hashes) != 1
    return timings, different


@contextlib.contextmanager
def workers(commands: Mapping[str, Sequence[str]], arguments: Sequence[str]) -> Iterator[dict[str, Worker]]:
    """Both, started; the other sleeps while one draws."""
    found = {name: Worker(command, arguments) for name, command in commands.items()}
    try:
        yield found
    finally:
        for worker in found.values():
            worker.close()


def ratios(first: Mapping[str, Any], timings: Mapping[str, Timing]) -> dict[str, float]:
    """Native over Python; below 1 the native host is better."""
    native, python = first["native"], first["python"]
    cpu = {name: statistics.median(timing.cpu) for name, timing in timings.items()}
    return {
        "first_picture": round(native["first_median"] / python["first_median"], 3),
        "first_picture_cpu": round(native["first_cpu_median"] / python["first_cpu_median"], 3),
        "resident": round(native["resident_median"] / python["resident_median"], 3),
        "peak": round(native["peak_median"] / python["peak_median"], 3),
        "picture_wall": round(timings["native"].median / timings["python"].median, 3),
        "picture_cpu": round(cpu["native"] / cpu["python"], 3),
    }


if __name__ == "__main__":
    main()
