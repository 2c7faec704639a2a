"""Small graphs that break one rule of the lint each, and their neighbours that break none."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F32, F16, F64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE
I64, I32, I8, BOOL = TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.BOOL

Spec = tuple[int, Sequence[Any] | None]  # element type and shape


def graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Spec],
    outputs: dict[str, Spec],
    constants: dict[str, Any] | None = None,
    opset: int = 24,
) -> onnx.ModelProto:
    """A model of one graph, with inferred types."""
    infos = [
        [helper.make_tensor_value_info(name, *spec) for name, spec in specs.items()] for specs in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", *infos, tensors), opset_imports=opsets, ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def one(
    op: str,
    inputs: dict[str, Spec],
    constants: dict[str, Any] | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    out: int = F32,
    opset: int = 24,
    **attributes: Any,
) -> onnx.ModelProto:
    """A graph of one node, called `the_node`, whose inputs are first the inputs and then the constants."""
    names = [*inputs, *(constants or {})]
    node = helper.make_node(op, names, list(outputs), name="the_node", **attributes)
    return graph([node], inputs, {name: (out, None) for name in outputs if name}, constants, opset)


X: dict[str, Spec] = {"x": (F32, [2, 8])}
LONG: dict[str, Spec] = {"x": (F32, [2, 9000])}


def loop(*, grows: bool) -> onnx.ModelProto:
    """A loop with one state."""
    shapes = (["n", 8], ["m", 8]) if grows else ([2, 8], [2, 8])
    grow, stay = helper.make_node("Concat", ["v", "v"], ["w"], axis=0), helper.make_node("Add", ["v", "v"], ["w"])
    body = helper.make_graph(
        [grow if grows else stay, helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [helper.make_tensor_value_info(*spec) for spec in (("i", I64, []), ("c", BOOL, []), ("v", F32, shapes[0]))],
        [helper.make_tensor_value_info(*spec) for spec in (("d", BOOL, []), ("w", F32, shapes[1]))],
    )
    node = helper.make_node("Loop", ["trips", "go", "x"], ["y"], name="the_node", body=body)
    return graph([node], X, {"y": (F32, None)}, {"trips": np.array(3), "go": np.array(True)})


def attention(
    names: Sequence[str] = ("q", "k", "v", "m"),
    outputs: Sequence[str] = ("y",),
    *,
    kind: int = F16,
    rank: int = 4,
    mask: Sequence[int] = (1, 1, 4, 6),
    mask_kind: int | None = None,
    opset: int = 24,
    **attributes: Any,
) -> onnx.ModelProto:
    """Four queries of four heads over six keys of two heads."""
    kv = (kind, [1, 2, 6, 16] if rank == 4 else [1, 6, 32])
    known = {
        "q": (kind, [1, 4, 4, 16] if rank == 4 else [1, 4, 64]),
        "k": kv,
        "v": kv,
        "m": (mask_kind or kind, list(mask)),
        "pk": (kind, [1, 2, 3, 16]),
        "pv": (kind, [1, 2, 3, 16]),
        "n": (I64, [1]),
    }
    node = helper.make_node("Attention", list(names), list(outputs), name="the_node", **attributes)
    inputs: dict[str, Spec] = {name: known[name] for name in names if name}
    return graph([node], inputs, {name: (kind, None) for name in outputs if name}, opset=opset)


def scatter(
    *,
    kind: int = F16,
    slots: Any = 16,
    axis: int = -2,
    mode: str = "linear",
    is_input: bool = True,
    is_output: bool = True,
    rank: int = 4,
) -> onnx.ModelProto:
    """Two new rows into a cache."""
    lead = [1, 2] if rank == 4 else [2]
    nodes = [] if is_input else [helper.make_node("Neg", ["past"], ["changed"])]
    source, target = ("past" if is_input else "changed"), ("y" if is_output else "inner")
    nodes.append(
        helper.make_node("TensorScatter", [source, "new", "at"], [target], name="the_node", axis=axis, mode=mode)
    )
    if not is_output:
        nodes.append(helper.make_node("Neg", ["inner"], ["y"]))
    inputs: dict[str, Spec] = {"past": (kind, [*lead, slots, 16]), "new": (kind, [*lead, 2, 16]), "at": (I64, lead[:1])}
    if axis == 1:
        inputs["new"] = (kind, [1, 1, 16, 16])
    return graph(nodes, inputs, {"y": (kind, None)})


def rotary(*, tokens: int = 4, positions: int | None = None) -> onnx.ModelProto:
    """Two heads, four tokens."""
    table = [1, tokens, 8] if positions is None else [32, 8]
    inputs: dict[str, Spec] = {"x": (F16, [1, 2, 4, 16]), "c": (F16, table), "s": (F16, table)}
    if positions is not None:
        inputs["p"] = (positions, [1, 4])
    return one("RotaryEmbedding", inputs, out=F16)


I8_ZERO, TENTH = np.int8(0), np.float32(0.1)


def qdq(zero_point: Any = None, scale: Any = TENTH) -> onnx.ModelProto:
    """Quantise and dequantise."""
    constants = {"s": scale} | ({} if zero_point is None else {"z": zero_point})
    extra = list(constants)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *extra], ["q"], name="the_node"),
        helper.make_node("DequantizeLinear", ["q", *extra], ["y"]),
    ]
    dtype = helper.np_dtype_to_tensor_dtype(np.asarray(scale).dtype)
    return graph(nodes, {"x": (dtype, [2, 8])}, {"y": (dtype, None)}, constants)


def nbits() -> onnx.ModelProto:
    """A contrib operator of ONNX Runtime."""
    constants = {"w": np.zeros((4, 1, 16), np.uint8), "s": np.ones(4, np.float32)}
    shape = {"K": 32, "N": 4, "bits": 4, "block_size": 32}
    return one("MatMulNBits", {"x": (F32, [2, 32])}, constants, domain="com.microsoft", **shape)


Build = Callable[[], onnx.ModelProto]

# rule, what the message says, targets, graph
BROKEN: list[tuple[str, str, str, Build]] = [
    ("opset", "opset 24, and tensorrt-10.3 reads up to 20", "tensorrt-10.3", lambda: one("Relu", X)),
    ("opset", "--dialect classic --opset 17", "tensorrt-8.6", lambda: one("Relu", X, opset=18)),
    ("opset", "reads from 9 on", "tensorrt-rtx", lambda: one("Relu", X, opset=8)),
    ("opset", "reads up to 24", "onnxruntime", lambda: one("Relu", X, opset=25)),
    ("operator", "has no operator NonZero", "tensorrt-rtx", lambda: one("NonZero", X, out=I64)),
    ("operator", "Gumbel noise", "tensorrt-rtx", lambda: one("Multinomial", X, out=I32, sample_size=1)),
    ("operator", "calibrated", "tensorrt-rtx", lambda: one("DynamicQuantizeLinear", X, outputs=("a", "b", "c"))),
    ("operator", "DequantizeLinear and MatMul", "tensorrt-11.4", nbits),
    ("operator", "Attention needs tensorrt 10.14", "tensorrt-10.13", attention),
    ("operator", "RotaryEmbedding needs tensorrt 10.15", "tensorrt-10.14", rotary),
    ("operator", "TensorScatter needs tensorrt 10.15", "tensorrt-10.14", scatter),
    (
        "operator",
        "RMSNormalization needs tensorrt 10.15",
        "tensorrt-10.14",
        lambda: one("RMSNormalization", X, {"w": np.ones(8, np.float32)}),
    ),
    ("float64", "'x' is float64", "tensorrt-10.16", lambda: one("Relu", {"x": (F64, [2, 8])}, out=F64)),
    ("float64", "use float32", "tensorrt-10.3", lambda: one("Cast", X, to=F64, out=F64, opset=20)),
    (
        "int64-range",
        "does not fit into int32",
        "tensorrt-8.6",
        lambda: one("Add", {"x": (I64, [2])}, {"b": np.array(2**40)}, out=I64, opset=17),
    ),
    ("mixed-floats", "FLOAT and FLOAT16", "tensorrt-rtx", lambda: one("MatMul", X, {"w": np.ones((8, 4), np.float16)})),
    ("mixed-floats", "Cast", "tensorrt-rtx", lambda: one("Add", X, {"w": np.ones(8, np.float16)})),
    ("quantised", "zero point is not 0", "tensorrt-rtx", lambda: qdq(np.int8(3))),
    ("quantised", "uint8", "tensorrt-10.16", lambda: qdq(np.uint8(0))),
    ("quantised", "uint8", "tensorrt-10.16", qdq),
    *(
        (
            "scales",
            f"1 of its 1 scales are not normal numbers of {kind}",
            target,
            lambda scale=scale: qdq(I8_ZERO, scale),
        )
        for target, kind, scale in (
            ("tensorrt-rtx", "FLOAT16", np.float16(0)),
            ("tensorrt-rtx", "FLOAT", np.float32(-0.1)),
            ("tensorrt-8.6", "FLOAT", np.float32(np.nan)),
            ("onnxruntime", "FLOAT", np.float32(0)),
            ("onnxruntime", "FLOAT16", np.float16(np.inf)),
        )
    ),
    ("scales", "calibrate the bundle again", "onnxruntime", lambda: qdq(I8_ZERO, np.float16(6e-5))),  # subnormal
    ("scales", "calibrate the bundle again", "onnxruntime", lambda: qdq(I8_ZERO, np.float32(1e-39))),
    ("top-k", "K is 3841", "tensorrt-rtx", lambda: one("TopK", LONG, {"k": np.array([3841])}, outputs=("y", "i"))),
    (
        "top-k",
        "no constant",
        "tensorrt-8.6",
        lambda: one("TopK", {**LONG, "k": (I64, [1])}, outputs=("y", "i"), opset=17),
    ),
    (
        "top-k",
        "unsorted",
        "tensorrt-10.3",
        lambda: one("TopK", LONG, {"k": np.array([5])}, outputs=("y", "i"), sorted=0, opset=20),
    ),
    ("constant-axes", "as an initializer", "tensorrt-rtx", lambda: one("ReduceMean", {**X, "a": (I64, [1])})),
    (
        "constant-axes",
        "as an initializer",
        "tensorrt-rtx",
        lambda: one("Squeeze", {"x": (F32, [1, 8]), "a": (I64, [1])}),
    ),
    (
        "constant-axes",
        "as an initializer",
        "tensorrt-8.6",
        lambda: graph(
            [helper.make_node("Slice", ["x", "s", "e", "a"], ["y"], name="the_node")],
            {**X, "a": (I64, [1])},
            {"y": (F32, None)},
            {"s": np.array([0]), "e": np.array([1])},
            17,
        ),
    ),
    ("loop", "may change its shape", "tensorrt-rtx", lambda: loop(grows=True)),
    (
        "scatter",
        "reduces while it scatters",
        "tensorrt-rtx",
        lambda: graph(
            [helper.make_node("ScatterND", ["x", "i", "u"], ["y"], name="the_node", reduction="add")],
            {**X, "u": (F32, [1, 8])},
            {"y": (F32, None)},
            {"i": np.array([[0]])},
        ),
    ),
    ("attention", "more than one output", "tensorrt-rtx", lambda: attention(outputs=("y", "", "", "z"))),
    (
        "attention",
        "reads a past",
        "tensorrt-rtx",
        lambda: attention(("q", "k", "v", "m", "pk", "pv"), ("y", "a", "b"), mask=(1, 1, 4, 9)),
    ),
    ("attention", "nonpad_kv_seqlen", "tensorrt-10.15", lambda: attention(("q", "k", "v", "", "", "", "n"))),
    ("attention", "query is not 4-D", "tensorrt-10.15", lambda: attention(rank=3, q_num_heads=4, kv_num_heads=2)),
    ("attention", "mask is not 4-D", "tensorrt-10.15", lambda: attention(mask=(4, 6))),
    ("attention", "softcap", "tensorrt-rtx", lambda: attention(softcap=2.0)),
    ("attention", "softmax_precision", "tensorrt-rtx", lambda: attention(softmax_precision=1)),
    ("attention", "causal and has a mask", "tensorrt-rtx", lambda: attention(is_causal=1)),
    ("mixed-floats", "FLOAT and FLOAT16", "tensorrt-rtx", lambda: attention(mask_kind=F32)),
    (
        "attention",
        "returns no present",
        "onnxruntime",
        lambda: attention(("q", "k", "v", "m", "pk", "pv"), mask=(1, 1, 4, 9)),
    ),
    ("attention", "does not broadcast", "onnxruntime", lambda: attention(mask=(1, 1, 1, 6))),
    ("rotary", "position_ids are INT32", "tensorrt-10.15", lambda: rotary(positions=I32)),
    ("rotary", "one position for all tokens", "tensorrt-rtx", lambda: rotary(tokens=1)),
    ("tensor-scatter", "no fixed length but 'n'", "tensorrt-rtx", lambda: scatter(slots="n")),
    ("tensor-scatter", "cache is INT8", "tensorrt-rtx", lambda: scatter(kind=I8)),
    ("tensor-scatter", "in a circle", "tensorrt-rtx", lambda: scatter(mode="circular")),
    ("tensor-scatter", "along axis -2", "tensorrt-rtx", lambda: scatter(axis=1)),
    ("tensor-scatter", "cache is not 4-D", "tensorrt-rtx", lambda: scatter(rank=3)),
    ("tensor-scatter", "no input of the graph", "tensorrt-rtx", lambda: scatter(is_input=False)),
    ("tensor-scatter", "no output of the graph", "tensorrt-rtx", lambda: scatter(is_output=False)),
]

SOUND: list[tuple[str, Build]] = [
    ("tensorrt-8.6", lambda: one("Relu", X, opset=17)),
    ("tensorrt-10.3", lambda: one("Relu", X, opset=20)),
    ("tensorrt-rtx", lambda: qdq(I8_ZERO)),
    ("tensorrt-rtx", lambda: qdq(I8_ZERO, np.finfo(np.float16).tiny)),
    ("tensorrt-rtx", lambda: qdq(I8_ZERO, np.float16(65504))),
    ("tensorrt-rtx", lambda: one("TopK", LONG, {"k": np.array([3840])}, outputs=("y", "i"))),
    ("tensorrt-rtx", lambda: one("ReduceMean", X, {"a": np.array([1])})),
    ("tensorrt-rtx", lambda: one("MatMul", X, {"w": np.ones((8, 4), np.float32)})),
    ("tensorrt-rtx", lambda: loop(grows=False)),
    ("tensorrt-rtx", attention),
    ("tensorrt-rtx", lambda: attention(opset=23)),
    ("tensorrt-rtx", lambda: attention(("q", "k", "v"), is_causal=1)),
    ("tensorrt-rtx", rotary),
    ("tensorrt-rtx", lambda: rotary(positions=I64)),
    ("tensorrt-rtx", scatter),
    ("tensorrt-rtx", lambda: scatter(kind=F32, axis=2)),
    ("onnxruntime", attention),
    ("onnxruntime", nbits),
    ("onnxruntime", lambda: scatter(slots="n")),
]
