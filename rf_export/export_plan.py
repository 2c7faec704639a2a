"""What an export was asked for, and what it writes: dialects, opset and cache by target. Knows nothing of files."""

from dataclasses import dataclass

from rf_export.config import ModelConfig
from rf_export.lint.targets import LintTarget
from rf_export.trace import OPSETS
from runtime.errors import RFError
from runtime.signature import DIALECTS, Dialect, Precision

CLASSIC_OPSETS = (17, 18)
PROMPT_SLOTS = 127  # of a cache whose length nobody chose: more than most prompts have tokens
_SLOTS_STEP = 64  # TensorRT's attention works on tiles of so many keys


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export. Without `verify` the manifest says so: for huge models on small hosts, and for tests.

    Attributes:
        precisions: dtypes of weights and cache.
        targets: names of the libraries that have to take the graphs, such as `tensorrt-10.3`.
        dialects: how the graphs are spelt; None takes what the targets ask for, `classic` without any.
        opset: of `classic` graphs, 17 or 18; None takes the newest that all targets read.
        cache_slots: fixed length of the cache of `modern` graphs. None leaves it free, or takes a length for the
            default picture where a target wants one.
        force: replace an existing bundle.
        verify: hold the graphs against eager PyTorch.
    """

    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    targets: tuple[str, ...] = ()
    dialects: tuple[Dialect, ...] | None = None
    opset: int | None = None
    cache_slots: int | None = None
    force: bool = False
    verify: bool = True

    def __post_init__(self) -> None:
        if self.opset is not None and self.opset not in CLASSIC_OPSETS:
            raise ValueError(f"opset must be 17 or 18, got {self.opset}")
        if self.cache_slots is not None and self.cache_slots < 2:
            raise ValueError(f"cache_slots must be >= 2, got {self.cache_slots}")


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """The forms in which every graph is written, and who has to take which."""

    precisions: tuple[Precision, ...]
    dialects: tuple[Dialect, ...]
    opsets: dict[Dialect, int]
    cache_slots: int | None  # of modern graphs
    demands: dict[LintTarget, tuple[Dialect, ...]]

    @classmethod
    def of(cls, options: ExportOptions, config: ModelConfig) -> "ExportPlan":
        """Decide what the options leave open.

        Raises:
            RFError: a target that is not known, a cache too short for the default picture, or an option of a dialect
                that is not written.
        """
        targets = [LintTarget.parse(name) for name in dict.fromkeys(options.targets)]
        demands = {target: options.dialects or target.dialects for target in targets}
        wanted = options.dialects or {dialect for some in demands.values() for dialect in some} or {"classic"}
        if options.cache_slots is not None and "modern" not in wanted:
            raise RFError("--cache-slots is of modern graphs, and none are wanted: add --dialect modern, or leave it")
        if options.opset is not None and "classic" not in wanted:
            raise RFError("--opset is of classic graphs, and none are wanted: add --dialect classic, or leave it")
        readable = min((target.max_opset for target in targets), default=OPSETS["classic"])
        opset = options.opset or min(max(readable, CLASSIC_OPSETS[0]), OPSETS["classic"])
        rows, columns = config.rep_grid(config.default_height, config.default_width)
        needed = rows * columns + 1
        if options.cache_slots is not None and options.cache_slots < needed:
            raise RFError(
                f"a cache of {options.cache_slots} slots is too short: the default picture of this model takes "
                f"{needed} and its prompt some more; export with more --cache-slots"
            )
        fixed = any(target.is_tensorrt and "modern" in demands[target] for target in targets)
        slots = min(-(-(needed + PROMPT_SLOTS) // _SLOTS_STEP) * _SLOTS_STEP, config.max_positions)
        return cls(
            precisions=options.precisions,
            dialects=tuple(dialect for dialect in DIALECTS if dialect in wanted),
            opsets={**OPSETS, "classic": opset},
            cache_slots=options.cache_slots or (slots if fixed else None),
            demands=demands,
        )
