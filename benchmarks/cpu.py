"""The CPU comparison for the committed checkpoint and for larger random ones, from nothing to JSON and a page.

    python benchmarks/cpu.py reference base-90m qwen3-0.6b --write docs/benchmarks-cpu.md

Exports each model in fp32, builds its ONNX Runtime engine, measures as `rf-export bench` does, prints the tables and
writes `benchmarks/results/cpu-<name>-<threads>-threads-<cpu>.json`, and a page with plots beside the bundle. Each model
is measured in a process of its own. `--write` also asks `benchmarks/planted.py` whether a slowdown would be seen, and
makes a document of everything. Weights of presets other than `reference` are random: speed does not depend on them,
pictures do. Keep the machine quiet meanwhile. qwen3-0.6b takes 16 GiB of disk and about 16 GiB of memory.
"""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from document import document

from engines import EngineConfig, build
from rf_export.benchmark.bench import run_bench
from rf_export.benchmark.bench_report import bench_page
from rf_export.benchmark.environment import describe_machine, file_label
from rf_export.benchmark.models import prepare_checkpoint
from rf_export.benchmark.tables import format_bench
from rf_export.benchmark.task import BenchOptions
from rf_export.config import preset
from rf_export.export import ExportOptions, export

HERE = Path(__file__).parent
LARGE = 512  # width of the decoder, above which the export is not verified: that would take longer than the benchmark


@click.command(help=__doc__)
@click.argument("names", nargs=-1, required=True, metavar="PRESET...")
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1,), show_default=True)
@click.option("--rounds", "num_rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option("--picture-rounds", "num_picture_rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--stage-seconds",
    type=click.FloatRange(0),
    default=20.0,
    show_default=True,
    help="Begin no further round of a stage after so long.",
)
@click.option("--compile/--no-compile", default=True, show_default=True)
@click.option(
    "--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True, help="Of the planted slowdown."
)
@click.option("--work", type=click.Path(path_type=Path), default=HERE / "work", help="For bundles; kept between runs.")
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results")
@click.option("--resume", is_flag=True, help="Keep the results that are there, and measure what is missing.")
@click.option("--write", type=click.Path(path_type=Path), help="Make a document of everything.")
def main(
    names: tuple[str, ...], clock: str, work: Path, results: Path, resume: bool, write: Path | None, **options: Any
) -> None:
    """Run the comparison for every named shape."""
    results.mkdir(parents=True, exist_ok=True)
    work, results = (Path(os.path.relpath(folder)) for folder in (work, results))  # results tell commands
    if len(names) == 1 and write is None:
        measure(names[0], work, results, BenchOptions(**options))
        return
    for name in names:
        if resume and result_path(name, options["threads"], results).exists():
            continue
        click.echo(name, err=True)
        folders = ["--work", str(work), "--results", str(results)]
        subprocess.run([sys.executable, __file__, name, *folders, *_words(options)], check=True)
    if write is not None:
        command = [sys.executable, str(HERE / "planted.py"), names[0], "--clock", clock]
        planted_path = results / f"planted-{names[0]}-{file_label(describe_machine()['cpu'])}.json"
        if not (resume and planted_path.exists()):
            # Its exit code says whether the verdicts are right; the document says so too.
            subprocess.run([*command, "--work", str(work), "--results", str(results)], check=False)
        planted = json.loads(planted_path.read_text())
        measured = [json.loads(result_path(name, options["threads"], results).read_text()) for name in names]
        write.write_text(document(measured, planted), encoding="utf-8")
        click.echo(f"-> {write}")


def _words(options: dict[str, Any]) -> list[str]:
    """The options that a process of one model gets."""
    words = [word for count in options["threads"] for word in ("--threads", str(count))]
    for name in ("num_rounds", "num_picture_rounds", "stage_seconds"):
        words += [f"--{name.removeprefix('num_').replace('_', '-')}", str(options[name])]
    return [*words, "--compile" if options["compile"] else "--no-compile"]


def _command() -> str:
    return shlex.join(["python", "benchmarks/cpu.py", *sys.argv[1:]])


def result_path(name: str, threads: tuple[int, ...], results: Path) -> Path:
    """Where the result of a model belongs."""
    cpu = file_label(describe_machine()["cpu"])
    return results / f"cpu-{name}-{'-'.join(map(str, threads))}-threads-{cpu}.json"


def measure(name: str, work: Path, results: Path, options: BenchOptions) -> None:
    """One model, in this process."""
    checkpoint, bundle = prepare(name, work)
    result = run_bench(bundle, checkpoint, replace(options, allow_unverified=not _verifies(name)), progress_line)
    result = {"command": _command(), "preset": name, **result}
    path = result_path(name, options.threads, results)
    path.write_text(json.dumps(result, indent=1) + "\n")
    (work / name / "bench.html").write_text(bench_page(result), encoding="utf-8")
    click.echo(f"{name}\n{format_bench(result)}\n-> {path}, {work / name / 'bench.html'}\n")


def prepare(name: str, work: Path) -> tuple[Path, Path]:
    """Checkpoint and bundle with its engine, made if they are not there."""
    checkpoint = prepare_checkpoint(name, work, torch.float32)
    bundle = work / name / "bundle"
    if not bundle.exists():
        export(checkpoint, bundle, ExportOptions(precisions=("fp32",), verify=_verifies(name)), progress_line)
    build(bundle, EngineConfig(allow_unverified=not _verifies(name)))
    return checkpoint, bundle


def _verifies(name: str) -> bool:
    """Whether the export verifies; the benchmark compares every contender with eager PyTorch in any case."""
    return preset(name).hidden_size <= LARGE


def progress_line(what: str, done: int, total: int) -> None:
    """One line per stage on stderr."""
    print(f"    [{done}/{total}] {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
