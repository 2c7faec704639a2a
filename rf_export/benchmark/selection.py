"""The best that PyTorch can do here: every variant has a short trial, and the fastest of a family competes.

Per stage, since the stages are bound by different things. What was tried is reported too.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from rf_export.benchmark.baseline import Attention, Baseline, Layout, Variant, as_variant
from rf_export.benchmark.baseline_reading import BaselineReader
from rf_export.benchmark.contenders import READING_STAGES, Contender, Stage, reading_runs
from rf_export.benchmark.workload import QuestionWorkload, Workload
from rf_export.model import RFModel
from verification.measures.timing import interleave

LAYOUTS: tuple[Layout, ...] = ("in_out", "out_in")
ATTENTIONS: tuple[Attention, ...] = ("sdpa", "matmul")
TRIAL_STEPS = 2  # denoising steps of a trial and of a timed turn
TRIAL_RUNS = 16  # of the representation decoder in a trial, from the middle


def baseline_variants(*, compiled: bool, layouts: tuple[Layout, ...] = LAYOUTS) -> Iterable[Variant]:
    """Every way to run PyTorch that a careful user would try; those that share weights follow one another."""
    for dtype in (torch.float32, torch.bfloat16):
        for layout in layouts:
            for attention in ATTENTIONS:
                yield Variant(dtype=dtype, layout=layout, attention=attention)
            if compiled and layout == "in_out":  # frozen weights are laid out by the compiler
                # Its SDPA measured no faster than plain products.
                yield Variant(dtype=dtype, attention="matmul", compile="default")
                yield Variant(dtype=dtype, attention="matmul", compile="max-autotune")


def choose_baselines(
    model: RFModel,
    work: Workload,
    questions: QuestionWorkload,
    variants: Iterable[Variant],
    report: Callable[[str], None],
) -> tuple[list[Contender], dict[str, Any]]:
    """The fastest variant of every family, per stage; and milliseconds of every trial, or why it failed."""
    kept: dict[str, dict[str, tuple[float, Any]]] = {}  # family -> stage -> seconds per step, who
    trials: dict[str, Any] = {}
    shared: tuple[Any, RFModel] = (None, model)  # of all copies of the weights one is kept, and those that win
    for variant in variants:
        report(f"trial of {variant.name}")
        if shared[0] != (variant.dtype, variant.layout):
            del shared
            shared = (variant.dtype, variant.layout), as_variant(model, variant)
        try:
            measured = _trial(shared[1], work, questions, variant)
        except Exception as error:
            trials[variant.name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        best = kept.setdefault(variant.family, {})
        for stage, result in measured.items():
            if stage not in best or result[0] < best[stage][0]:
                best[stage] = result
        trials[variant.name] = {f"{stage}_ms": 1e3 * seconds for stage, (seconds, _) in measured.items()}
    contenders = [
        Contender(
            name=name,
            tokens=best["rep_step"][1],
            pixels=best["denoise_step"][1],
            readers={stage: best[stage][1] for stage in READING_STAGES},
        )
        for name, best in kept.items()
    ]
    return contenders, trials


def plain_baseline(model: RFModel, work: Workload, questions: QuestionWorkload) -> Contender:
    """Eager PyTorch in fp32 without a trial: one and the same in every process."""
    variant = Variant()
    drawer, reader = Baseline(model, work, variant), BaselineReader(model, questions, variant)
    return Contender(name=variant.family, tokens=drawer, pixels=drawer, readers=dict.fromkeys(READING_STAGES, reader))


def drawing_runs(contender: Contender, work: Workload) -> dict[Stage, Callable[[], int]]:
    """What is timed of the two kinds of step of a drawing."""

    def tokens() -> int:
        contender.tokens.draw_tokens()
        return work.num_decoder_runs

    def pixels() -> int:
        contender.pixels.denoise(TRIAL_STEPS)
        return TRIAL_STEPS

    return {"rep_step": tokens, "denoise_step": pixels}


def _trial(
    model: RFModel, work: Workload, questions: QuestionWorkload, variant: Variant
) -> dict[str, tuple[float, Baseline | BaselineReader]]:
    """Seconds per step of every stage, and who runs it."""
    drawer, reader = Baseline(model, work, variant), BaselineReader(model, questions, variant)
    drawer.prefill()  # the cache need not be full: what is hidden is read as well
    reader.prepare()
    first = max(0, (work.num_decoder_runs - TRIAL_RUNS) // 2)
    runs = range(first, min(first + TRIAL_RUNS, work.num_decoder_runs))

    def tokens() -> int:
        drawer.draw_tokens(runs=runs)
        return len(runs)

    pixels = drawing_runs(Contender(name="", tokens=drawer, pixels=drawer), work)["denoise_step"]
    drawn = interleave({"rep_step": tokens, "denoise_step": pixels}, num_rounds=2)
    read = interleave(reading_runs(dict.fromkeys(READING_STAGES, reader)), num_rounds=2)
    return {
        **{stage: (timing.median, drawer) for stage, timing in drawn.items()},
        **{stage: (timing.median, reader) for stage, timing in read.items()},
    }
