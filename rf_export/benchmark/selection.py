"""The best that PyTorch can do here: every spelling has a short trial, and the fastest of a family competes.

Per stage, since the stages are bound by different things. What was tried is reported too.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from rf_export.benchmark.baseline import Attention, Baseline, Layout, Spelling, spelt
from rf_export.benchmark.baseline_reading import BaselineReader
from rf_export.benchmark.contenders import READING_STAGES, Contender, reading_runs
from rf_export.benchmark.workload import DrawingWork, ReadingWork
from rf_export.model import RFModel
from verification.measures.timing import interleave

LAYOUTS: tuple[Layout, ...] = ("in_out", "out_in")
ATTENTIONS: tuple[Attention, ...] = ("sdpa", "matmul")
TRIAL_RUNS = 16  # of the representation decoder in a trial, from the middle


def baseline_spellings(*, compiled: bool, layouts: tuple[Layout, ...] = LAYOUTS) -> Iterable[Spelling]:
    """Every way to run PyTorch that a careful user would try; those that share weights follow one another."""
    for dtype in (torch.float32, torch.bfloat16):
        for layout in layouts:
            for attention in ATTENTIONS:
                yield Spelling(dtype=dtype, layout=layout, attention=attention)
            if compiled and layout == "in_out":  # frozen weights are laid out by the compiler
                # Its SDPA measured no faster than plain products.
                yield Spelling(dtype=dtype, attention="matmul", compile="default")
                yield Spelling(dtype=dtype, attention="matmul", compile="max-autotune")


def choose_baselines(
    model: RFModel,
    work: DrawingWork,
    questions: ReadingWork,
    spellings: Iterable[Spelling],
    report: Callable[[str], None],
) -> tuple[list[Contender], dict[str, Any]]:
    """The fastest spelling of every family, per stage; and milliseconds of every trial, or why it failed."""
    kept: dict[str, dict[str, tuple[float, Any]]] = {}  # family -> stage -> seconds per step, who
    trials: dict[str, Any] = {}
    shared: tuple[Any, RFModel] = (None, model)  # of all copies of the weights one is kept, and those that win
    for spelling in spellings:
        report(f"trial of {spelling.name}")
        if shared[0] != (spelling.dtype, spelling.layout):
            del shared
            shared = (spelling.dtype, spelling.layout), spelt(model, spelling)
        try:
            measured = _trial(shared[1], work, questions, spelling)
        except Exception as error:
            trials[spelling.name] = {"error": reason(error)}
            continue
        best = kept.setdefault(spelling.family, {})
        for stage, result in measured.items():
            if stage not in best or result[0] < best[stage][0]:
                best[stage] = result
        trials[spelling.name] = {f"{stage}_ms": 1e3 * seconds for stage, (seconds, _) in measured.items()}
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


def plain_baseline(model: RFModel, work: DrawingWork, questions: ReadingWork) -> Contender:
    """Eager PyTorch in fp32 without a trial: one and the same in every process."""
    spelling = Spelling()
    drawer, reader = Baseline(model, work, spelling), BaselineReader(model, questions, spelling)
    return Contender(name=spelling.family, tokens=drawer, pixels=drawer, readers=dict.fromkeys(READING_STAGES, reader))


def drawing_runs(contender: Contender, work: DrawingWork, num_steps: int | None = None) -> dict[str, Callable[[], int]]:
    """What is timed of a drawing: functions that end when their results are in the host's memory, as `reading_runs`.

    Args:
        contender: Who draws.
        work: What.
        num_steps: Euler steps of a turn; None for those of a trial.
    """
    steps = num_steps or work.num_trial_steps

    def tokens() -> int:
        contender.tokens.draw_tokens()
        return work.num_decoder_runs

    def pixels() -> int:
        contender.pixels.denoise(steps)
        return steps

    return {"rep_step": tokens, "denoise_step": pixels, "picture": lambda: contender.picture(work.plan.num_steps)}


def reason(error: Exception) -> str:
    """Why a contender failed, for the tables."""
    return f"{type(error).__name__}: {str(error)[:500]}"


def _trial(
    model: RFModel, work: DrawingWork, questions: ReadingWork, spelling: Spelling
) -> dict[str, tuple[float, Baseline | BaselineReader]]:
    """Seconds per step of every stage, and who runs it."""
    drawer, reader = Baseline(model, work, spelling), BaselineReader(model, questions, spelling)
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
