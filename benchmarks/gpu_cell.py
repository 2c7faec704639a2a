"""One cell of the comparison on a device: one model and picture size, all contenders.

    reference (eager fp32) -> admit every contender: it has to agree -> time in turns, by stage -> kernel time, floor

A contender that fails or disagrees is written down with the reason and takes no further part. What is known is handed
out after every step, so that nothing is lost where a process is ended, and a contender that ends it is known by name.
Knows nothing of engines: our contenders are functions that it calls.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerator import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from rf_export.benchmark.baseline import PRECISIONS, Attention, Baseline, Spelling
from rf_export.benchmark.contenders import STAGES, Contender, Drawer, Stage, draw_reference
from rf_export.benchmark.floor import drawing_costs, measure_floors
from rf_export.benchmark.selection import drawing_runs, reason
from rf_export.benchmark.workload import DrawingWork
from rf_export.eager import EagerResult
from rf_export.layers import RMSNorm
from rf_export.model import RFModel
from verification.limits import LIMITS
from verification.measures.metrics import psnr_db
from verification.measures.timing import Timing, interleave, ratio

CHECK_STEPS = 3  # Euler steps whose result is compared
TURN_STEPS = 10  # Euler steps of a timed turn
# A token that differs from eager's, after the same history, has to have been close: rounding moves logits by less.
MAX_LEAD = {"fp32": 1e-3, "fp16": 0.2}
Save = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class CellOptions:
    """How to measure.

    Attributes:
        dtype: Of eager PyTorch, and of the graphs.
        attentions: Spellings of attention that compete for the best eager PyTorch.
        compile: Measure torch.compile too, which takes minutes.
        num_rounds: At most so many turns of every contender, fewer where they would take longer than `stage_seconds`.
        num_picture_rounds: The same for whole pictures.
        stage_seconds: See `num_rounds`.
        floor_repeats: Of how many runs the best one counts as the rate of the device.
    """

    dtype: torch.dtype = torch.float16
    attentions: tuple[Attention, ...] = ("sdpa", "repeat", "split", "matmul")
    compile: bool = True
    num_rounds: int = 12
    num_picture_rounds: int = 5
    stage_seconds: float = 45.0
    floor_repeats: int = 12


class Cell:
    """Measures; `result` is JSON-ready at any time."""

    def __init__(
        self, model: RFModel, work: DrawingWork, options: CellOptions, accelerator: Accelerator, save: Save
    ) -> None:
        """Takes the model over: its weights are moved and rounded."""
        self._model, self._work, self._options, self._accelerator = model, work, options, accelerator
        self._save_result = save
        self._precision = PRECISIONS[options.dtype]
        self._admitted: dict[str, Contender] = {}
        self._turns: dict[Stage, dict[str, Timing]] = {}
        self.result: dict[str, Any] = {
            "precision": self._precision,
            "finished": False,
            **work.describe(),
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "contenders": {},
            "trials": {},
            "floor": {},
        }

    def run(self, ours: Mapping[str, Callable[[], Drawer]]) -> None:
        """Everything.

        Args:
            ours: Names, and functions that make what draws; they may raise.
        """
        self._reference = self._draw_reference()
        for spelling in self._torch_spellings():
            self._admit(spelling.family, lambda spelling=spelling: self._best_of(spelling))  # type: ignore[misc]
        for name, make in ours.items():
            self._admit(name, lambda make=make: _single(make()))  # type: ignore[misc]
        for stage in STAGES:
            try:
                self._time(stage)
            except Exception as error:  # of one that ran alone and does not run among the others
                self.result.setdefault("errors", {})[stage] = reason(error)
            self._save()
        self._measure_kernels()
        self._measure_floor()
        self.result["finished"] = True
        self._save()

    def _save(self) -> None:
        self._save_result(self.result)

    def _draw_reference(self) -> EagerResult:
        model = self._model.to(self._accelerator.device).requires_grad_(False)
        result = draw_reference(model, self._work, CHECK_STEPS)
        self._model = use_fused_norms(model.to(self._options.dtype))
        self._accelerator.release()
        return result

    def _torch_spellings(self) -> list[Spelling]:
        dtype = self._options.dtype
        spellings = [Spelling(dtype=dtype), Spelling(dtype=dtype, graphs=True)]
        if self._options.compile:
            spellings += [Spelling(dtype=dtype, compile="default"), Spelling(dtype=dtype, compile="reduce-overhead")]
        return spellings

    def _best_of(self, kind: Spelling) -> Contender:
        """The spelling of a family whose attention is fastest, per stage.

        torch.compile takes the attention that was best in the captured graphs: a trial of it takes minutes.
        """
        attentions: dict[str, list[Attention]] = {stage: list(self._options.attentions) for stage in STAGES[:2]}
        graphed = self.result["trials"].get(Spelling(dtype=kind.dtype, graphs=True).family)
        if kind.compile is not None and graphed:
            attentions = {stage: [graphed[stage]["best"]] for stage in STAGES[:2]}
        trials: dict[str, Any] = {stage: {"ms": {}, "best": None} for stage in STAGES[:2]}
        self.result["trials"][kind.family] = trials
        best: dict[str, tuple[float, Baseline]] = {}
        made: dict[Attention, Baseline] = {}
        errors: list[str] = []
        for stage, names in attentions.items():
            for name in names:
                try:
                    drawer = made.get(name) or self._baseline(kind, name)
                    made[name] = drawer
                    seconds = _trial_seconds(stage, drawer)
                except Exception as error:
                    errors.append(trials[stage]["ms"].setdefault(name, reason(error)))
                    continue
                trials[stage]["ms"][name] = 1e3 * seconds
                if stage not in best or seconds < best[stage][0]:
                    best[stage] = seconds, drawer
                    trials[stage]["best"] = name
        if len(best) < len(attentions):
            raise RuntimeError("; ".join(dict.fromkeys(errors)))
        return Contender(name=kind.family, tokens=best["rep_step"][1], pixels=best["denoise_step"][1])

    def _baseline(self, kind: Spelling, attention: Attention) -> Baseline:
        spelling = Spelling(dtype=kind.dtype, attention=attention, compile=kind.compile, graphs=kind.graphs)
        drawer = Baseline(self._model, self._work, spelling, self._accelerator.capture)
        drawer.prefill()
        return drawer

    def _admit(self, name: str, make: Callable[[], Contender]) -> None:
        entry: dict[str, Any] = {"status": "running"}
        self.result["contenders"][name] = entry
        self._save()
        self._accelerator.release()
        before, started = self._accelerator.used_bytes(), time.perf_counter()
        try:
            contender = make()
            entry["agreement"] = agreement = self._agreement(contender)
        except Exception as error:
            entry |= {"status": "failed", "reason": reason(error)}
        else:
            entry["status"] = "agrees" if agreement["passed"] else "disagrees"
            entry["prepared_in_s"] = round(time.perf_counter() - started, 1)
            if agreement["passed"]:
                self._admitted[name] = contender
            del contender
        peak = self._accelerator.used_bytes()  # also what libraries keep in stock
        self._accelerator.release()
        kept = self._accelerator.used_bytes()
        if before is not None and peak is not None and kept is not None:
            entry |= {"peak_mib": (peak - before) >> 20, "memory_mib": (kept - before) >> 20}
        self._save()

    def _agreement(self, contender: Contender) -> dict[str, Any]:
        """Against eager fp32: what is drawn after the same tokens, and the picture after a few steps."""
        reference = self._reference
        expected = reference.rep_ids.cpu().numpy()
        for drawer in dict.fromkeys((contender.tokens, contender.pixels)):
            drawer.prefill()
            drawn = drawer.draw_tokens(forced=expected)
            if drawer is contender.tokens:
                ids = drawn
        different = np.flatnonzero(ids != expected)
        leads = _leads(reference, self._work)[different]
        psnr = psnr_db(contender.pixels.denoise(CHECK_STEPS), reference.pixels.cpu().numpy())
        unexplained = int((leads > MAX_LEAD[self._precision]).sum())
        passed = unexplained == 0 and psnr >= LIMITS[self._precision].psnr_db  # type: ignore[index]
        return {
            "tokens": len(expected),
            "tokens_equal": len(expected) - len(different),
            "unexplained": unexplained,
            "psnr_db": psnr,
            "passed": passed,
        }

    def _time(self, stage: Stage) -> None:
        """In turns; a contender that fails alone is left out."""
        runs = {}
        seconds = 0.0
        for name, contender in self._admitted.items():
            run = _turn(stage, contender, self._work)
            try:
                started = time.perf_counter()
                run()
                seconds += time.perf_counter() - started
            except Exception as error:
                self.result["contenders"][name].setdefault("stages", {})[stage] = {"error": reason(error)}
                continue
            runs[name] = run
        if not runs:
            return
        most = self._options.num_picture_rounds if stage == "picture" else self._options.num_rounds
        num_rounds = max(1, min(most, int(self._options.stage_seconds / seconds) - 1))
        timings = self._turns[stage] = interleave(runs, num_rounds)
        eager = timings.get(Spelling(dtype=self._options.dtype).family)
        for name, timing in timings.items():
            row = self.result["contenders"][name].setdefault("stages", {})[stage] = timing.as_dict()
            if eager is not None:
                row["times_eager"] = ratio(eager, timing)

    def _measure_kernels(self) -> None:
        """How long the device is busy per step, and idle; a picture is its steps: the prompt is left out."""
        for name, contender in self._admitted.items():
            stages = self.result["contenders"][name].get("stages", {})
            busy: dict[str, float] = {}
            for stage in STAGES[:2]:
                num_steps = 0

                def run(stage: Stage = stage, contender: Contender = contender) -> None:
                    nonlocal num_steps
                    num_steps = _turn(stage, contender, self._work)()

                try:
                    seconds = self._accelerator.kernel_seconds(run)
                except Exception as error:
                    stages.setdefault(stage, {})["kernel_error"] = reason(error)
                    continue
                if seconds is not None:
                    busy[stage] = seconds / num_steps
            if len(busy) == 2:
                busy["picture"] = (
                    busy["rep_step"] * self._work.num_decoder_runs + busy["denoise_step"] * self._work.plan.num_steps
                )
            for stage, row in stages.items():
                seconds = busy.get(stage)
                row["kernel_ms"] = None if seconds is None else 1e3 * seconds
                if seconds is not None and "median_ms" in row:
                    row["idle_share"] = max(0.0, 1 - 1e3 * seconds / row["median_ms"])
            self._save()

    def _measure_floor(self) -> None:
        work, dtype = self._work, self._options.dtype
        costs = drawing_costs(self._model.config, work.num_slots, work.num_patches, dtype.itemsize)
        self.result["floor"] = measure_floors(
            costs, repeats=self._options.floor_repeats, device=self._accelerator.device, dtype=dtype
        )


class FusedNorm(RMSNorm):
    """The same in one kernel, as fast eager PyTorch has it; the spelling of `RMSNorm` is for the export."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def use_fused_norms(model: RFModel) -> RFModel:
    """Exchange the norms of a model."""
    for module in model.modules():
        if type(module) is RMSNorm:
            module.__class__ = FusedNorm
    return model


def _single(drawer: Drawer) -> Contender:
    return Contender(name="", tokens=drawer, pixels=drawer)


def _turn(stage: str, contender: Contender, work: DrawingWork) -> Callable[[], int]:
    """What is timed, as in `drawing_runs`; of the tokens as many as are worth it."""
    runs = drawing_runs(contender, work, min(TURN_STEPS, work.plan.num_steps))
    return {**runs, "rep_step": contender.tokens.turn_tokens}[stage]


def _trial_seconds(stage: str, drawer: Baseline) -> float:
    """Seconds per step, the better of two turns after a first one."""
    run = _turn(stage, _single(drawer), drawer.work)
    run()
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        num_steps = run()
        best = min(best, (time.perf_counter() - started) / num_steps)
    return best


def _leads(reference: EagerResult, work: DrawingWork) -> NDArray[np.float32]:
    """By how much each token won in eager, `[N]`: the winner's perturbed logit less that of the next one."""
    logits = torch.stack(reference.logits).cpu() / work.plan.temperature  # [N, K]
    threshold = logits.topk(work.plan.top_k, dim=1).values[:, -1:]
    perturbed = torch.where(logits >= threshold, logits + torch.from_numpy(work.gumbel), -torch.inf)
    first, second = perturbed.topk(2, dim=1).values.unbind(1)
    return (first - second).numpy()
