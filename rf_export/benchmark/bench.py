"""The comparison: our engine, its plain ONNX graphs, eager PyTorch and torch.compile, interleaved in one run.

    check_inputs -> per number of threads: choose the best baselines -> agreement -> time in turns -> floor; footprint

Every contender first has to draw the right picture. Baselines compete with their best variant per stage, found by a
short trial, and the trial's figures are reported too.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rf_export.benchmark.baseline import Attention, Baseline, Layout, Variant
from rf_export.benchmark.compiled import Compiled
from rf_export.benchmark.contenders import STAGES, Contender, Stage, draw_reference
from rf_export.benchmark.environment import describe_machine
from rf_export.benchmark.floor import denoise_step_cost, measure_rates, rep_step_cost
from rf_export.benchmark.footprint import measure_footprint
from rf_export.benchmark.workload import Workload
from rf_export.eager import EagerResult
from rf_export.export import open_exported
from rf_export.model import RFModel
from runtime.bundle import Bundle
from runtime.figures import psnr_db
from runtime.options import GenerationOptions
from runtime.signature import Precision
from runtime.timing import Timing, interleave, ratio

LAYOUTS: tuple[Layout, ...] = ("in_out", "out_in")
ATTENTIONS: tuple[Attention, ...] = ("sdpa", "matmul")
TRIAL_STEPS = 2  # denoising steps of a trial and of a timed turn
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure. The prompt is made up; its length decides the size of the cache."""

    threads: tuple[int, ...] = (1,)
    precisions: tuple[Precision, ...] = ("fp32",)
    num_prompt_tokens: int = 32
    num_rounds: int = 12
    num_picture_rounds: int = 3
    compile: bool = True

    def __post_init__(self) -> None:
        if not self.precisions:
            raise ValueError("precisions must name one at least")
        if min(*self.threads, self.num_rounds, self.num_picture_rounds, self.num_prompt_tokens) < 1:
            raise ValueError("threads, num_rounds, num_picture_rounds and num_prompt_tokens must be >= 1")


def run_bench(
    bundle: Path, checkpoint: Path, options: BenchOptions, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Measure a bundle against the checkpoint that it was exported from.

    Returns:
        JSON-ready: `machine`, `model`, `runs` (one per number of threads) and `footprint`.

    Raises:
        RFError: the two do not belong together, or the model cannot take the prompt.
    """
    opened, model = open_exported(bundle, checkpoint)
    work = Workload.of(opened.manifest, options.num_prompt_tokens, GenerationOptions())
    report = on_progress or (lambda what, done, total: None)
    threads_before = torch.get_num_threads()
    runs = []
    try:
        reference = draw_reference(model, work, TRIAL_STEPS)
        for i, num_threads in enumerate(options.threads):
            torch.set_num_threads(num_threads)
            runs.append(
                _run(opened, model, work, reference, options, num_threads,
                     lambda what, base=i: report(what, base, len(options.threads) + 1))  # type: ignore[misc]
            )  # fmt: skip
    finally:
        torch.set_num_threads(threads_before)
    report("load time and memory", len(options.threads), len(options.threads) + 1)
    footprint = {
        f"{name}{'' if precision == options.precisions[0] else f' {precision}'}": figures
        for precision in options.precisions
        for name, figures in measure_footprint(bundle, precision, options.threads[0]).items()
    }
    graphs = [graph for graph in opened.manifest.graphs if graph.precision == options.precisions[0]]
    weights = sum(opened.manifest.files[name].size for name in {file for graph in graphs for file in graph.weights})
    return {
        "machine": describe_machine(),
        "model": {"num_parameters": opened.manifest.model.num_parameters, "bundle_id": opened.manifest.bundle_id,
                  "height": work.plan.height, "width": work.plan.width, "rep_tokens": work.plan.num_rep_tokens,
                  "patches": 4 * work.plan.num_rep_tokens, "prompt_tokens": len(work.prompt_ids),
                  "cache_slots": work.num_slots, "num_steps": work.plan.num_steps, "weight_bytes": weights},
        "options": asdict(options),
        "runs": runs,
        "footprint": footprint,
    }  # fmt: skip


def _run(
    opened: Bundle, model: RFModel, work: Workload, reference: EagerResult, options: BenchOptions, num_threads: int,
    report: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Everything with one number of threads."""
    groups = [_our_contenders(opened.path, work, precision, num_threads) for precision in options.precisions]
    ours = [contender for group in groups for contender in group]
    variants = list(baseline_variants(compiled=options.compile))
    baselines, trials = _choose_baselines(model, work, variants, report)
    contenders = [*ours, *baselines]
    for contender in contenders:
        contender.prepare()
    agreement = {contender.name: _agreement(contender, reference) for contender in contenders}
    cost = {
        "rep_step": rep_step_cost(model.config, work.num_slots),
        "denoise_step": denoise_step_cost(model.config, work.num_slots, 4 * work.plan.num_rep_tokens),
    }
    timings = {stage: _time_stage(stage, contenders, work, options, report) for stage in STAGES}
    rates = {stage: measure_rates(each.num_bytes) for stage, each in cost.items()}
    floor = {
        stage: {**asdict(each), "bandwidth_gb_s": rates[stage].bandwidth / 1e9,
                "matrix_gflop_s": rates[stage].matrix / 1e9, "floor_ms": 1e3 * rates[stage].floor_seconds(each)}
        for stage, each in cost.items()
    }  # fmt: skip
    first = ours[0].name
    speedups = {
        best: {stage: {name: ratio(timing, rows[best]) for name, timing in rows.items() if name != best}
               for stage, rows in timings.items()}
        for best in (group[0].name for group in groups)
    }  # fmt: skip
    return {
        "threads": num_threads,
        "timings": {stage: {name: each.as_dict() for name, each in rows.items()} for stage, rows in timings.items()},
        "speedup": speedups[first],
        "speedups": speedups,
        "ours": first,
        "floor": floor,
        "agreement": agreement,
        "trials": trials,
    }


def _our_contenders(bundle: Path, work: Workload, precision: Precision, num_threads: int) -> list[Contender]:
    """The engine and the plain graphs; without an engine that fits, these alone."""
    plain = Compiled(bundle, work, precision, num_threads, "none")
    best = Compiled(bundle, work, precision, num_threads, "auto")
    drawers = {"engine": best, "onnx": plain} if best.pipeline.engine is not None else {"onnx": plain}
    return [Contender(name=f"{name} {precision}", tokens=each, pixels=each) for name, each in drawers.items()]


def baseline_variants(*, compiled: bool) -> Iterable[Variant]:
    """Every way to run PyTorch that a careful user would try."""
    for dtype in (torch.float32, torch.bfloat16):
        for attention in ATTENTIONS:
            for layout in LAYOUTS:
                yield Variant(dtype=dtype, layout=layout, attention=attention)
        if compiled:  # frozen weights are laid out by the compiler; its SDPA measured no faster than plain products
            yield Variant(dtype=dtype, attention="matmul", compile="default")
            yield Variant(dtype=dtype, attention="matmul", compile="max-autotune")


def _choose_baselines(
    model: RFModel, work: Workload, variants: list[Variant], report: Callable[[str], None]
) -> tuple[list[Contender], dict[str, Any]]:
    """The fastest variant of every family, per stage."""
    kept: dict[str, dict[str, tuple[float, Baseline]]] = {}  # family -> stage -> seconds per step, who
    trials: dict[str, Any] = {}
    for variant in variants:
        report(f"trial of {variant.name}")
        drawer = Baseline(model, work, variant)
        try:
            contender = Contender(name=variant.name, tokens=drawer, pixels=drawer)
            contender.prepare()
            drawer.denoise(TRIAL_STEPS)
            timings = interleave(_stage_runs(contender, work), num_rounds=1)
        except Exception as error:
            trials[variant.name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        best = kept.setdefault(variant.family, {})
        for stage, timing in timings.items():
            if stage not in best or timing.median < best[stage][0]:
                best[stage] = timing.median, drawer
        trials[variant.name] = {f"{stage}_ms": 1e3 * timing.median for stage, timing in timings.items()}
    contenders = [
        Contender(name=name, tokens=best["rep_step"][1], pixels=best["denoise_step"][1]) for name, best in kept.items()
    ]
    return contenders, trials


def _stage_runs(contender: Contender, work: Workload) -> dict[str, Callable[[], int]]:
    def tokens() -> int:
        contender.tokens.draw_tokens()
        return work.num_decoder_runs

    def pixels() -> int:
        contender.pixels.denoise(TRIAL_STEPS)
        return TRIAL_STEPS

    return {"rep_step": tokens, "denoise_step": pixels}


def _time_stage(
    stage: Stage, contenders: list[Contender], work: Workload, options: BenchOptions, report: Callable[[str], None]
) -> dict[str, Timing]:
    report(f"timing {stage.replace('_', ' ')}")
    if stage == "picture":
        steps = work.plan.num_steps
        return interleave(
            {each.name: lambda each=each: each.picture(steps) for each in contenders}, options.num_picture_rounds
        )
    steps_of = {each.name: _stage_runs(each, work)[stage] for each in contenders}
    return interleave(steps_of, options.num_rounds, warm=True)


def _agreement(contender: Contender, reference: EagerResult) -> dict[str, Any]:
    """Against the independent eager loop in fp32: equal tokens, and the picture after the trial's steps."""
    ids = contender.tokens.draw_tokens()
    contender.pixels.draw_tokens()
    pixels = contender.pixels.denoise(TRIAL_STEPS)
    return {"tokens_equal": int((ids == reference.rep_ids.numpy()).sum()), "tokens": len(ids),
            "psnr_db": psnr_db(pixels, reference.pixels.numpy())}  # fmt: skip
