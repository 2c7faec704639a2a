"""What a calibration is asked for. Knows nothing of how it is done."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from runtime.backends.host.int8 import weight_only_problem
from runtime.options import Plan
from runtime.signature import GraphName, Precision

Method: TypeAlias = Literal["minmax", "percentile", "entropy", "mse"]
Format: TypeAlias = Literal["static", "weight-only", "weight-only-4"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
Int8Precision: TypeAlias = Literal["int8", "int8-fp16"]
_AR_FORMATS: Final[tuple[Format, ...]] = ("weight-only",)
PER_COLUMN: Final = 0  # as a block: one scale for a whole column


@dataclass(frozen=True)
class TargetForm:
    """What a target wants.

    Attributes:
        base: precision of everything that does not become INT8.
        precision: what the result is stored as.
        block: rows of a weight that share a scale in `weight-only`. Blocks need opset 21, which TensorRT reads from
            10.14 on: JetPack 6 and 7.0 have older ones.
    """

    base: Precision
    precision: Int8Precision
    block: int


TARGETS: Final[dict[str, TargetForm]] = {
    "ort": TargetForm("fp32", "int8", 128),
    "tensorrt": TargetForm("fp16", "int8-fp16", PER_COLUMN),
    "tensorrt-rtx": TargetForm("fp16", "int8-fp16", PER_COLUMN),
}


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """What INT8 graphs have to reach against the graphs that they come from, on prompts that nobody calibrated with.

    Attributes:
        cosine: of logits and of the estimate of the picture, mean over the prompts, worst step.
        psnr_db: of the pictures from the same tokens, mean over the prompts.
        max_score_loss: of the task score in points, where one is measured.
        answer_tokens: share of the tokens of captions that are alike for sure (see token_agreement.py),
            where the model answers at all: the lower end of the interval, so that it takes 73 tokens to pass 0.95.
    """

    cosine: float = 0.999
    psnr_db: float = 25.0
    max_score_loss: float = 1.0
    answer_tokens: float = 0.95

    def __post_init__(self) -> None:
        if not self.cosine < 1:
            raise ValueError(f"the least cosine must be below 1, got {self.cosine}")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How to calibrate.

    Attributes:
        target: `ort`, whose speed decides here; `tensorrt` or `tensorrt-rtx`, where nothing is timed without a GPU.
        method: range of activations.
        percentile: of `percentile`.
        smooth: let norms and up-projections take over outlying channels where that lowers the error.
        formats: ways to quantise layers of denoiser and vision_encoder that are tried; these are bound by arithmetic.
        ar_formats: the same for the decoders, which go token by token and are bound by memory; empty for weight-only,
            with static before it where the library would gain nothing by that (see `for_library`).
        block: rows of a weight that share a scale in `weight-only`, at most; 0 for all; None for the target's.
        min_prompts: fewer different prompts are refused.
        gate_fraction: of the prompts, kept for the gate.
        tolerance: part of a graph's time below which a difference counts as none.
        num_rounds: turns of every candidate.
        num_threads: threads of a run.
        seed: prompt i is drawn with seed + i.
        memory_mib: most memory of recorded activations; more passes over the prompts take less.
        force: write graphs also where they are not faster or fail the gate; the manifest tells.
        limits: of the gate.
        plan: By which the gate draws: what will be drawn by. What is recorded comes from the full plan, which has the
            most times.
        cache_path: Where recorded activations are kept; None is beside the bundle, where one of something else is
            replaced.
        report_path: Where the HTML report goes; None is beside the bundle.
    """

    target: str = "ort"
    method: Method = "mse"
    percentile: float = 99.99
    smooth: bool = True
    formats: tuple[Format, ...] = ("static", "weight-only")
    ar_formats: tuple[Format, ...] = ()
    block: int | None = None
    min_prompts: int = 16
    gate_fraction: float = 0.25
    tolerance: float = 0.03
    num_rounds: int = 9
    num_threads: int = 1
    seed: int = 0
    memory_mib: int = 1024
    force: bool = False
    limits: GateLimits = field(default_factory=GateLimits)
    plan: Plan | Literal["paper", "tuned"] = "paper"
    cache_path: Path | None = None
    report_path: Path | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for formats in (self.formats, self.ar_formats or _AR_FORMATS):
            if not formats or set(formats) - set(FORMATS):
                raise ValueError(f"formats must be among {', '.join(FORMATS)}, got {formats}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must be above 50 and at most 100, got {self.percentile}")
        if self.block and (self.block < 16 or self.block & (self.block - 1)):
            raise ValueError(f"block must be 0 or a power of two from 16 on, got {self.block}")
        if min(self.min_prompts, self.num_rounds, self.num_threads, self.memory_mib) < 1:
            raise ValueError("min_prompts, num_rounds, num_threads and memory_mib must be >= 1")
        if not 0 < self.gate_fraction < 1:
            raise ValueError(f"gate_fraction must be between 0 and 1, got {self.gate_fraction}")

    def formats_of(self, graph: GraphName) -> tuple[Format, ...]:
        """The formats that are tried for a graph."""
        return self.formats if graph in ("denoiser", "vision_encoder") else self.ar_formats or _AR_FORMATS

    def for_library(self, version: str) -> tuple["CalibrationConfig", str | None]:
        """What it comes to with a version of ONNX Runtime, and why static groups are preferred, where they are."""
        problem = weight_only_problem(version) if self.target == "ort" and not self.ar_formats else None
        return (replace(self, ar_formats=("static", *_AR_FORMATS)) if problem else self), problem

    @property
    def form(self) -> TargetForm:
        """What the target wants."""
        return TARGETS[self.target]

    @property
    def weight_block(self) -> int:
        """Rows of a weight that share a scale in `weight-only`, at most; 0 for all."""
        return self.form.block if self.block is None else self.block

    @property
    def base(self) -> Precision:
        """Precision of everything that does not become INT8."""
        return self.form.base

    @property
    def precision(self) -> Int8Precision:
        """What the result is stored as."""
        return self.form.precision
