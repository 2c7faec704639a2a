"""What may be chosen for an engine of TensorRT or TensorRT-RTX. Knows nothing of the libraries."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from runtime.errors import RFError

DIMS: Final = ("batch", "prompt", "images", "window", "height", "width")
MAX_OPTIMIZATION_LEVEL: Final = 5

Verbosity: TypeAlias = Literal["layer_names_only", "detailed", "none"]
HardwareCompatibility: TypeAlias = Literal["none", "ampere_plus", "same_compute_capability"]
Weights: TypeAlias = Literal["fixed", "refittable", "stripped"]


@dataclass(frozen=True)
class DimRange:
    """The sizes that a dimension may have; kernels are chosen for `opt`."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ValueError(f"a range must be 1 <= min <= opt <= max, got {self}")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, text: str) -> "DimRange":
        """Read "min:opt:max", or one number for a fixed size; raises ValueError."""
        if not re.fullmatch(r"\d+(:\d+:\d+)?", text):
            raise ValueError(f"expected MIN:OPT:MAX or one number, got {text!r}")
        numbers = [int(part) for part in text.split(":")]
        return cls(*(numbers if len(numbers) == 3 else numbers * 3))

    def clamp(self, size: int) -> int:
        """The size in the range that is nearest to `size`."""
        return min(max(size, self.min), self.max)


def parse_dims(texts: tuple[str, ...]) -> dict[str, DimRange]:
    """Read what `--dim NAME=MIN:OPT:MAX` gave; raises ValueError."""
    dims = {}
    for text in texts:
        name, _, sizes = text.partition("=")
        if name in dims:
            raise ValueError(f"dimension {name} is there twice")
        dims[name] = DimRange.parse(sizes)
    return dims


@dataclass(frozen=True, kw_only=True)
class TensorRTConfig:
    """Options of the builder; None leaves it to the library.

    Attributes:
        dims: Ranges of `batch` (pictures drawn at once), `prompt` (tokens, those of images too), `images` (read at
            once), `window` (representation tokens of a pass), `height` and `width` (pixels).
        workspace_mib: Most device memory that a layer may take for itself.
        builder_optimization_level: 0 builds at once, 5 searches longest.
        timing_cache: A file; None keeps one per library version and GPU among the bundle's engines.
        profiling_verbosity: What the engine tells of its layers.
        version_compatible: Runs on later versions of the same major version too; larger and a little slower.
        hardware_compatibility: Runs on more GPUs than the one that it was built on; slower.
        weight_streaming: Weights may stay in the host's memory, for models that are larger than the GPU's.
        weights: "refittable" ones can be exchanged without building again, "stripped" ones are left out of the file
            until then.
        compute_capabilities: Build for these GPUs, such as "8.6", on any machine (TensorRT-RTX only); empty builds for
            the GPU that is here.
    """

    dims: Mapping[str, DimRange] = field(default_factory=dict)
    workspace_mib: int | None = None
    builder_optimization_level: int | None = None
    timing_cache: str | None = None
    profiling_verbosity: Verbosity = "layer_names_only"
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    weight_streaming: bool = False
    weights: Weights = "fixed"
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.dims:
            if name not in DIMS:
                raise ValueError(f"there is no dimension {name!r}; choose from {', '.join(DIMS)}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ValueError(f"workspace_mib must be >= 1, got {self.workspace_mib}")
        level = self.builder_optimization_level
        if level is not None and not 0 <= level <= MAX_OPTIMIZATION_LEVEL:
            raise ValueError(f"builder_optimization_level must be 0 to {MAX_OPTIMIZATION_LEVEL}, got {level}")
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise ValueError(f"a compute capability is written like 8.6, got {capability!r}")
        if len(set(self.compute_capabilities)) < len(self.compute_capabilities):
            raise ValueError("a compute capability is there twice")
        if self.weights == "stripped" and self.weight_streaming:
            raise ValueError("weights that are stripped cannot be streamed: choose one of the two")


def require_defaults(config: TensorRTConfig, backend: str) -> None:
    """Refuse options of TensorRT for another backend; raises RFError."""
    changed = [name for name, value in vars(TensorRTConfig()).items() if getattr(config, name) != value]
    if changed:
        raise RFError(
            f"{', '.join(changed)}: options of the backends tensorrt and tensorrt-rtx, and {backend} was asked for. "
            "Leave them out, or choose one of these backends."
        )
