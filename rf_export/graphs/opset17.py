"""Pass: a graph of opset 18 as one of opset 17, the newest that TensorRT 8.6 reads.

The torch exporter writes 18 at the oldest. From 17 to 18 ONNX moved the axes of reductions from an attribute to an
input, gave Split a count of its outputs and ScatterElements more ways to reduce; whatever else changed its meaning is
refused, not guessed (https://github.com/onnx/onnx/blob/main/docs/Changelog.md, version 18). Knows nothing of what a
graph computes.
"""

from typing import Final

import onnx_ir as ir
from onnx.defs import SchemaError, get_schema
from onnx_ir.passes.common import RemoveUnusedNodesPass

OPSET: Final = 17
IR_VERSION: Final = 8  # of ONNX 1.12, which brought opset 17
_REDUCTIONS: Final = frozenset(
    {
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceSumSquare",
    }
)


def to_opset_17(model: ir.Model) -> None:
    """Rewrite a model of opset 18, without subgraphs, in place.

    Raises:
        ValueError: a node cannot be said in opset 17; names it.
    """
    if model.opset_imports.get("") != OPSET + 1:
        raise ValueError(f"expected a graph of opset 18, got {dict(model.opset_imports)}")
    for node in model.graph:
        if node.op_type in _REDUCTIONS:
            _move_axes_to_attribute(node)
        elif node.op_type == "Split":
            _drop_num_outputs(node)
        elif not _is_the_same_in_both(node):
            raise ValueError(f"{node.name} ({node.op_type}) of opset 18 cannot be said in opset 17")
    RemoveUnusedNodesPass()(model)  # the axes that nobody reads any more
    model.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION


def _is_the_same_in_both(node: ir.Node) -> bool:
    if node.op_type == "ScatterElements" and node.attributes.get_string("reduction", "none") == "none":
        return True
    try:
        old, new = (get_schema(node.op_type, opset, node.domain) for opset in (OPSET, OPSET + 1))
    except SchemaError:
        return False
    return bool(old.since_version == new.since_version)


def _move_axes_to_attribute(node: ir.Node) -> None:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    attributes = node.attributes
    empty_means_nothing = attributes.pop("noop_with_empty_axes", None)
    if axes is None:
        if empty_means_nothing is not None and empty_means_nothing.as_int():
            raise ValueError(f"{node.name} ({node.op_type}) reduces nothing, which opset 17 cannot say")
        return
    constant = ir.convenience.get_const_tensor(axes)
    if constant is None:
        raise ValueError(f"{node.name} ({node.op_type}) has axes that are no constant, which opset 17 cannot say")
    attributes["axes"] = ir.AttrInt64s("axes", constant.numpy().reshape(-1).tolist())
    node.resize_inputs(1)


def _drop_num_outputs(node: ir.Node) -> None:
    """Without sizes opset 17 splits into equal parts, opset 18 leaves the last one smaller."""
    if node.attributes.pop("num_outputs", None) is None:
        return
    data, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    size = data.shape[axis] if data is not None and data.shape is not None else None
    if not isinstance(size, int) or size % len(node.outputs):
        raise ValueError(f"{node.name} (Split) may have parts of different size, which opset 17 cannot say")
