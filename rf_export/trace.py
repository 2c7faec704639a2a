"""Trace one graph module into an ONNX model with exactly the signature that the runtime expects.

Names, dtypes and free dimensions all come from `runtime.signature`; a traced graph that is less dynamic than it was
asked to be is refused here. Knows nothing of files.
"""

import collections
import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from typing import Final

import onnx_ir as ir
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import bound_sympy

from rf_export.config import ModelConfig
from rf_export.graphs import classic, modern
from rf_export.graphs.modules import GRAPHS, CachedGraph
from rf_export.model import RFModel
from runtime.errors import RFError
from runtime.signature import Dialect, GraphName, GraphSignature, ModelSpec, TensorSpec, Variant, check_signature

# 18 is what torch's exporter writes natively: TensorRT from 10 on and ONNX Runtime take it as it is.
OPSETS: Final[dict[Dialect, int]] = {"classic": 18, "modern": 24}
# 0 and 1 would specialise.
_EXAMPLE_SIZES = {
    "batch": 2,
    "sequence": 3,
    "cache": 5,
    "request": 2,
    "row": 4,
    "window": 3,
    "features": 6,
    "answer": 7,
    "images": 2,
}


def trace(
    model: RFModel,
    graph: GraphName,
    variant: Variant,
    spec: ModelSpec,
    cache_slots: int | None = None,
    *,
    never_empty: bool = False,
) -> ir.Model:
    """Trace a graph of `model`, whose weights already have the dtype of its precision.

    Args:
        model: the model.
        graph: which graph of it.
        variant: dtype of the cache and of the weights, and how the decoder is spelt.
        spec: from `model_spec`.
        cache_slots: fixed length of the cache, `modern` only.
        never_empty: for parsers that refuse empty tensors; see `rf_export.graphs.classic.attend_patches`.

    Returns:
        The ONNX model; initialisers that start with `model.` are the parameters, in their own memory.

    Raises:
        RFError: the traced graph does not have the signature that it was asked to have, or not at every size.
    """
    signature = GraphSignature.of(graph, spec, variant, cache_slots)
    inputs, dynamic_shapes = example_inputs(signature, model.config)
    module = GRAPHS[graph](model, variant.dialect).eval()
    if never_empty and isinstance(module, CachedGraph) and isinstance(module.decoder, classic.ClassicDecoder):
        module.decoder.never_empty = True
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            opset_version=OPSETS[variant.dialect],
            custom_translation_table={**classic.TRANSLATIONS, **modern.TRANSLATIONS},
            verbose=False,
        )
    assert program is not None
    assert program.exported_program is not None
    _check_ranges(program.exported_program, signature, model.config, graph)
    traced = program.model
    strip_metadata(traced)
    name_dimensions(traced, signature)
    check_signature(signature, read_signature(traced), graph)
    return traced


def example_inputs(signature: GraphSignature, config: ModelConfig) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
    """Inputs of a graph's module, and which of their dimensions are free, as `torch.export` wants them."""
    patch = config.patch_size
    cells = (min(2, config.max_grid), min(3, config.max_grid))
    sizes = {**_EXAMPLE_SIZES, "height": cells[0] * config.cell, "width": cells[1] * config.cell}
    free: dict[str, object] = {name: Dim(name, min=1) for name in _EXAMPLE_SIZES}
    # One representation token stands for 2x2 patches, so there are two at least.
    free["height"] = patch * Dim("patch_rows", min=2, max=2 * config.max_grid)
    free["width"] = patch * Dim("patch_columns", min=2, max=2 * config.max_grid)
    if signature.inputs[0].name == "pixels":  # the encoder merges 2x2 patches, so their numbers are even
        free["height"] = config.cell * Dim("cell_rows", min=1, max=config.max_grid)
        free["width"] = config.cell * Dim("cell_columns", min=1, max=config.max_grid)
    inputs, shapes = [], []
    for spec in signature.inputs:
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
        value = 0.5 if spec.name == "t" else 1
        inputs.append(torch.full(shape, value, dtype=getattr(torch, spec.dtype)))
        shapes.append({axis: free[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)})
    num_plain = sum(not spec.name.startswith("past_key_values.") for spec in signature.inputs)
    cache = tuple(shapes[num_plain:])  # the modules take it as `*past`
    return tuple(inputs), (*shapes[:num_plain], *([cache] if cache else []))


def _check_ranges(captured: ExportedProgram, signature: GraphSignature, config: ModelConfig, graph: GraphName) -> None:
    """Refuse a graph that is right at some sizes only.

    Where code branches on a size, torch (2.13) narrows the dimension to the sizes of one branch and goes on:
    `torch.export` for derived dimensions, `torch.onnx.export` for all.
    """
    # Of a multiple of a free number, torch claims two at the least: tests run the encoder on pictures of one cell.
    smallest = 2 * config.cell if graph == "vision_encoder" else config.cell
    side = (smallest, config.max_grid * config.cell)
    asked = {"height": side, "width": side}
    sizes = {node.name: node.meta["val"].shape for node in captured.graph.nodes if node.op == "placeholder"}
    for spec, name in zip(signature.inputs, captured.graph_signature.user_inputs, strict=True):
        for dim, size in zip(spec.shape, sizes[name], strict=True):
            if isinstance(size, int):
                continue  # baked in, or never free: the check of the signature tells
            lowest, largest = asked.get(str(dim), (1, math.inf))
            found = bound_sympy(size.node.expr, captured.range_constraints)
            if found.lower > lowest or found.upper < largest:
                raise RFError(
                    f"{graph}: {dim} of {spec.name} has to be free from {lowest} to {largest}, and the traced code is "
                    f"right from {found.lower} to {found.upper} only. Let the module not branch on it"
                )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter prints about torchvision and its own internals; real failures raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def strip_metadata(model: ir.Model) -> None:
    """Pass: drop the exporter's notes, which hold stack traces and with them the paths of the exporting host."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def name_dimensions(model: ir.Model, signature: GraphSignature) -> None:
    """Pass: give free dimensions the names of the signature (torch derives `4*patch_rows` and the like).

    Only symbolic dimensions are renamed, and those of outputs only where an input has the same symbol: one that was
    baked static, or became another expression such as `Min(16, 4*s63)`, stays visible to the check that follows. A
    name that no input has is of a product of others, such as the tokens of an image.
    """
    symbols = collections.defaultdict[str, set[str]](set)
    num_inputs = len(signature.inputs)
    values = {value.name: value for value in (*model.graph.inputs, *model.graph.outputs)}
    for i, spec in enumerate((*signature.inputs, *signature.outputs)):
        value = values.get(spec.name)
        if value is None or value.shape is None or len(value.shape) != len(spec.shape):
            continue
        dims: list[int | str | ir.SymbolicDim] = []
        for wanted, found in zip(spec.shape, value.shape, strict=True):
            if isinstance(wanted, str) and isinstance(found, ir.SymbolicDim):
                if i < num_inputs:
                    symbols[wanted].add(str(found))
                is_new = i >= num_inputs and wanted not in symbols and "*" in str(found)
                dims.append(wanted if is_new or str(found) in symbols[wanted] else found)
            else:
                dims.append(found)
        value.shape = ir.Shape(dims)


def read_signature(model: ir.Model) -> GraphSignature:
    """Names, dtypes and shapes of a model's inputs and outputs."""

    def read(values: list[ir.Value]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                str(value.name),
                str(value.dtype.numpy()) if value.dtype is not None else "unknown",
                tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape or ()),
            )
            for value in values
        )

    return GraphSignature(read(list(model.graph.inputs)), read(list(model.graph.outputs)))
