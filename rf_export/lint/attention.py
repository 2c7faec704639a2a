"""Rules of the lint for the operators of transformers: Attention, RotaryEmbedding, TensorScatter.

Sources as in `lint_targets.py`; [rtx] was seen with tensorrt_rtx 1.7.1, [ort] with onnxruntime 1.32 on the CPU.
"""

from collections.abc import Iterator

import onnx_ir as ir

from rf_export.lint.targets import LintTarget

_CACHE_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _value(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _dim(value: ir.Value | None, axis: int) -> int | str | None:
    """A size, the name of a free one, or None where nothing is known."""
    if value is None or value.shape is None or len(value.shape) < -axis:
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else dim.value


def attention(node: ir.Node, target: LintTarget) -> Iterator[tuple[str, str]]:
    """The form that a target takes: onnx-tensorrt operators.md of 10.15, docs.nvidia.com "Attention"."""
    yield from _attention_of_onnxruntime(node) if not target.is_tensorrt else _attention_of_tensorrt(node)


def _attention_of_onnxruntime(node: ir.Node) -> Iterator[tuple[str, str]]:
    has_past = _value(node, 4) is not None or _value(node, 5) is not None
    has_present = any(output.name for output in node.outputs[1:3])
    if has_past and not has_present:  # [ort]
        yield "it reads a past and returns no present", "write the cache with TensorScatter"
    mask, query = _value(node, 3), _value(node, 0)
    if _rank(query) == 4 and _dim(mask, -2) == 1 != _dim(query, -2):  # [ort] "inconsistent q_sequence_length"
        yield "its mask is not as long as the queries, and ONNX Runtime does not broadcast it", "expand the mask"


def _attention_of_tensorrt(node: ir.Node) -> Iterator[tuple[str, str]]:
    if any(output.name for output in node.outputs[1:]):
        yield "it has more than one output", "write the cache with TensorScatter"
    if any(_value(node, index) is not None for index in (4, 5)):
        yield "it reads a past", "write the cache with TensorScatter"
    if _value(node, 6) is not None:
        yield "it reads nonpad_kv_seqlen", "hide slots with the mask"
    for index, what in enumerate(("query", "key", "value", "mask")):
        if _rank(_value(node, index)) not in (None, 4):
            yield f"its {what} is not 4-D", "reshape it to [batch, heads, tokens, size]"
    if node.attributes.get_float("softcap", 0.0):
        yield "it caps its scores", "leave softcap out"
    if "softmax_precision" in node.attributes:  # [rtx]
        yield "it sets softmax_precision", "leave it out"
    if node.attributes.get_int("is_causal", 0) and _value(node, 3) is not None:  # [rtx]
        yield "it is causal and has a mask", "put causality into the mask"


def rotary(node: ir.Node, target: LintTarget) -> Iterator[tuple[str, str]]:
    """Tables per row have to be as long as the tokens: [rtx]; positions are int64: operators.md."""
    positions = _value(node, 3)
    if positions is not None:
        if positions.dtype not in (None, ir.DataType.INT64):
            yield f"its position_ids are {positions.dtype}", "use int64"
        return
    if _rank(_value(node, 0)) == 4 and _dim(_value(node, 1), -2) == 1 != _dim(_value(node, 0), -2):
        yield "its tables have one position for all tokens", "expand the tables to the number of tokens"


def tensor_scatter(node: ir.Node, target: LintTarget) -> Iterator[tuple[str, str]]:
    """docs.nvidia.com, "KVCacheUpdate": in and out of the network, at one address, of a static length; [rtx]."""
    cache, update = _value(node, 0), _value(node, 1)
    if node.attributes.get_string("mode", "linear") != "linear":
        yield "it writes in a circle", "write linearly into a longer cache"
    for what, value in (("cache", cache), ("update", update)):
        if _rank(value) not in (None, 4):
            yield f"its {what} is not 4-D", "reshape it to [batch, heads, slots, size]"
    if _rank(cache) == 4 and node.attributes.get_int("axis", -2) not in (-2, 2):
        yield "it does not write along axis -2", "lay the cache out as [batch, heads, slots, size]"
    if cache is not None and cache.dtype is not None and cache.dtype not in _CACHE_DTYPES:
        yield f"its cache is {cache.dtype}", "keep the cache in a floating-point type"
    if cache is not None and not cache.is_graph_input():
        yield "its cache is no input of the graph", "pass the cache in as it is"
    if not node.outputs[0].is_graph_output():
        yield "its result is no output of the graph", "return the cache"
    if _rank(cache) == 4 and not isinstance(_dim(cache, -2), int):
        yield f"its cache has no fixed length but {_dim(cache, -2)!r}", "export with --cache-slots"
