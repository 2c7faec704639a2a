"""The comparison on an NVIDIA GPU, from nothing to JSON: needs no arguments, and takes what the machine has.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --cell base-90m:256 --cell qwen3-0.6b:512 --time-limit 1500

Measures the AR step, the denoise step and the whole picture in fp16, for eager PyTorch, CUDA graphs of it,
torch.compile in both modes, and our engines on ONNX Runtime, TensorRT and TensorRT-RTX, as far as these are installed;
wall time and kernel time, idle share, memory, and the floor by the bandwidth and matrix rate that are measured here.
Every contender first has to draw what eager fp32 draws; one that does not is reported and not timed. Each cell (a model
and a picture size) runs in a process of its own, and one that crashes goes on without the contender that it died of.
Results are in `benchmarks/results/gpu-<name>.json` after every step. Weights of presets other than `reference` are
random: speed does not depend on them.
"""

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from accelerator import Accelerator, Cpu, find_accelerator
from gpu_cell import Cell, CellOptions
from gpu_tables import format_cell, format_cells

from rf_export.benchmark.contenders import Drawer
from rf_export.benchmark.environment import describe_machine, file_label
from rf_export.benchmark.models import load_model, manifest_of, prepare_checkpoint
from rf_export.benchmark.workload import DrawingWork
from rf_export.model import RFModel
from runtime.backends import create_backend
from runtime.errors import RFError
from runtime.options import GenerationOptions

HERE = Path(__file__).parent
MODELS = ("base-90m", "qwen3-0.6b", "qwen3-1.7b")
CELLS = ("reference:48", *(f"{model}:{size}" for size in (256, 512, 1024) for model in MODELS))
PROMPT_TOKENS = 32
REHEARSAL: dict[str, Any] = {
    "dtype": torch.float32,
    "attentions": ("sdpa", "split"),
    "num_picture_rounds": 1,
    "floor_repeats": 1,
}
MAX_CRASHES = 4  # of one cell
POLL_SECONDS = 0.2


@click.command(help=__doc__)
@click.option("--cell", "cells", multiple=True, default=CELLS, metavar="PRESET:PIXELS", show_default="all")
@click.option("--time-limit", type=click.IntRange(1), help="Seconds after which the rest is left out.")
@click.option("--rounds", "num_rounds", type=click.IntRange(1), default=CellOptions.num_rounds, show_default=True)
@click.option("--compile/--no-compile", default=True, show_default=True, help="torch.compile takes minutes per cell.")
@click.option("--skip", multiple=True, metavar="CONTENDER", help="Leave a contender out, such as tensorrt.")
@click.option("--work", type=click.Path(path_type=Path), default=HERE / "work", help="For bundles; kept between runs.")
@click.option("--output", type=click.Path(path_type=Path), help="Instead of benchmarks/results/gpu-<name>.json.")
@click.option("--cpu", is_flag=True, help="Run all of it on the CPU, in fp32: a rehearsal, not a measurement.")
@click.option("--child", type=click.Path(path_type=Path), hidden=True, help="Measure one cell, and write it there.")
def main(
    cells: tuple[str, ...],
    time_limit: int | None,
    work: Path,
    output: Path | None,
    cpu: bool,
    child: Path | None,
    **options: Any,
) -> None:
    """Measure all cells."""
    parsed = [parse_cell(cell) for cell in cells]
    accelerator = Cpu() if cpu else find_accelerator()
    if isinstance(accelerator, str):
        raise click.ClickException(f"this benchmark needs an NVIDIA GPU: {accelerator}")
    if child is not None:
        measure_cell(*parsed[0], accelerator, work, child, **options)
        return
    gpu = accelerator.describe()
    path = output or HERE / "results" / f"gpu-{file_label(gpu['name'] or 'rehearsal-on-cpu')}.json"
    command = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    result: dict[str, Any] = {"command": command, "machine": describe_machine(), "gpu": gpu, "cells": []}
    deadline = None if time_limit is None else time.monotonic() + time_limit
    for model, size in parsed:
        cell: dict[str, Any] = {"model": model, "size": size}
        result["cells"].append(cell)
        if deadline is not None and time.monotonic() > deadline:
            cell["reason"] = "left out: the time limit was reached"
        else:
            click.echo(f"{model}, {size} px ...", err=True)
            run_cell(cell, child_command(cell, work, cpu, options), work, deadline, lambda: write(path, result))
        write(path, result)
        click.echo("\n".join(format_cell(cell)), err=True)
    click.echo(f"{format_cells(result)}\n-> {path}")


def parse_cell(text: str) -> tuple[str, int]:
    """A preset and a size, of "base-90m:256"."""
    match = re.fullmatch(r"([\w.-]+):(\d+)", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not written like base-90m:256", param_hint="--cell")
    return match[1], int(match[2])


def write(path: Path, result: dict[str, Any]) -> None:
    """Replace a JSON file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)


# ---- the parent: one process per cell


def child_command(cell: dict[str, Any], work: Path, cpu: bool, options: dict[str, Any]) -> list[str]:
    """How a process measures the cell."""
    command = [
        sys.executable,
        str(HERE / "gpu.py"),
        "--cell",
        f"{cell['model']}:{cell['size']}",
        "--work",
        str(work),
        "--rounds",
        str(options["num_rounds"]),
    ]
    command += ["--cpu"] if cpu else []
    command += [] if options["compile"] else ["--no-compile"]
    return [*command, *(word for name in options["skip"] for word in ("--skip", name))]


def run_cell(
    cell: dict[str, Any], command: list[str], work: Path, deadline: float | None, save: Callable[[], None]
) -> None:
    """Run the process until it ends by itself; where it crashes, again without whom it died of."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "cell.json"
    lost: dict[str, Any] = {}
    for _ in range(MAX_CRASHES):
        file.unlink(missing_ok=True)
        skipped = [word for name in lost for word in ("--skip", name)]
        code = _follow([*command, *skipped, "--child", str(file)], file, cell, deadline, save)
        running = [name for name, entry in cell.get("contenders", {}).items() if entry["status"] == "running"]
        if code is None:
            cell["reason"] = "cut off: the time limit was reached"
            for name in running:
                cell["contenders"][name] = {"status": "failed", "reason": cell["reason"]}
        elif code and running:
            lost |= {name: {"status": "failed", "reason": f"the process ended with code {code}"} for name in running}
            continue
        elif code:
            cell["reason"] = f"the process ended with code {code}"
        break
    cell.setdefault("contenders", {}).update(lost)
    if "num_parameters" not in cell:  # nothing was measured
        del cell["contenders"]


def _follow(
    command: list[str], file: Path, cell: dict[str, Any], deadline: float | None, save: Callable[[], None]
) -> int | None:
    """Take over what the process writes, as long as it runs; its code, or None if the time was over."""
    seen = 0.0
    with subprocess.Popen(command) as process:
        while True:
            code = process.poll()
            if file.exists() and file.stat().st_mtime != seen:
                seen = file.stat().st_mtime
                cell.update(json.loads(file.read_text()))
                save()
            if code is not None:
                return code
            if deadline is not None and time.monotonic() > deadline:
                process.kill()
                return None
            time.sleep(POLL_SECONDS)


# ---- the child: one cell


def measure_cell(
    name: str,
    size: int,
    accelerator: Accelerator,
    work: Path,
    out: Path,
    *,
    num_rounds: int,
    compile: bool,
    skip: tuple[str, ...],
) -> None:
    """Measure a model at a picture size, and write what is known after every step."""
    on_cpu = accelerator.device.type == "cpu"
    options = CellOptions(num_rounds=num_rounds, compile=compile and not on_cpu, **(REHEARSAL if on_cpu else {}))
    model, weights = load_model(name, work, torch.float32 if on_cpu else torch.float16)
    workload = DrawingWork.of(manifest_of(model), PROMPT_TOKENS, GenerationOptions(height=size, width=size))
    ours = Ours(name, workload, work, model, on_cpu=on_cpu)
    cell = Cell(model, workload, options, accelerator, lambda result: write(out, dict(result)))
    cell.result["weights"] = weights
    entrants: dict[str, Callable[[], Drawer]] = {}
    for label in ours.names():
        reason = "left out with --skip" if label in skip else ours.missing(label)
        if reason is None:
            entrants[label] = lambda label=label: ours.make(label)  # type: ignore[misc]
        else:
            cell.result["contenders"][label] = {"status": "missing", "reason": reason}
    del model
    cell.run(entrants)


class Ours:
    """Our contenders: the bundle of a model, its engines for one picture size, and what is missing for them."""

    def __init__(self, name: str, workload: DrawingWork, work: Path, model: RFModel, *, on_cpu: bool) -> None:
        self._name, self._workload, self._work, self._on_cpu = name, workload, work, on_cpu
        self._precision = "fp32" if on_cpu else "fp16"
        slots = workload.num_slots
        self._cache_slots = min(slots + -slots % 64, model.config.max_positions)

    def names(self) -> list[str]:
        """All that there may be."""
        if self._on_cpu:
            return ["ort"]
        return ["ort-cuda", "tensorrt", "tensorrt modern", "tensorrt-rtx", "tensorrt-rtx modern"]

    def missing(self, label: str) -> str | None:
        """Why a contender cannot take part; None if it may."""
        backend, _, dialect = label.partition(" ")
        try:
            if backend.startswith("tensorrt"):
                from runtime.backends.cuda.tensorrt_library import import_library

                trt = import_library(backend)  # type: ignore[arg-type]
                if dialect and not hasattr(trt.ICudaEngine, "get_aliased_input_tensor"):
                    return f"TensorRT {trt.__version__} does not write a cache in place"
            create_backend(backend)
            import onnx  # noqa: F401
        except (RFError, ImportError) as error:
            return str(error)
        return None

    def make(self, label: str) -> Drawer:
        """Export, build, load."""
        from rf_export.benchmark.compiled import Compiled
        from runtime.pipeline import Pipeline

        backend, _, dialect = label.partition(" ")
        bundle = self._bundle(dialect or "classic", old=backend == "tensorrt" and self._is_old())
        if self._on_cpu:
            threads = torch.get_num_threads()
            return Compiled(Pipeline.load(bundle, "fp32", num_threads=threads, engine="none"), self._workload)
        engine: Any = "none"
        if backend.startswith("tensorrt"):
            engine = self._engine(bundle, backend, dialect or "classic")
        pipeline = Pipeline.load(
            bundle,
            self._precision,
            backend,
            engine=engine,
            verify="size",
            dialect=dialect or "classic",  # type: ignore[arg-type]
            allow_unverified=True,
        )
        return Compiled(pipeline, self._workload)

    def _is_old(self) -> bool:
        import tensorrt

        return str(tensorrt.__version__).startswith("8.")

    def _bundle(self, dialect: str, *, old: bool) -> Path:
        from rf_export.export import ExportOptions, export

        checkpoint = prepare_checkpoint(self._name, self._work, torch.float32 if self._on_cpu else torch.float16)
        modern = dialect == "modern"
        kind = f"modern-{self._cache_slots}" if modern else f"classic-{17 if old else 18}"
        bundle = self._work / self._name / f"{self._precision}-{kind}"
        if not bundle.exists():  # it appears when it is complete
            export(
                checkpoint,
                bundle,
                ExportOptions(
                    precisions=(self._precision,),
                    dialects=(dialect,),
                    opset=17 if old and not modern else None,
                    cache_slots=self._cache_slots if modern else None,
                    verify=self._on_cpu,
                ),
            )  # type: ignore[arg-type]
        return bundle

    def _engine(self, bundle: Path, backend: str, dialect: str) -> Path:
        from engines import DimRange, EngineConfig, TensorRTConfig, build

        plan = self._workload.plan
        sizes = {"batch": 1, "prompt": PROMPT_TOKENS, "height": plan.height, "width": plan.width}
        dims = {name: DimRange(size, size, size) for name, size in sizes.items()}
        config = EngineConfig(
            backend=backend,
            precision=self._precision,
            dialect=dialect,
            tensorrt=TensorRTConfig(dims=dims),
            allow_unverified=True,
        )  # type: ignore[arg-type]
        return build(bundle, config)


if __name__ == "__main__":
    main()
