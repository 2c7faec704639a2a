"""What each target takes: versions, opsets and operators, as data. Knows nothing of graphs.

A version that is not listed behaves as the nearest older one. Sources, read in November 2026:
[8.6] onnx/onnx-tensorrt docs/operators.md of the 8.5 and 8.6 releases ("up to Opset 17"; K of TopK and the axes of
      Slice, Squeeze and Unsqueeze "must be an initializer"), NVIDIA/TensorRT 4681 and 3657.
[10]  the same file of 10.15 ("opset 9 to opset 24"), and the 10.14.1 and 10.15.1 release notes for what is new in them.
[11]  docs.nvidia.com, "ONNX Opset Guide", and the release notes of 11.5 ("added support for ONNX opset 25").
[rtx] tensorrt_rtx 1.7.1.116 from PyPI, run: small graphs through its parser and its compiler for sm_89.
[ort] onnxruntime 1.32 on the CPU, run.
Where a source is silent on a version, the table is on the strict side.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast, get_args

from runtime.errors import RFError
from runtime.signature import Dialect

Library: TypeAlias = Literal["tensorrt", "tensorrt-rtx", "onnxruntime"]
Version: TypeAlias = tuple[int, int]

_OLDEST: Final[dict[Library, Version]] = {"tensorrt": (8, 6), "tensorrt-rtx": (1, 7), "onnxruntime": (1, 24)}
_NEWEST_MAJOR: Final[dict[Library, int]] = {"tensorrt": 11, "tensorrt-rtx": 1, "onnxruntime": 1}
MIN_OPSET: Final = 9
_MAX_OPSETS: Final[dict[Library, dict[Version, int]]] = {
    "tensorrt": {(8, 6): 17, (10, 0): 20, (10, 14): 24, (11, 5): 25},
    "tensorrt-rtx": {(1, 7): 24},
    "onnxruntime": {(1, 24): 24},
}


@dataclass(frozen=True, order=True)
class LintTarget:
    """A library that compiles or runs graphs, and its version."""

    library: Library
    version: Version

    @classmethod
    def parse(cls, text: str) -> "LintTarget":
        """Read a name such as `tensorrt-10.3`, `tensorrt-rtx` or `onnxruntime`; raises RFError."""
        match = re.fullmatch(r"(tensorrt-rtx|tensorrt|onnxruntime)(?:-(\d+)(?:\.(\d+)(?:\.\d+)*)?)?", text)
        library = cast(Library, match[1]) if match else None
        if match is None or library is None or (library == "tensorrt" and match[2] is None):
            raise RFError(f"{text!r} is no target; choose one such as {', '.join(map(str, KNOWN_TARGETS))}")
        oldest = _OLDEST[library]
        if match[2] is None:
            return cls(library, oldest)
        major = int(match[2])
        version = (major, int(match[3]) if match[3] else oldest[1] if major == oldest[0] else 0)
        if not oldest <= version or not major <= _NEWEST_MAJOR[library] or (library == "tensorrt" and major == 9):
            raise RFError(
                f"{text!r} is no target that rf-export knows; it knows {library} from {oldest[0]}.{oldest[1]} on, "
                f"up to {_NEWEST_MAJOR[library]}.x. Choose one such as {', '.join(map(str, KNOWN_TARGETS))}"
            )
        return cls(library, version)

    def __str__(self) -> str:
        return f"{self.library}-{self.version[0]}.{self.version[1]}"

    @property
    def is_tensorrt(self) -> bool:
        """Whether NVIDIA's parser reads the graphs."""
        return self.library != "onnxruntime"

    @property
    def max_opset(self) -> int:
        """The newest opset that the target reads."""
        table = _MAX_OPSETS[self.library]
        return table[max(version for version in table if version <= self.version)]

    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """What an export for this target writes: classic always, modern where everything in it is known."""
        modern_needs = {"tensorrt": _MODERN_SINCE, "tensorrt-rtx": (1, 7)}
        since = modern_needs.get(self.library)
        return ("classic", "modern") if since is not None and self.version >= since else ("classic",)

    def since(self, operator: str) -> Version | None:
        """The version of the library from which on it has an operator; None for never."""
        if self.library == "tensorrt-rtx":
            return self.version if operator in _TENSORRT_86 or operator in _TENSORRT_SINCE else None
        if operator in _TENSORRT_86:
            return (8, 6)
        return _TENSORRT_SINCE.get(operator)


_MODERN_SINCE: Final[Version] = (10, 15)

# Operators of TensorRT newer than 8.6. Those of 10.0 are in the list of 10.15 and not in that of 8.5: some may be a
# little younger, and none of them is in our graphs.
_TENSORRT_SINCE: Final[dict[str, Version]] = {
    **dict.fromkeys(
        (
            "BlackmanWindow",
            "CastLike",
            "DeformConv",
            "Gelu",
            "GroupNormalization",
            "HammingWindow",
            "HannWindow",
            "Hardmax",
            "IsInf",
            "LayerNormalization",
            "Mish",
            "STFT",
        ),
        (10, 0),
    ),
    "Attention": (10, 14),
    "RMSNormalization": _MODERN_SINCE,
    "RotaryEmbedding": _MODERN_SINCE,
    "TensorScatter": _MODERN_SINCE,
}

_TENSORRT_86: Final = frozenset(
    """Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip
    Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum
    Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool
    GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish Identity If InstanceNormalization
    IsNaN LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression Not OneHot Or PRelu Pad Pow QuantizeLinear RNN
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RoiAlign Round Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice
    Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu
    Unsqueeze Upsample Where Xor""".split()  # noqa: SIM905
)

# Why an operator is missing, where there is more to say than its name: what to write instead.
INSTEAD: Final[dict[str, str]] = {
    "DynamicQuantizeLinear": "quantise with ranges that were calibrated",
    "MatMulInteger": "use DequantizeLinear and MatMul, which TensorRT fuses",
    "MatMulNBits": "use DequantizeLinear and MatMul, which TensorRT fuses",
    "Multinomial": "draw with Gumbel noise as an input and ArgMax",
    "NonZero": "keep shapes fixed with Where and a mask",
    "QLinearMatMul": "use QuantizeLinear, DequantizeLinear and MatMul, which TensorRT fuses",
}

KNOWN_TARGETS: Final[tuple[LintTarget, ...]] = (
    LintTarget("onnxruntime", (1, 24)),
    *(
        LintTarget("tensorrt", version)
        for version in ((8, 6), (10, 3), (10, 13), (10, 14), (10, 15), (10, 16), (11, 4))
    ),
    LintTarget("tensorrt-rtx", (1, 7)),
)

assert set(_OLDEST) == set(get_args(Library))
