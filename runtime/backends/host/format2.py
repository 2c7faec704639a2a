"""Runs the classic graphs of bundles in format 2 as those of today: one token a pass, two rows for every request.

In format 2 all rows ended at one slot (`past_length [1]`), the conditional rows of R requests were followed by R
unconditional ones in rep_decoder and denoiser, and rep_decoder took one token. Each run copies the cache into that
order, which costs some percent; exporting the checkpoint again does not. Knows nothing of files.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.interface import Arrays, Session
from runtime.errors import RFError
from runtime.signature import Dim, GraphName, GraphSignature, ModelSpec, TensorSpec, Variant

FORMAT_VERSION = 2


def signature_of(graph: GraphName, model: ModelSpec, variant: Variant, cache_slots: int | None) -> GraphSignature:
    """The signature that a graph of format 2 must have."""
    today = GraphSignature.of(graph, model, variant, cache_slots)
    return GraphSignature(_specs(today.inputs, graph), _specs(today.outputs, graph))


def _specs(specs: tuple[TensorSpec, ...], graph: GraphName) -> tuple[TensorSpec, ...]:
    found = []
    for spec in specs:
        shape: tuple[Dim, ...] = spec.shape
        if spec.name == "past_lengths":
            spec, shape = TensorSpec("past_length", spec.dtype, (1,)), (1,)
        elif spec.name.startswith(("past_key_values", "present")) or spec.name == "row_starts":
            shape = tuple("2*request" if dim in ("row", "request") else 1 if dim == "window" else dim for dim in shape)
        elif graph == "rep_decoder":
            shape = tuple(dim for dim in shape if dim != "window")
        if spec.name not in ("row_requests", "uncond_rows"):
            found.append(TensorSpec(spec.name, spec.dtype, shape))
    return tuple(found)


class Format2Session:
    """A graph of format 2 with the inputs and outputs of today; see `runtime.backends.interface.Session`."""

    def __init__(self, session: Session, graph: GraphName, model: ModelSpec, variant: Variant) -> None:
        self.signature = GraphSignature.of(graph, model, variant)
        self._session, self._graph, self._variant = session, graph, variant
        self._shapes = {spec.name: spec.shape for spec in (*session.signature.inputs, *session.signature.outputs)}

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once; the outputs are new arrays."""
        if self._graph == "vision_encoder":
            return self._session.run(inputs)
        sizes: dict[Dim, int] = {}
        for spec in self.signature.inputs:
            sizes |= dict(zip(spec.shape, inputs[spec.name].shape, strict=True))
        outputs = {
            spec.name: np.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape], spec.dtype)
            for spec in self.signature.outputs
        }
        self.bind(inputs, outputs)()
        return outputs

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare many runs on the same memory."""
        if self._graph in ("vision_encoder", "text_decoder"):
            return self._bind_text(inputs, outputs)
        return self._bind_rows(inputs, outputs)

    def _bind_text(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """All rows of a run have one length: prompts are read into an empty cache, and answers have one row."""
        plain = dict(inputs)
        if "past_lengths" in plain:
            plain["past_length"] = plain.pop("past_lengths")[:1]
        return self._session.bind(plain, outputs)

    def _bind_rows(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        num_requests = len(inputs["uncond_rows"])
        if self._graph == "rep_decoder" and inputs["rep_ids"].shape[1] != 1:
            raise RFError(
                "The graphs of bundles in format 2 take one token a pass. Draw with window 1, or export it again."
            )
        old = {
            name: np.zeros([_size(dim, inputs, num_requests) for dim in self._shapes[name]], self._dtype(name, inputs))
            for name in (spec.name for spec in self._session.signature.inputs)
        }
        new = {
            name: np.zeros(self._old_shape(name, array, num_requests), array.dtype) for name, array in outputs.items()
        }
        run = self._session.bind(old, new)

        def step() -> None:
            self._fill(old, inputs, num_requests)
            run()
            self._give(new, inputs, outputs, num_requests)

        return step

    def _dtype(self, name: str, inputs: Arrays) -> npt.DTypeLike:
        return inputs["past_lengths" if name == "past_length" else name].dtype

    def _old_shape(self, name: str, array: npt.NDArray[Any], num_requests: int) -> tuple[int, ...]:
        if name.startswith("present"):
            return (2 * num_requests, *array.shape[1:])
        return array.shape if self._graph == "denoiser" else (num_requests, *array.shape[2:])

    def _fill(self, old: dict[str, npt.NDArray[Any]], inputs: Arrays, num_requests: int) -> None:
        lengths, starts = inputs["past_lengths"], inputs["row_starts"]
        uncond = inputs["uncond_rows"]
        end = int(lengths.max())
        old["past_length"][:] = end
        for name, array in old.items():
            if name in ("past_length", "row_starts"):
                continue
            if not name.startswith("past_key_values"):
                array[...] = inputs[name].reshape(array.shape)
                continue
            array[:, :, end:] = 0
            for row in range(2 * num_requests):
                given = row if row < num_requests else int(uncond[row - num_requests])
                is_hidden = given >= num_requests and self._graph == "denoiser"
                length = 0 if is_hidden else int(lengths[given] - starts[given])
                old["row_starts"][row] = end - length
                array[row, :, : end - length] = 0
                if length:
                    array[row, :, end - length : end] = inputs[name][given, :, starts[given] : lengths[given]]

    def _give(self, new: dict[str, npt.NDArray[Any]], inputs: Arrays, outputs: Arrays, num_requests: int) -> None:
        for name, array in outputs.items():
            if not name.startswith("present"):
                array[...] = new[name].reshape(array.shape)
                continue
            array[:num_requests] = new[name][:num_requests]
            for row in range(num_requests, len(array)):
                array[row] = new[name][num_requests + int(inputs["row_requests"][row])]


def _size(dim: Dim, inputs: Arrays, num_requests: int) -> int:
    """A free dimension of an old graph in a run."""
    if isinstance(dim, int):
        return dim
    picture = inputs["x_t"].shape[2:] if "x_t" in inputs else (0, 0)
    sizes: dict[str, int] = {
        "request": num_requests,
        "2*request": 2 * num_requests,
        "cache": inputs["past_key_values.0.key"].shape[2],
        "height": picture[0],
        "width": picture[1],
    }
    return sizes[dim]
