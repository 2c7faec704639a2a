"""Lint: would a target's parser and compiler take a graph? Every finding names a node, a rule and a remedy.

Reads a graph as ONNX IR with the types that the exporter or shape inference gave it; what a target has is data, in
`lint_targets.py`, with the sources. Marked [rtx]: seen with the compiler of tensorrt_rtx 1.7.1. Not linted, since the
parser takes it: TensorRT has no fused kernel for Attention in fp32 or with a head size that is no multiple of 16, so
that a builder has to mark the layer decomposable. Knows nothing of RF models, and nothing of files but where they lie.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, TypeAlias

import ml_dtypes
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from rf_export.lint.attention import attention, rotary, tensor_scatter
from rf_export.lint.targets import INSTEAD, KNOWN_TARGETS, MIN_OPSET, LintTarget

Complaints: TypeAlias = Iterator[tuple[str, str]]  # what is wrong, what to do
NodeRule: TypeAlias = Callable[[ir.Node, LintTarget], Complaints]

MAX_TOP_K: Final = 3840  # [rtx] "K exceeds the maximum value allowed (3840)"; documented as "less than 3840"


@dataclass(frozen=True)
class Finding:
    """Something that a target does not take."""

    rule: str
    node: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.node}: {self.problem} (rule {self.rule}); {self.remedy}"


def lint(model: ir.Model, target: LintTarget) -> list[Finding]:
    """Check a graph for a target.

    Args:
        model: the graph; types that are missing are inferred, in place.
        target: who has to take it.

    Returns:
        Everything that is wrong, in the order of the nodes; nothing where the graph passes.
    """
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        ShapeInferencePass(strict_mode=False)(model)
    findings = [
        Finding(rule, "the graph", *complaint)
        for rule, check in _MODEL_RULES.items()
        for complaint in check(model, target)
    ]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for rule, (operators, check) in _NODE_RULES.items():
            applies = operators is None or node.op_type in operators
            if applies and (target.is_tensorrt or rule in _FOR_ONNXRUNTIME):
                findings += [Finding(rule, _label(node), *complaint) for complaint in check(node, target)]
    return findings


def takers(model: ir.Model) -> list[str]:
    """The targets that would take a graph, of those that are known."""
    return [str(target) for target in KNOWN_TARGETS if not lint(model, target)]


def _label(node: ir.Node) -> str:
    output = next((value.name for value in node.outputs if value.name), "nothing")
    return f"node {node.name or output!r} ({node.op_type})"


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else ir.convenience.get_const_tensor(value)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _dtypes(node: ir.Node) -> list[ir.DataType]:
    return [value.dtype for value in node.inputs if value is not None and value.dtype is not None]


def _opset(model: ir.Model, target: LintTarget) -> Complaints:
    found = model.opset_imports.get("", 0)
    if found > target.max_opset:
        remedy = "export with --dialect classic" + (" --opset 17" if target.max_opset < 18 else "")
        yield f"opset {found}, and {target} reads up to {target.max_opset}", remedy
    elif found < MIN_OPSET:
        yield f"opset {found}, and {target} reads from {MIN_OPSET} on", "export it again"


def _external_data(model: ir.Model, target: LintTarget) -> Complaints:
    """ONNX Runtime from 1.24 on reads nothing beside or above the graph's folder; TensorRT reads initialisers only."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = PurePosixPath(str(tensor.location).replace("\\", "/"))
        if location.is_absolute() or ".." in location.parts or ":" in location.parts[0]:
            yield f"initializer {name!r} lies in {tensor.location}, outside the graph's folder", "keep it below that"
            continue
        path = Path(tensor.base_dir) / location
        if not path.is_file() or path.stat().st_size < (tensor.offset or 0) + (tensor.length or tensor.nbytes):
            yield f"initializer {name!r} is not in {path}: the file is missing or too short", "export it again"


def _operator(node: ir.Node, target: LintTarget) -> Complaints:
    instead = INSTEAD.get(node.op_type, "write it with other operators")
    if node.domain not in ("", "ai.onnx"):
        yield f"{target} has no operator {node.domain}.{node.op_type}", instead
        return
    since = target.since(node.op_type)
    if since is None:
        yield f"{target} has no operator {node.op_type}", instead
    elif since > target.version:
        newer = f"{target.library} {since[0]}.{since[1]}"
        yield f"{node.op_type} needs {newer}, and the target is {target}", "export with --dialect classic"


def _float64(node: ir.Node, target: LintTarget) -> Complaints:
    """The parser takes doubles and computes in fp32 without saying so (onnx-tensorrt operators.md; [rtx])."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    names = [value.name for value in values if value.dtype == ir.DataType.DOUBLE]
    if names:
        yield f"{names[0]!r} is float64, which TensorRT silently rounds to float32", "use float32"


def _int64_range(node: ir.Node, target: LintTarget) -> Complaints:
    """8.6 clamps int64 to int32."""
    if target.version >= (10, 0) or target.library != "tensorrt":
        return
    for value in node.inputs:
        constant = _constant(value)
        if value is not None and constant is not None and constant.dtype == ir.DataType.INT64 and constant.size:
            numbers = constant.numpy()
            # Slices that go to the end say so with the largest int64, which may be clamped.
            if node.op_type != "Slice" and max(abs(int(numbers.min())), abs(int(numbers.max()))) >= 2**31:
                yield f"{value.name!r} does not fit into int32, to which {target} clamps it", "use smaller numbers"


def _mixed_floats(node: ir.Node, target: LintTarget) -> Complaints:
    """In a strongly typed network the parser adds no casts: [rtx] "must have same input types"."""
    floats = sorted({str(dtype) for dtype in _dtypes(node) if dtype.is_floating_point()})
    if len(floats) > 1:
        yield f"its inputs are {' and '.join(floats)}", "put a Cast in front of one of them"


def _quantised(node: ir.Node, target: LintTarget) -> Complaints:
    zero_point = _input(node, 2)
    dtype = zero_point.dtype if zero_point is not None else None
    source = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
    if ir.DataType.UINT8 in (dtype, source) or (
        zero_point is None and node.op_type == "QuantizeLinear" and node.attributes.get_int("output_dtype", 0) in (0, 2)
    ):
        yield "it quantises to uint8, which TensorRT has for inputs and outputs of the network only", "use int8"
    constant = _constant(zero_point)
    if zero_point is not None and constant is None:
        yield "its zero point is no constant", "quantise symmetrically: zero point 0"
    elif constant is not None and constant.numpy().astype("float32").any():
        yield "its zero point is not 0", "quantise symmetrically: zero point 0"


def _scales(node: ir.Node, target: LintTarget) -> Complaints:
    """[rtx] refuses scales that are not positive; ONNX Runtime computes with them; subnormal ones have lost bits."""
    value = _input(node, 1)
    cast = None if value is None else value.producer()
    is_stored_smaller = cast is not None and cast.op_type == "Cast"
    constant = _constant(cast.inputs[0] if cast is not None and is_stored_smaller else value)
    if constant is None:
        return
    dtype = (is_stored_smaller and value is not None and value.dtype) or constant.dtype
    scales, info = constant.numpy().astype("float64"), ml_dtypes.finfo(dtype.numpy())
    wrong = int((~((scales >= float(info.smallest_normal)) & (scales <= float(info.max)))).sum())
    if wrong:
        problem = f"{wrong} of its {scales.size} scales are not normal numbers of {dtype} above 0"
        yield problem, "calibrate the bundle again, which writes no such scales"


def _top_k(node: ir.Node, target: LintTarget) -> Complaints:
    k = _constant(_input(node, 1))
    if k is None:
        if target.library == "tensorrt" and target.version < (10, 0):
            yield f"its K is no constant, and {target} takes constants only", "store K as an initializer"
    elif int(k.numpy().reshape(-1)[0]) > MAX_TOP_K:
        yield f"K is {int(k.numpy().reshape(-1)[0])}, and TensorRT sorts at most {MAX_TOP_K}", "use a smaller K"
    if not node.attributes.get_int("sorted", 1):
        yield "its result is unsorted, which TensorRT does not document", "set sorted to 1"


def _constant_axes(node: ir.Node, target: LintTarget) -> Complaints:
    """[rtx] "Axis input must resolve to a build-time constant"; of Slice only 8.6 says so."""
    index = 3 if node.op_type == "Slice" else 1
    if node.op_type == "Slice" and (target.library != "tensorrt" or target.version >= (10, 0)):
        return
    axes = _input(node, index)
    if axes is not None and _constant(axes) is None:
        yield "its axes are computed while the graph runs", "store the axes as an initializer"


def _loop(node: ir.Node, target: LintTarget) -> Complaints:
    """[rtx] "IRecurrenceLayer must have inputs with same shape"; scan outputs may not have a dynamic length."""
    body = node.attributes["body"].as_graph()
    num_states = len(node.inputs) - 2
    for before, after in zip(body.inputs[2 : 2 + num_states], body.outputs[1 : 1 + num_states], strict=True):
        if before.shape is None or after.shape is None or before.shape != after.shape:
            yield f"its state {before.name!r} may change its shape from step to step", "keep a buffer of fixed size"
    if len(body.outputs) > 1 + num_states and _constant(_input(node, 0)) is None:
        yield "it collects outputs over a number of steps that is no constant", "store the trip count as an initializer"


def _scatter_reduction(node: ir.Node, target: LintTarget) -> Complaints:
    if node.attributes.get_string("reduction", "none") != "none":
        yield "it reduces while it scatters", "add the values before"


_MODEL_RULES: Final[dict[str, Callable[[ir.Model, LintTarget], Complaints]]] = {
    "opset": _opset,
    "external-data": _external_data,
}
_NODE_RULES: Final[dict[str, tuple[frozenset[str] | None, NodeRule]]] = {
    "operator": (None, _operator),
    "float64": (None, _float64),
    "int64-range": (None, _int64_range),
    "mixed-floats": (
        frozenset({"MatMul", "Gemm", "Add", "Sub", "Mul", "Div", "Concat", "Where", "Attention", "Max", "Min", "Pow"}),
        _mixed_floats,
    ),
    "quantised": (frozenset({"QuantizeLinear", "DequantizeLinear"}), _quantised),
    "scales": (frozenset({"QuantizeLinear", "DequantizeLinear"}), _scales),
    "top-k": (frozenset({"TopK"}), _top_k),
    "constant-axes": (
        frozenset(
            {
                "Slice",
                "Squeeze",
                "Unsqueeze",
                *(
                    f"Reduce{kind}"
                    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
                ),
            }
        ),
        _constant_axes,
    ),
    "loop": (frozenset({"Loop"}), _loop),
    "scatter": (frozenset({"ScatterND"}), _scatter_reduction),
    "attention": (frozenset({"Attention"}), attention),
    "rotary": (frozenset({"RotaryEmbedding"}), rotary),
    "tensor-scatter": (frozenset({"TensorScatter"}), tensor_scatter),
}
_FOR_ONNXRUNTIME: Final = frozenset({"attention", "scales"})
RULES: Final = (*_MODEL_RULES, *_NODE_RULES)
