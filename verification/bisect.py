"""Finds where a graph begins to depart from its reference: the first product whose input or output differs.

The graph runs once more as a copy that also puts out its taps, in the same batch and at the same step; the reference
is tapped at the same places. For fp16 the largest values are told too, since overflow is what fp16 fails by.
"""

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtime.backends import create_backend
from runtime.backends.interface import Arrays
from runtime.pipeline import Pipeline
from runtime.signature import GraphName
from verification.cases import AnswerCase, DrawCase
from verification.graphs.taps import TappedSession, add_taps
from verification.limits import Limits
from verification.measures.metrics import agreement, largest_magnitude
from verification.subject import Subject
from verification.tally import Failure
from verification.traces import Floats, Reference, Taps

FLOAT16_MAX: Final = 65504.0
_NEAR: Final = 0.25  # of the largest number of float16: sums of such numbers overflow
MAX_SUGGESTED: Final = 3


@dataclass(frozen=True)
class TapFigure:
    """One tensor inside of a graph."""

    name: str
    cosine: float  # worst token
    norm_ratio: float
    largest: float  # absolute value, in the subject; infinite where one is not finite
    expected_largest: float


def bisect(
    pipeline: Pipeline,
    reference: Reference,
    case: DrawCase | AnswerCase,
    failure: Failure,
    limits: Limits,
    forced: Sequence[npt.NDArray[np.int64]] | Sequence[int] | None,
) -> str:
    """Look inside of the graph that failed, at the step where it did, and say what is there.

    Args:
        pipeline: Plain graphs of the backend ort.
        reference: What is right.
        case: In which the failure was found.
        failure: The failure.
        limits: Of the pipeline's precision.
        forced: The reference's tokens in that case.
    """
    graph = failure.graph
    taps = compare_taps(pipeline, reference, case, (graph, failure.request, failure.step), forced)
    bad = next(
        (tap for tap in taps if not tap.cosine >= limits.cache_cosine or not abs(tap.norm_ratio - 1) <= limits.norm),
        None,
    )
    if bad is None:
        text = (
            f"every layer of {graph} agrees at step {failure.step}: the fault is in what follows the last one, "
            "or in the loop and the cache around the graph"
        )
    else:
        what = f"cosine {bad.cosine:.6f}"
        if bad.cosine >= limits.cache_cosine:
            what = f"norm {bad.norm_ratio:.4f} times the expected one"
        text = f"first bad tensor: {graph} {bad.name}, {what} at step {failure.step}"
    keep = _too_large(taps) if pipeline.precision in ("fp16", "int8-fp16") else []
    if keep:
        text += f"; beyond the range of float16: keep {', '.join(keep)} in fp32"
    return text


def compare_taps(
    pipeline: Pipeline,
    reference: Reference,
    case: DrawCase | AnswerCase,
    where: tuple[GraphName, int, int],
    forced: Sequence[npt.NDArray[np.int64]] | Sequence[int] | None,
) -> list[TapFigure]:
    """The inputs and outputs of all products at a place: graph, request and step; in the order of the graph."""
    graph, request, step = where
    if isinstance(case, DrawCase):
        found = tapped_drawing(pipeline, case, request, graph, step, forced)  # type: ignore[arg-type]
        expected = reference.tap_drawing(case.alone(request), graph, step, list(found))
    else:
        found = tapped_answer(pipeline, case, graph, step, forced)  # type: ignore[arg-type]
        expected = reference.tap_answer(case, graph, step, list(found))
    figures = (_figure(name, found[name], expected[name]) for name in found if name in expected)
    return [figure for figure in figures if figure is not None]


def tapped_drawing(
    pipeline: Pipeline,
    case: DrawCase,
    request: int,
    graph: GraphName,
    step: int,
    forced: Sequence[npt.NDArray[np.int64]] | None,
) -> Taps:
    """The taps of one request of a case, both guidance rows, at a step of a stage."""
    length, lengths = len(case.prompts[request]), [len(ids) for ids in case.prompts]
    # text_decoder reads the rows that have a text, where it can choose them.
    reads_all = pipeline.dialect == "modern"
    row = request if graph != "text_decoder" or reads_all else sum(map(bool, lengths[:request]))

    def pick(values: Floats) -> Floats:
        rows = [row, len(lengths) + row] if len(values) == 2 * len(lengths) and graph != "text_decoder" else [row]
        picked = values[rows]
        return picked[:, picked.shape[1] - length :] if graph == "text_decoder" and picked.ndim > 2 else picked

    # The text is read in one run; failures count its tokens.
    wanted = 0 if graph == "text_decoder" else step
    taps = _taps_at(pipeline, graph, wanted, lambda tapped: Subject(tapped).draw(case, forced))
    return {name: pick(values) for name, values in taps.items()}


def tapped_answer(
    pipeline: Pipeline, case: AnswerCase, graph: GraphName, step: int, forced: Sequence[int] | None
) -> Taps:
    """The taps of an answer at a step; for the image encoder, of a picture."""
    return _taps_at(pipeline, graph, step, lambda tapped: Subject(tapped).answer(case, forced))


def find_overflows(pipeline: Pipeline, case: DrawCase, forced: Sequence[npt.NDArray[np.int64]]) -> list[Failure]:
    """Tensors inside of fp16 graphs that float16 does not hold: per graph the first one.

    A CPU computes fp16 graphs in fp32 between casts, so that it shows no overflow that a GPU would.
    """
    failures = []
    for graph in ("text_decoder", "rep_decoder", "denoiser"):
        name: GraphName = graph
        found: list[tuple[int, str, float]] = []

        def take(step: int, tap: str, values: Floats, found: list[tuple[int, str, float]] = found) -> None:
            largest = largest_magnitude(values)
            if not largest < FLOAT16_MAX:
                found.append((step, tap, largest))

        _run_tapped(pipeline, name, lambda tapped: Subject(tapped).draw(case, forced), take)
        if found:
            step, tap, largest = found[0]
            what = f"reaches {largest:.3g}, and float16 ends at {FLOAT16_MAX:.0f}: keep it in fp32"
            failures.append(Failure(graph=name, tensor=tap, case=case.name, request=0, step=step, what=what))
    return failures


def _taps_at(pipeline: Pipeline, graph: GraphName, step: int, work: Callable[[Pipeline], Any]) -> Taps:
    kept = Taps()

    def take(now: int, name: str, values: Floats) -> None:
        if now == step:
            kept[name] = values.astype(np.float32)

    _run_tapped(pipeline, graph, work, take)
    return kept


def _run_tapped(
    pipeline: Pipeline, graph: GraphName, work: Callable[[Pipeline], Any], take: Callable[[int, str, Floats], None]
) -> None:
    """Let a pipeline work with a tapped graph; `take` is told the number of the run, and each tap."""
    entry = pipeline.bundle.graph(graph, pipeline.model.variant)
    runs = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "taps.onnx"
        names = add_taps(pipeline.bundle.file(entry.file), path)
        session = create_backend("ort").open(path, num_threads=pipeline.num_threads, compiled=False)

        def show(_: int, found: Mapping[str, npt.NDArray[Any]], inputs: Arrays) -> None:
            run = next(runs)
            for name, output in names.items():
                take(run, name, found[output])

        work(pipeline.with_sessions({graph: TappedSession(session, pipeline.sessions[graph].signature, show)}))


def _figure(name: str, found: Floats, expected: Floats) -> TapFigure | None:
    size = expected.shape[-1]
    if found.shape[-1] != size:
        return None
    ours, right = found.reshape(-1, size), expected.reshape(-1, size)
    if len(ours) < len(right):  # before the guidance rows part
        right = right[: len(ours)]
    if len(ours) != len(right):
        return None
    (cosine,), (norm_ratio,), _ = agreement(ours[None], right[None])
    return TapFigure(name, float(cosine), float(norm_ratio), largest_magnitude(ours), float(np.abs(right).max()))


def _too_large(taps: Sequence[TapFigure]) -> list[str]:
    """Parameters around values that float16 does not hold, in the order of the graph."""
    names = [tap.name.split(" ")[0] for tap in taps if max(tap.largest, tap.expected_largest) > _NEAR * FLOAT16_MAX]
    return list(dict.fromkeys(names))[:MAX_SUGGESTED]
