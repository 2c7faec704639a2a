"""INT8 on this CPU, as `rf-export calibrate` makes it: against fp32, PyTorch, and onnxruntime.quantization as it is.

    python benchmarks/int8.py reference base-90m

For every model: export in fp32, calibrate, build both engines; quantise the same denoiser with the static defaults of
`onnxruntime.quantization` on recorded inputs of the same prompts; measure steps and pictures in turns. Writes
`benchmarks/results/int8-<name>-<cpu>.json`. Weights of presets other than `reference` are random: their speed counts,
their quality does not, so their gate is wide. Keep the machine quiet meanwhile.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
from cpu import HERE, prepare, progress_line
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from calibration import CalibrationConfig, GateLimits, calibrate, read_prompts
from calibration.examples import split_prompts
from calibration.gate import draw_originals, measure_quality
from calibration.job import load_pipeline
from calibration.trajectory import record_examples
from engines import EngineConfig, build
from rf_export.benchmark.bench import run_bench
from rf_export.benchmark.environment import file_label
from rf_export.benchmark.tables import format_bench
from rf_export.benchmark.task import BenchOptions
from rf_export.evaluation.evaluate import scene_scorer
from runtime.backends import create_backend
from runtime.bundle.folder import open_bundle
from runtime.signature import Variant
from verification.measures.timing import interleave

PROMPTS = HERE.parent / "examples" / "reference" / "prompts.txt"
NUM_JUDGED = 4  # pictures that judge the defaults of onnxruntime.quantization


class Recorded(CalibrationDataReader):
    """Recorded inputs of a graph, one run after the other."""

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        self._runs: Iterator[dict[str, Any]] = iter(runs)

    def get_next(self) -> dict[str, Any] | None:
        """The next run, or None."""
        return next(self._runs, None)


@click.command(help=__doc__)
@click.argument("names", nargs=-1, required=True, metavar="PRESET...")
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1,), show_default=True)
@click.option("--scene-score", type=click.IntRange(0), default=400, show_default=True, help="Of the reference.")
@click.option("--compile/--no-compile", default=True, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=HERE / "work", help="For bundles; kept between runs.")
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results")
def main(
    names: tuple[str, ...], threads: tuple[int, ...], scene_score: int, compile: bool, work: Path, results: Path
) -> None:
    """Run it for every named shape."""
    results.mkdir(parents=True, exist_ok=True)
    for name in names:
        checkpoint, bundle = prepare(name, work)
        is_trained = name == "reference"
        config = CalibrationConfig(
            limits=GateLimits() if is_trained else GateLimits(cosine=0.9, psnr_db=10, answer_tokens=0.5),
            force=not is_trained,
        )
        prompts = read_prompts(PROMPTS) if is_trained else read_prompts(PROMPTS)[:16]
        if "int8" not in open_bundle(bundle).manifest.precisions:
            scorer = scene_scorer(scene_score) if is_trained and scene_score else None
            calibrate(bundle, prompts, config, scorer=scorer, on_progress=progress_line)
        build(bundle, EngineConfig(precision="int8"))
        defaults = against_defaults(bundle, prompts, config, work / name)
        options = BenchOptions(threads=threads, precisions=("fp32", "int8"), compile=compile, num_picture_rounds=2)
        bench = run_bench(bundle, checkpoint, options, progress_line)
        result = {
            "command": shlex.join(["python", "benchmarks/int8.py", *sys.argv[1:]]),
            "preset": name,
            **bench,
            "calibration": open_bundle(bundle).manifest.verified["int8"],
            "onnxruntime_quantization": defaults,
        }
        cpu = file_label(result["machine"]["cpu"])
        path = results / f"int8-{name}-{cpu}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        click.echo(f"{name}\n{format_bench(result)}\n{format_defaults(defaults)}\n-> {path}\n")


def against_defaults(bundle: Path, prompts: list[str], config: CalibrationConfig, work: Path) -> dict[str, Any]:
    """The denoiser in fp32, as we quantise it, and with `quantize_static` as it comes: milliseconds and quality."""
    opened, backend = open_bundle(bundle), create_backend("ort")
    learn, judge = split_prompts(prompts, config)
    before, after = (load_pipeline(opened, precision, backend, config) for precision in ("fp32", "int8"))
    runs = record_examples(before, learn[:12])["denoiser"]
    source = opened.file(opened.graph("denoiser", Variant("fp32")).file)
    plain, out = work / "plain.onnx", work / "onnxruntime-defaults.onnx"
    model = ir.load(source)
    for name, value in model.graph.initializers.items():  # it cannot read external data of a shared file
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=name)
    ir.save(model, plain)
    quantize_static(str(plain), str(out), Recorded(runs))
    sessions = {
        "fp32": before.sessions["denoiser"],
        "ours": after.sessions["denoiser"],
        "onnxruntime defaults": backend.open(out, num_threads=1, compiled=False),
    }
    steps = {}
    for name, session in sessions.items():
        outputs = {key: np.empty_like(array) for key, array in before.sessions["denoiser"].run(runs[0]).items()}
        run = session.bind(runs[0], outputs)
        steps[name] = lambda run=run: (run(), 1)[1]
    timings = interleave(steps, 11)
    originals = draw_originals(before, judge[:NUM_JUDGED], [])
    rows = {}
    for name, session in sessions.items():
        quality = measure_quality(originals, before.with_sessions({"denoiser": session}), lambda done: None)
        ms = timings[name].as_dict()["cpu_median_ms"]
        rows[name] = {
            "denoise_step_ms": ms,
            "psnr_db": quality.psnr_db.value,
            "x_pred_cosine": min(quality.x_pred_cosine),
        }
    for path in (plain, out):
        path.unlink()
    return {"pictures": len(originals.drawings), "rows": rows}


def format_defaults(defaults: dict[str, Any]) -> str:
    """A small table."""
    lines = [f"the same denoiser, plain ONNX graphs, one thread, {defaults['pictures']} pictures from the same tokens"]
    for name, row in defaults["rows"].items():
        lines.append(
            f"  {name:22s} {row['denoise_step_ms']:8.2f} ms  PSNR {row['psnr_db']:5.1f} dB  "
            f"cosine {row['x_pred_cosine']:.6f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
