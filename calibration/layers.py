"""Finds the matrix products of a graph that can become INT8, and who may take over their outlying channels.

A weight is an initialiser that is the second input of MatMul, `[in, out]`, named as the parameter of the model; its
name tells the kind of layer. Knows nothing of numbers.
"""

import re
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from verification.graphs.taps import products

_PARAMETER: Final = re.compile(r"model\.(?P<path>.+)\.weight")
_LAYER: Final = re.compile(r"(?P<stem>(?:\w+\.)?layers)\.(?P<index>\d+)\.(?:experts\.\w+\.)?(?P<kind>.+)")
MIN_SIZE: Final = 32  # rows and columns; smaller products are no work


@dataclass(frozen=True)
class Layer:
    """A matrix product with a weight.

    Attributes:
        weight: name of the initialiser.
        kind: what layers have in common that are decided together: "qkv", "ffn.down", "rep_head", ...
        index: number of the decoder layer; 0 where there is one of the kind.
        in_size, out_size: of the weight.
    """

    weight: str
    kind: str
    index: int
    in_size: int
    out_size: int


def find_layers(graph: ir.Graph) -> dict[str, Layer]:
    """The layers of a graph in its order, by weight; raises ValueError where two products share a weight."""
    layers: dict[str, Layer] = {}
    for node in products(graph):
        weight = node.inputs[1]
        assert weight is not None and weight.name is not None and weight.const_value is not None
        parameter = _PARAMETER.fullmatch(weight.name)
        in_size, out_size = weight.const_value.shape.numpy()
        if parameter is None or min(in_size, out_size) < MIN_SIZE:
            continue
        if weight.name in layers:
            raise ValueError(f"two products share {weight.name}")
        path = parameter["path"]
        match = _LAYER.fullmatch(path)
        kind, index = (match["kind"], int(match["index"])) if match else (path, 0)
        layers[weight.name] = Layer(weight.name, kind, index, in_size, out_size)
    return layers


def product_of(graph: ir.Graph, weight: str) -> ir.Node:
    """The product with a weight."""
    return next(node for node in products(graph) if node.inputs[1].name == weight)  # type: ignore[union-attr]


def scale_owner(node: ir.Node) -> ir.Value | None:
    """The initialiser `[in]` that scales the input of a product, such as the weight of a norm.

    Only where nobody else reads what it scales: dividing it by channel then divides the input by channel.
    """
    value = node.inputs[0]
    for _ in range(3):  # through casts to the multiplication
        if value is None or len(value.uses()) != 1:
            return None
        producer = value.producer()
        if producer is None:
            return None
        if producer.op_type == "Cast":
            value = producer.inputs[0]
            continue
        if producer.op_type != "Mul":
            return None
        return next((found for found in map(_through_cast, producer.inputs) if found is not None), None)
    return None


def _through_cast(value: ir.Value | None) -> ir.Value | None:
    """The initialiser behind a value and perhaps a cast, where nothing else reads it."""
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast":
        value = producer.inputs[0]
    if value is None or not value.is_initializer() or len(value.uses()) != 1:
        return None
    return value if len(value.const_value.shape) == 1 else None  # type: ignore[union-attr]
