"""What windows of representation tokens save: the same tokens as one by one, in how many passes, at what cost.

    python benchmarks/passes.py --drawings 10000

Equality over random grids, seeds, temperatures, top-k, guidance and batches, on the reference checkpoint and on a tiny
random one; passes by grid and window; what a pass costs by its window, and the stage as a whole, in turns on one
thread; and a forecast for GPUs, which is none but that. Writes `benchmarks/results/passes-<cpu>.json`. Keep the machine
quiet meanwhile.
"""

import contextlib
import functools
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
import numpy as np
import torch
from cpu import HERE, progress_line
from numpy.typing import NDArray

from rf_export.benchmark.environment import describe_machine, file_label
from rf_export.checkpoint import save_checkpoint
from rf_export.config import ModelConfig, preset
from rf_export.export import ExportOptions, export
from rf_export.model import RFModel
from rf_export.training.scenes import SceneConfig
from rf_export.training.tokens import build_tokenizer
from runtime.events import result_of
from runtime.options import GenerationOptions
from runtime.pipeline import Pipeline
from runtime.request import Request, fill_gumbel
from verification.measures.timing import interleave

REFERENCE: Final = HERE.parent / "examples" / "reference" / "checkpoint"
PROMPTS: Final = HERE.parent / "examples" / "reference" / "prompts.txt"
WINDOWS: Final = (2, 4, 8, 16, 32, 64)
GRIDS: Final = {"reference": (4, 8), "random": (8, 16, 32)}  # tokens per side; the reference was trained on 4
GPU_TOKENS: Final = 64  # so many rows of tokens a GPU reads the weights for at the price of one, at batch 1


@click.command(help=__doc__)
@click.option("--drawings", type=click.IntRange(1), default=10_000, show_default=True, help="For equality.")
@click.option("--pictures", type=click.IntRange(1), default=40, show_default=True, help="For passes, of each grid.")
@click.option("--rounds", type=click.IntRange(2), default=9, show_default=True, help="Of timing.")
@click.option("--model", default="base-90m", show_default=True, help="Preset whose passes are timed.")
def main(drawings: int, pictures: int, rounds: int, model: str) -> None:
    """See the module."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        prompts = [line for line in PROMPTS.read_text().splitlines() if line and not line.startswith("#")]
        progress_line("exporting", 0, 5)
        reference = _load(REFERENCE, Path(folder) / "reference")
        tiny = _random(preset("tiny"), Path(folder) / "tiny")
        wide = _random(_wide(), Path(folder) / "wide")
        large = _random(preset(model), Path(folder) / "large")
        result: dict[str, Any] = {
            "command": shlex.join(["python", "benchmarks/passes.py", *sys.argv[1:]]),
            "machine": describe_machine(),
            "equality": [],
        }
        progress_line("equality", 1, 5)
        for name, pipeline, texts, share in (("tiny", tiny, [""], 0.8), ("reference", reference, prompts, 0.2)):
            result["equality"].append({"model": name, **equality(pipeline, texts, round(share * drawings))})
        progress_line("passes by grid and window", 2, 5)
        result["passes"] = [
            *(passes("reference", reference, prompts, side, pictures) for side in GRIDS["reference"]),
            *(passes("random", wide, [""], side, max(2, 64 * pictures // side**2)) for side in GRIDS["random"]),
        ]
        progress_line("cost by window", 3, 5)
        timed = {"reference": reference, model: large}
        result["cost"] = [{"model": name, **cost(pipeline, rounds)} for name, pipeline in timed.items()]
        result["forecast"] = forecast(result["passes"])
        progress_line("done", 5, 5)
    path = HERE / "results" / f"passes-{file_label(result['machine']['cpu'])}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(path)


def _load(checkpoint: Path, folder: Path) -> Pipeline:
    export(checkpoint, folder, ExportOptions(precisions=("fp32",), verify=False))
    return Pipeline.load(folder, num_threads=1, engine="none", allow_unverified=True)


def _random(config: ModelConfig, folder: Path) -> Pipeline:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(SceneConfig()).to_str(pretty=True)
    save_checkpoint(RFModel(config), tokenizer, folder / "checkpoint", torch.float32)
    return _load(folder / "checkpoint", folder / "bundle")


def _wide() -> ModelConfig:
    """The tiny model with room for 1,024 tokens."""
    content = preset("tiny").to_dict()
    return ModelConfig.from_dict({**content, "max_grid": 32, "max_positions": 1100}, "the wide model")


def token_stage(pipeline: Pipeline, requests: Sequence[Request]) -> tuple[NDArray[np.int64], int]:
    """The tokens `[R, N]`, and the passes that they took."""
    with contextlib.closing(pipeline.begin(requests, previews=False)) as stages:
        stages.prefill([request.ids for request in requests])
        fill_noise = functools.partial(fill_gumbel, requests)
        return result_of(stages.draw_tokens(requests[0].plan, fill_noise, None)), stages.num_passes


def _settings(pipeline: Pipeline, rng: np.random.Generator) -> tuple[GenerationOptions, int]:
    """A random way to draw, and a window for it."""
    model = pipeline.bundle.manifest.model
    side = min(model.max_grid, 8)
    rows, columns = rng.integers(1, side + 1, 2).tolist()
    options = GenerationOptions(
        height=rows * model.cell,
        width=columns * model.cell,
        temperature=float(rng.choice([0.0, 0.3, 0.7, 1.0, 1.5])),
        top_k=int(rng.choice([1, 2, 10, min(50, model.max_top_k)])),
        rep_guidance_scale=float(rng.choice([0.0, 1.0, 2.0, 4.0])),
    )
    return options, int(rng.integers(2, rows * columns + 2))


def equality(pipeline: Pipeline, prompts: Sequence[str], drawings: int) -> dict[str, Any]:
    """Draw with a window and one by one, in batches of 1 to 4; count what differs."""
    rng = np.random.default_rng(0)
    count = tokens = pictures_differ = before = after = 0
    while count < drawings:
        options, window = _settings(pipeline, rng)
        batch = [prompts[i] for i in rng.integers(0, len(prompts), min(int(rng.integers(1, 5)), drawings - count))]
        seed = int(rng.integers(0, 2**62))
        found = []
        for size in (1, window):
            windowed_options = replace(options, window=size)
            found.append(token_stage(pipeline, pipeline.check(batch, seed=seed, options=windowed_options)))
        (right, one_by_one), (ours, windowed) = found
        count, tokens = count + len(batch), tokens + right.size
        pictures_differ += int((right != ours).any(axis=1).sum())
        before, after = before + one_by_one, after + windowed
    return {
        "drawings": count,
        "tokens": tokens,
        "drawings_that_differ": pictures_differ,
        "passes_one_by_one": before,
        "passes_with_windows": after,
    }


def passes(name: str, pipeline: Pipeline, prompts: Sequence[str], side: int, pictures: int) -> dict[str, Any]:
    """Mean passes of a picture of side x side tokens, by window, with the options of the bundle."""
    cell = pipeline.bundle.manifest.model.cell
    table = {}
    for window in (1, *(size for size in WINDOWS if size <= side * side), side * side + 1):
        options = GenerationOptions(height=side * cell, width=side * cell, window=window)
        counts = [
            token_stage(pipeline, pipeline.check([prompts[seed % len(prompts)]], seed=seed, options=options))[1]
            for seed in range(pictures if window > 1 else 1)
        ]
        table[str(window)] = round(float(np.mean(counts)), 2)
    return {"model": name, "tokens": side * side, "pictures": pictures, "passes": table}


def cost(pipeline: Pipeline, rounds: int) -> dict[str, Any]:
    """Milliseconds of a pass by its window, and of the whole token stage, in turns, at the default size."""
    plan = pipeline.check([""])[0].plan
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= plan.num_rep_tokens + 1]
    num_passes: dict[int, int] = {}

    def drawn(size: int) -> Callable[[], int]:
        def run() -> int:
            requests = pipeline.check([""], seed=run.seed, options=GenerationOptions(window=size))  # type: ignore[attr-defined]
            run.seed += 1  # type: ignore[attr-defined]
            num_passes[size] = num_passes.get(size, 0) + token_stage(pipeline, requests)[1]
            return 1

        run.seed = 0  # type: ignore[attr-defined]
        return run

    timings = interleave({str(size): drawn(size) for size in sizes}, rounds, warm=False)
    stage = {name: float(np.median(timing.cpu)) * 1e3 for name, timing in timings.items()}
    per_picture = {str(size): num_passes[size] / len(timings[str(size)].cpu) for size in sizes}
    return {
        "tokens": plan.num_rep_tokens,
        "stage_cpu_ms": {name: round(value, 2) for name, value in stage.items()},
        "passes": {name: round(value, 2) for name, value in per_picture.items()},
        "pass_cpu_ms": {name: round(stage[name] / per_picture[name], 3) for name in stage},
        "fastest": min(stage, key=lambda name: stage[name]),
        "speedup": round(stage["1"] / min(stage.values()), 3),
    }


def forecast(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where a pass over many tokens costs what one token does, as reading weights does on a GPU at batch 1."""
    speedups = {}
    for row in measured:
        fewest = min(value for size, value in row["passes"].items() if int(size) <= GPU_TOKENS + 1)
        speedups[f"{row['model']}, {row['tokens']} tokens"] = round(row["passes"]["1"] / fewest, 2)
    return {
        "what": f"a forecast, not a measurement: passes of up to {GPU_TOKENS} tokens at the price of one",
        "speedup": speedups,
    }


if __name__ == "__main__":
    main()
