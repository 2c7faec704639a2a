"""Made-up inputs on which a compiled graph is compared with its ONNX graph. Knows nothing of what runs them.

Two requests of which one is guided, a window of tokens, a cache that is partly in use and rows that start and end at
different slots: masks, guidance and positions all take part. Values are random but fixed.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.backends.host.stages import rows_of
from runtime.signature import GraphSignature, ModelSpec, TensorSpec

PROBE_SIZES: Final = {
    "batch": 2,
    "request": 2,
    "row": 3,
    "window": 3,
    "sequence": 5,
    "cache": 9,
    "features": 3,
    "answer": 4,
    "images": 2,
}
_PAST_LENGTH: Final = 6  # at most; a smaller cache is in use as a whole
_SEED: Final = 20240


def probe_inputs(
    signature: GraphSignature, model: ModelSpec, sizes: Mapping[str, int] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Inputs of a graph that every model takes; `sizes` of free dimensions replace the usual ones."""
    rng = np.random.default_rng(_SEED)
    cells = min(2, model.max_grid)
    picture = {"height": model.cell * cells, "width": model.cell * min(3, model.max_grid)}
    sizes = {**PROBE_SIZES, **picture, **(sizes or {})}
    longest = min(_PAST_LENGTH, _room(signature, sizes))
    inputs = {spec.name: _probe(spec, sizes, model, rng) for spec in signature.inputs}
    if "past_lengths" in inputs:
        lengths = rng.integers(longest - longest // 2, longest + 1, inputs["past_lengths"].shape)
        inputs |= {"past_lengths": lengths, "row_starts": rng.integers(0, lengths + 1)}
    if "row_requests" in inputs:  # the last ones are guided
        num_requests, num_rows = sizes["request"], sizes["row"]
        guided = np.arange(num_requests) >= 2 * num_requests - num_rows
        inputs["row_requests"], inputs["uncond_rows"] = rows_of(guided.tolist())
    return inputs


def largest_error(expected: Mapping[str, npt.NDArray[Any]], actual: Mapping[str, npt.NDArray[Any]]) -> float:
    """Largest error of any output in units of its root mean square; infinite where a number is not finite."""
    worst = 0.0
    for name, reference in expected.items():
        wanted, found = reference.astype(np.float64), actual[name].astype(np.float64)
        scale = float(np.sqrt(np.mean(wanted**2)))
        error = float(np.abs(found - wanted).max()) / max(scale, 1e-12)
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def _room(signature: GraphSignature, sizes: Mapping[str, int]) -> int:
    """Slots of the cache that may be in use: a graph that writes there needs some for its new tokens."""
    slots = signature.cache_slots or sizes["cache"]
    present = {spec.name: spec.shape for spec in signature.outputs}.get("present.0.key")
    past = {spec.name: spec.shape for spec in signature.inputs}.get("past_key_values.0.key")
    if present is None or present != past:
        return slots
    return slots - sizes["sequence" if any(spec.name == "input_ids" for spec in signature.inputs) else "window"]


def _probe(spec: TensorSpec, sizes: Mapping[str, int], model: ModelSpec, rng: np.random.Generator) -> npt.NDArray[Any]:
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
    constants = {
        "guidance_scale": 2.5,
        "temperature": 1.0,
        "top_p": 0.9,
        "repetition_penalty": 1.3,
        "t": 0.25,
        "t_next": 0.5,
        "top_k": min(10, model.max_top_k, model.max_text_top_k),
    }
    if spec.name in constants:
        return np.full(shape, constants[spec.name], spec.dtype)
    # Whole numbers up to a limit: ids, and positions on the grid. Those of rows are decided together.
    limits = {
        "input_ids": model.vocab_size + sizes.get("features", 0),
        "answer_ids": model.vocab_size + 1,
        "rep_ids": model.rep_vocab_size,
        "grid_positions": model.max_grid,
    }
    if spec.dtype == "int64":
        return rng.integers(0, limits.get(spec.name, 1), shape)
    return rng.standard_normal(shape).astype(spec.dtype)
