"""The CPU comparison for the committed checkpoint and for larger random ones, from nothing to JSON.

    python benchmarks/cpu.py reference base-90m --threads 1 --threads 2

Exports each model in fp32, builds its ONNX Runtime engine, measures as `rf-export bench` does, prints the tables and
writes `benchmarks/results/cpu-<name>-<threads>-threads-<cpu>.json`. Weights of presets other than `reference` are
random: speed does not depend on them, pictures do. Keep the machine quiet meanwhile.
"""

import json
import shlex
import sys
from pathlib import Path

import click
import torch

from engines import EngineConfig, build
from rf_export.benchmark.bench import BenchOptions, run_bench
from rf_export.benchmark.environment import file_label
from rf_export.benchmark.models import prepare_checkpoint
from rf_export.benchmark.tables import format_bench
from rf_export.export import ExportOptions, export

HERE = Path(__file__).parent


@click.command(help=__doc__)
@click.argument("names", nargs=-1, required=True, metavar="PRESET...")
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1,), show_default=True)
@click.option("--rounds", "num_rounds", type=click.IntRange(1), default=12, show_default=True)
@click.option("--picture-rounds", "num_picture_rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--compile/--no-compile", default=True, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=HERE / "work", help="For bundles; kept between runs.")
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results")
def main(names: tuple[str, ...], work: Path, results: Path, **options: object) -> None:
    """Run the comparison for every named shape."""
    results.mkdir(parents=True, exist_ok=True)
    for name in names:
        checkpoint, bundle = prepare(name, work)
        result = run_bench(bundle, checkpoint, BenchOptions(**options), progress_line)  # type: ignore[arg-type]
        result = {"command": shlex.join(["python", "benchmarks/cpu.py", *sys.argv[1:]]), "preset": name, **result}
        cpu = file_label(result["machine"]["cpu"])
        threads = "-".join(str(run["threads"]) for run in result["runs"])
        path = results / f"cpu-{name}-{threads}-threads-{cpu}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        click.echo(f"{name}\n{format_bench(result)}\n-> {path}\n")


def prepare(name: str, work: Path) -> tuple[Path, Path]:
    """Checkpoint and bundle with its engine, made if they are not there."""
    checkpoint = prepare_checkpoint(name, work, torch.float32)
    bundle = work / name / "bundle"
    if not bundle.exists():
        export(checkpoint, bundle, ExportOptions(precisions=("fp32",)), progress_line)
    build(bundle, EngineConfig())
    return checkpoint, bundle


def progress_line(what: str, done: int, total: int) -> None:
    """One line per stage on stderr."""
    print(f"    [{done}/{total}] {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
