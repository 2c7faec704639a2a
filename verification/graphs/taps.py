"""Looks inside a graph: what goes into and comes out of every product with a weight, as further outputs of a copy.

A tap is named after the parameter, as `layers.3.out input`, so that eager PyTorch and graphs of any precision and
dialect have the same names. Knows nothing of drawings.
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy.typing as npt

from runtime.backends.interface import Arrays, Session
from runtime.signature import GraphSignature

if TYPE_CHECKING:
    import onnx_ir as ir

LOWERED: Final = ".lowered"  # ends the name of what undoes the lifted columns of an INT8 weight
_PARAMETER: Final = re.compile(r"model\.(?P<path>.+?)\.weight")


class TappedSession:
    """A session whose runs are shown to `take`, with the taps that its graph also puts out; see `Session`."""

    def __init__(
        self,
        session: Session,
        signature: GraphSignature,
        take: Callable[[int, Mapping[str, npt.NDArray[Any]], Arrays], None],
    ) -> None:
        self._session, self.signature, self._take = session, signature, take
        self._steps = itertools.count()

    def restart(self) -> None:
        """Begin to count the steps of a drawing anew."""
        self._steps = itertools.count()

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once, as step 0 of a stage of its own."""
        found = self._session.run(inputs)
        self._take(0, found, inputs)
        return found

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare runs: the n-th since `restart` is step n, also where a stage binds anew as its rows change."""

        def run() -> None:
            found = self._session.run(inputs)
            for name, array in outputs.items():
                array[...] = found[name]
            self._take(next(self._steps), found, inputs)

        return run


def products(graph: "ir.Graph") -> "Iterator[ir.Node]":
    """Every MatMul of an activation and a two-dimensional initialiser."""
    for node in graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.is_initializer() and len(weight.const_value.shape) == 2:  # type: ignore[union-attr]
            yield node


def add_taps(source: Path, out: Path, only: Collection[str] | None = None) -> dict[str, str]:
    """Write a copy of a graph that also puts out its taps.

    Args:
        source: The graph.
        out: The copy; its weights go beside it, into a file named alike that ends in `.bin`.
        only: Names of the taps that are wanted; None for all.

    Returns:
        Name of each tap -> name of the output, in the order of the graph.
    """
    import onnx_ir as ir

    model = ir.load(source)
    taps: dict[str, str] = {}
    outputs = {value.name for value in model.graph.outputs}
    for node in model.graph:
        path = _parameter_of(node)
        if path is None:
            continue
        for name, value in ((f"{path} input", node.inputs[0]), (f"{path} output", _result_of(node))):
            assert value is not None and value.name is not None
            if value.is_graph_input() or value.is_initializer() or not (only is None or name in only):
                continue
            taps[name] = value.name
            if value.name not in outputs:
                model.graph.outputs.append(value)
                outputs.add(value.name)
    ir.save(model, out, external_data=f"{out.stem}.bin")
    return taps


def _result_of(node: "ir.Node") -> "ir.Value":
    """What a product puts out; of one whose columns INT8 lifted, what it is after that was undone."""
    (result,) = node.outputs
    readers = [use.node for use in result.uses()]
    is_lifted = (
        len(readers) == 1 and readers[0].op_type == "Mul" and (readers[0].inputs[1].name or "").endswith(LOWERED)  # type: ignore[union-attr]
    )
    return readers[0].outputs[0] if is_lifted else result


def _parameter_of(node: "ir.Node") -> str | None:
    """The path of the parameter that a product multiplies with, through what dequantises it."""
    value = node.inputs[1] if node.op_type == "MatMul" else None
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or producer.op_type not in ("DequantizeLinear", "Cast", "Reshape"):
            return None
        value = producer.inputs[0]
    match = _PARAMETER.match(value.name or "") if value is not None else None
    return match["path"] if match else None
