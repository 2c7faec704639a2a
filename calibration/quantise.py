"""Rewrites a graph: matrix products get INT8 weights, and where wanted INT8 inputs, as Q/DQ pairs.

Only inputs and weights of products are quantised, symmetric with zero point 0. No scale is below the smallest normal
number of the type that it is stored in: columns that are too small for that are lifted by a power of two, which the
product's output is divided by. ONNX Runtime fuses `static` to MatMulIntegerToFloat and `weight-only` to MatMulNBits,
TensorRT both to INT8 kernels; sums, norms, attention and SwiGLU in between keep their precision, so nothing stands
between residuals and what compilers fuse around them.

    static         x -> Q -> DQ -> MatMul <- DQ <- int8 [in, out], a scale per column
    weight-only    x -> MatMul <- DQ <- int8 [in, out], a scale per column, or per column and block of rows
    weight-only-4  the same with int4 and blocks of 32

Knows nothing of how layers are chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calibration.config import PER_COLUMN, Format
from calibration.histogram import LEVELS
from calibration.layers import product_of, scale_owner
from verification.graphs.taps import LOWERED

# What DequantizeLinear needs; graphs keep the opset of their source otherwise, for old parsers.
OPSET_OF_HALF: Final = 19
OPSET_OF_BLOCKS: Final = 21
INT4_LEVELS: Final = 7
INT4_BLOCK: Final = 32
_STORED_AS_HALF: Final = 1024  # bytes; smaller ones stay as they are
Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Choice:
    """How one layer becomes INT8.

    Attributes:
        format: which form.
        input_range: magnitude of the input that becomes 127, after smoothing; for `static`.
        smoothing: [in] what the input is divided by and the weight multiplied by, or None; for `static`.
        block: rows of the weight that share a scale, 0 for all; for `weight-only`.
    """

    format: Format
    input_range: float = 0.0
    smoothing: Matrix | None = None
    block: int = 128


def quantise(model: ir.Model, plan: Mapping[str, Choice]) -> None:
    """Rewrite a model in place.

    Args:
        model: A graph of a bundle, in fp32 or fp16, classic.
        plan: Weight -> choice. Other layers stay as they are.
    """
    graph = model.graph
    for weight, choice in plan.items():
        if choice.smoothing is not None:
            _smooth(graph, weight, choice.smoothing)
    for weight, choice in plan.items():
        needed = _quantise_layer(graph, weight, choice)
        model.opset_imports[""] = max(needed, model.opset_imports[""])
    _drop_unused(graph)
    _store_as_half(graph)


def block_size(in_size: int, largest: int) -> int:
    """The largest power of two up to `largest` that divides `in_size`; 16 where none does that ONNX Runtime fuses."""
    block = largest
    while block > 16 and in_size % block:
        block //= 2
    return block


def stored_scales(largest: npt.ArrayLike, levels: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Scales with which magnitudes become `levels`, as a graph holds them: normal numbers of its type.

    Integers are made with these and no others, since nobody who dequantises them has others: fp16 rounds what lies
    below its smallest normal number by up to a half, and to 0 below 3e-8, which TensorRT refuses and ONNX Runtime
    does not.
    Zeros get the smallest scale: kernels add an offset to the integers and subtract it again, which with a scale of 1
    leaves 1e-4 where nothing should be (ONNX Runtime 1.32, MatMulNBits).
    """
    info = np.finfo(dtype)
    return np.clip(np.asarray(largest) / levels, float(info.tiny), float(info.max)).astype(dtype)


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight as integers.

    Attributes:
        integers: [in, out], still as floats.
        scales: [ceil(in / block), out] of every column and block of rows, as they are stored.
        lifts: [out] powers of two that columns were multiplied by before; 1 for nearly all.
        block: rows that share a scale.
    """

    integers: Matrix
    scales: npt.NDArray[Any]
    lifts: Matrix
    block: int

    @classmethod
    def of(cls, weight: Matrix, levels: int, block: int, dtype: npt.DTypeLike) -> "QuantisedWeight":
        """Quantise `[in, out]` with scales that are stored in a type."""
        magnitudes = np.pad(np.abs(weight), ((0, -len(weight) % block), (0, 0)))
        lifts = _column_lifts(magnitudes.max(0), levels, dtype)
        largest = magnitudes.reshape(-1, block, len(lifts)).max(1) * lifts
        scales = stored_scales(largest, levels, dtype)
        steps = _spread(scales.astype(np.float32) / lifts, block, len(weight))
        return cls(np.clip(np.rint(weight / steps), -levels, levels), scales, lifts, block)

    @property
    def restored(self) -> Matrix:
        """The weight that the integers stand for."""
        steps = _spread(self.scales.astype(np.float32) / self.lifts, self.block, len(self.integers))
        return self.integers * steps


def _column_lifts(largest: Matrix, levels: int, dtype: npt.DTypeLike) -> Matrix:
    """Powers of two that lift columns `[out]` whose scale would be below the normal numbers; 1 for all others."""
    info = np.finfo(dtype)
    scales = np.where(largest > 0, largest / levels, 1.0)
    exponents = np.ceil(np.log2(float(info.tiny) / scales))
    lifts: Matrix = np.exp2(np.clip(exponents, 0, -info.minexp)).astype(np.float32)  # the inverse is normal too
    return lifts


def _spread(steps: Matrix, block: int, num_rows: int) -> Matrix:
    """A row for every row of the weight, or one for all."""
    return steps if len(steps) == 1 else np.repeat(steps, block, axis=0)[:num_rows]


def _smooth(graph: ir.Graph, weight: str, factors: Matrix) -> None:
    """Divide the input of a layer by channel, at whoever makes it, and multiply the weight."""
    node = product_of(graph, weight)
    owner = smoothing_owner(graph, node)
    assert owner is not None
    value, columns = owner
    scaled = _numpy(value).copy()
    scaled[..., columns] /= factors
    _replace_value(value, scaled)
    product = node.inputs[1]
    assert product is not None
    _replace_value(product, _numpy(product) * factors[:, None])


def smoothing_owner(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, slice] | None:
    """The initialiser whose last axis scales the input of a product by channel, and which part of that axis.

    The weight of a norm; or for the down-projection of SwiGLU, whose input is `silu(gate) * up`, the columns of `up` in
    the fused gate and up projection.
    """
    weight = node.inputs[1]
    assert weight is not None and weight.name is not None and weight.const_value is not None
    if weight.name.endswith(".ffn.down.weight"):
        value = graph.initializers.get(weight.name.replace(".ffn.down.", ".ffn.gate_up."))
        if value is None or len(value.uses()) != 1:
            return None
        in_size = weight.const_value.shape.numpy()[0]
        return value, slice(in_size, 2 * in_size)
    found = scale_owner(node)
    return None if found is None else (found, slice(None))


def owner_magnitudes(graph: ir.Graph, node: ir.Node) -> Matrix | None:
    """The largest magnitudes `[in]` of what `smoothing_owner` finds, by channel."""
    owner = smoothing_owner(graph, node)
    if owner is None:
        return None
    value, columns = owner
    magnitudes = np.abs(_numpy(value)[..., columns])
    return magnitudes.reshape(-1, magnitudes.shape[-1]).max(0)  # type: ignore[no-any-return]


def _quantise_layer(graph: ir.Graph, weight: str, choice: Choice) -> int:
    """Rewrite one layer; returns the opset that it needs."""
    node = product_of(graph, weight)
    value, x = node.inputs[1], node.inputs[0]
    assert value is not None and x is not None
    matrix, dtype = _numpy(value), value.const_value.dtype.numpy()  # type: ignore[union-attr]
    is_int4 = choice.format == "weight-only-4"
    levels, largest_block = (INT4_LEVELS, INT4_BLOCK) if is_int4 else (LEVELS, choice.block)
    has_blocks = is_int4 or (choice.format == "weight-only" and choice.block != PER_COLUMN)
    block = block_size(len(matrix), largest_block) if has_blocks else len(matrix)
    found = QuantisedWeight.of(matrix, levels, block, dtype)
    if (found.lifts > 1).any():
        _multiply_output(graph, node, _constant(graph, f"{weight}{LOWERED}", (1 / found.lifts).astype(dtype)))
    if choice.format == "static":
        scale = _constant(graph, f"{weight}.input_scale", stored_scales(choice.input_range, LEVELS, dtype))
        zero = _constant(graph, f"{weight}.input_zero_point", np.array(0, np.int8))
        pair = [ir.node("QuantizeLinear", [x, scale, zero])]
        pair.append(ir.node("DequantizeLinear", [pair[0].outputs[0], scale, zero]))
        _insert(graph, node, pair, f"{weight}.input")
        node.replace_input_with(0, pair[1].outputs[0])
    kind = choice.format.replace("-", "_")
    stored = _constant(graph, f"{weight}.{kind}", found.integers.astype(ml_dtypes.int4 if is_int4 else np.int8))
    scale = _constant(graph, f"{weight}.{kind}.scale", found.scales if has_blocks else found.scales[0])
    attributes = {"axis": 0, "block_size": block} if has_blocks else {"axis": 1}
    back = ir.node("DequantizeLinear", [stored, scale], attributes=attributes)
    _insert(graph, node, [back], f"{weight}.{kind}.dequantised")
    node.replace_input_with(1, back.outputs[0])
    return OPSET_OF_BLOCKS if has_blocks else OPSET_OF_HALF if dtype == np.float16 else 0


def _multiply_output(graph: ir.Graph, node: ir.Node, factors: ir.Value) -> None:
    """Multiply what a product puts out, for all who read it."""
    (product,) = node.outputs
    name, product.name = product.name, f"{product.name}.lifted"
    scaled = ir.node("Mul", [product, factors], name=f"{factors.name}.product")
    scaled.outputs[0].name, scaled.outputs[0].type, scaled.outputs[0].shape = name, product.type, product.shape
    ir.convenience.replace_all_uses_with(product, scaled.outputs[0], replace_graph_outputs=True)
    scaled.replace_input_with(0, product)
    graph.insert_after(node, scaled)


def _insert(graph: ir.Graph, before: ir.Node, nodes: list[ir.Node], name: str) -> None:
    for i, node in enumerate(nodes):
        node.name = node.outputs[0].name = f"{name}.{i}" if len(nodes) > 1 else name
        graph.insert_before(before, node)


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _numpy(value: ir.Value) -> Matrix:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float32)


def _replace_value(value: ir.Value, array: Matrix) -> None:
    assert value.const_value is not None
    value.const_value = ir.tensor(array.astype(value.const_value.dtype.numpy()), name=value.name)


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def _store_as_half(graph: ir.Graph) -> None:
    """Store what is left in fp32 as fp16 where no bit is lost: checkpoints mostly come in 16 bits.

    The Cast is folded when a graph is loaded or compiled, so it costs nothing at run time.
    """
    first = next(iter(graph))
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < _STORED_AS_HALF:
            continue
        array = tensor.numpy()
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            continue
        stored = _constant(graph, f"{name}.half", half)
        cast = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT})
        cast.name = cast.outputs[0].name = f"{name}.full"
        graph.insert_before(first, cast)
        for node, index in list(value.uses()):
            node.replace_input_with(index, cast.outputs[0])
        del graph.initializers[name]
