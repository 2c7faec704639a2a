"""Records what every graph is really fed: a bundle's own pipeline draws prompts while the layers' inputs are tapped.

Calibrating on random data is what makes INT8 silently wrong, so there is no way to do it here: the representation
decoder sees its own tokens at every position, the denoiser its own pictures at every timestep, both with guidance.
Memory is bounded: the layers are tapped in passes, as many at a time as fit.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calibration.layers import Layer, product_of
from calibration.statistics import Activations, Recorded
from calibration.weights import WeightFile
from runtime.backends import Arrays, Backend, Session
from runtime.bundle import Bundle
from runtime.events import PictureEvent
from runtime.images import Picture, load_pixels
from runtime.pipeline import Pipeline
from runtime.signature import GRAPHS, GraphName, GraphSignature, Precision

GUIDED: Final[tuple[GraphName, ...]] = ("rep_decoder", "denoiser")
NUM_EXAMPLES: Final = 4  # to time and compare candidates with
Inputs = dict[str, npt.NDArray[Any]]


@dataclass
class Stage:
    """The runs of a graph in one drawing: how many there were so far."""

    step: int = 0


class TappedSession:
    """A session whose runs are shown to `take`, with the taps that its graph also puts out; see `Session`."""

    def __init__(
        self,
        session: Session,
        signature: GraphSignature,
        take: Callable[[int, Mapping[str, npt.NDArray[Any]], Arrays], None],
    ) -> None:
        self._session, self.signature, self._take = session, signature, take

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run once, as step 0 of a stage of its own."""
        found = self._session.run(inputs)
        self._take(0, found, inputs)
        return found

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare the runs of one drawing: the n-th is step n."""
        stage = Stage()

        def run() -> None:
            found = self._session.run(inputs)
            for name, array in outputs.items():
                array[...] = found[name]
            self._take(stage.step, found, inputs)
            stage.step += 1

        return run


@dataclass
class Recording:
    """Layers to be tapped, per graph, and what was seen."""

    layers: Mapping[GraphName, Mapping[str, Layer]]
    num_steps: Mapping[GraphName, int]
    recorded: Recorded = field(default_factory=dict)

    def activations(self, graph: GraphName, layer: Layer) -> Activations:
        """What was seen of a layer, from nothing on."""
        seen = self.recorded.setdefault(graph, {})
        if layer.weight not in seen:
            seen[layer.weight] = Activations(layer.in_size, self.num_steps[graph])
        return seen[layer.weight]


def draw_recorded(
    bundle: Bundle,
    folder: Path,
    precision: Precision,
    backend: Backend,
    recording: Recording,
    tapped: Sequence[tuple[GraphName, str]],
    prompts: Iterable[tuple[str, int]],  # with their seeds
    pictures: Iterable[Picture],
    num_threads: int,
) -> Iterator[int]:
    """Draw prompts one by one and look at the pictures, with some layers tapped; yields how many are done.

    Args:
        bundle: The bundle.
        folder: For graphs with taps, which are deleted in the end.
        precision: Of the graphs.
        backend: What runs them.
        recording: Where to.
        tapped: Graph and weight of the layers.
        prompts: What to draw.
        pictures: More pictures to look at, before.
        num_threads: Threads of a run.
    """
    sessions: dict[GraphName, Session] = {}
    files: list[Path] = []
    try:
        for name in GRAPHS:
            path = bundle.file(bundle.graph(name, precision).file)
            weights = [weight for graph, weight in tapped if graph == name]
            if not weights:
                sessions[name] = backend.open(path, num_threads=num_threads, compiled=False)
                continue
            out = folder / f"taps.{name}.onnx"
            with WeightFile(folder, f"weights/taps.{name}.bin") as file:
                files += [out, file.path]
                taps = _add_taps(path, out, weights, file)
            session = backend.open(out, num_threads=num_threads, compiled=False)
            take = _taker(recording, name, taps)
            sessions[name] = TappedSession(session, bundle.graph(name, precision).signature, take)
        pipeline = Pipeline(bundle, precision, None, sessions, num_threads)
        for picture in pictures:
            see(pipeline, picture)
        for done, (prompt, seed) in enumerate(prompts, 1):
            draw_and_see(pipeline, prompt, seed)
            yield done
    finally:
        for path in files:
            path.unlink(missing_ok=True)


def draw_and_see(pipeline: Pipeline, prompt: str, seed: int) -> PictureEvent:
    """Draw a picture and let the image encoder read it."""
    *_, last = pipeline.generate([prompt], seed=seed, previews=False)
    assert isinstance(last, PictureEvent)
    see(pipeline, last.picture)
    return last


def see(pipeline: Pipeline, picture: Picture) -> npt.NDArray[Any]:
    """Features of a picture in the default size, `[N, d]`; raises RFError for a file that is no picture."""
    model = pipeline.bundle.manifest.model
    pixels = load_pixels(picture, model.default_height, model.default_width)
    features: npt.NDArray[Any] = pipeline.sessions["vision_encoder"].run({"pixels": pixels[None]})["image_features"][0]
    return features


def _taker(
    recording: Recording, graph: GraphName, taps: Mapping[str, str]
) -> Callable[[int, Mapping[str, npt.NDArray[Any]], Arrays], None]:
    num_guidance = 2 if graph in GUIDED else 1

    def take(step: int, found: Mapping[str, npt.NDArray[Any]], inputs: Arrays) -> None:
        for weight, tap in taps.items():
            activations = recording.activations(graph, recording.layers[graph][weight])
            where = f"{graph}: {weight}"
            values = found[tap].astype(np.float32)
            # What comes before the guidance rows part (the embedding of the timestep, say) counts for both.
            per_row = list(values) if len(values) == num_guidance else [values] * num_guidance
            for guidance, rows in enumerate(per_row):
                activations.add(step, guidance, rows.reshape(-1, values.shape[-1]), where)

    return take


def _add_taps(path: Path, out: Path, weights: Sequence[str], file: WeightFile) -> dict[str, str]:
    """Write a graph that also puts out the inputs of some products; weight -> name of the output."""
    model = ir.load(path)
    taps: dict[str, str] = {}
    outputs = {value.name for value in model.graph.outputs}
    for weight in weights:
        value = product_of(model.graph, weight).inputs[0]
        assert value is not None and value.name is not None
        taps[weight] = value.name
        if value.name not in outputs and not value.is_graph_input():
            model.graph.outputs.append(value)
            outputs.add(value.name)
    file.save(model, out.name)
    return taps


def plan_passes(
    layers: Mapping[GraphName, Mapping[str, Layer]], num_rows: Mapping[GraphName, int], memory_mib: int
) -> list[list[tuple[GraphName, str]]]:
    """Which layers are tapped together: as many as fit, one at least.

    Args:
        layers: Of every graph.
        num_rows: Rows that a run of a graph feeds to a layer.
        memory_mib: For the outputs of a run.
    """
    passes: list[list[tuple[GraphName, str]]] = []
    room = 0
    for graph, found in layers.items():
        for weight, layer in found.items():
            need = 4 * num_rows[graph] * layer.in_size
            if not passes or need > room:
                passes.append([])
                room = memory_mib << 20
            passes[-1].append((graph, weight))
            room -= need
    return passes


def record_examples(
    bundle: Bundle,
    precision: Precision,
    backend: Backend,
    prompts: Sequence[tuple[str, int]],
    num_threads: int,
) -> dict[GraphName, list[Inputs]]:
    """Whole inputs of one run of every graph per prompt, spread over the steps: early ones first, late ones last."""
    examples: dict[GraphName, list[Inputs]] = {name: [] for name in GRAPHS}
    for number, (prompt, seed) in enumerate(prompts):
        runs: dict[GraphName, list[Inputs]] = {name: [] for name in GRAPHS}
        wanted = {name: _Wanted(number, len(prompts)) for name in GRAPHS}
        sessions: dict[GraphName, Session] = {}
        for name in GRAPHS:
            entry = bundle.graph(name, precision)
            session = backend.open(bundle.file(entry.file), num_threads=num_threads, compiled=False)

            def keep(
                step: int, _: object, inputs: Arrays, kept: list[Inputs] = runs[name], which: _Wanted = wanted[name]
            ) -> None:
                if which.takes(step):
                    kept[:] = [copy.deepcopy(dict(inputs))]

            sessions[name] = TappedSession(session, entry.signature, keep)
        pipeline = Pipeline(bundle, precision, None, sessions, num_threads)
        plan = pipeline.check([prompt], seed=seed)[0].plan
        wanted["rep_decoder"].num_steps, wanted["denoiser"].num_steps = plan.num_rep_tokens, plan.num_steps
        draw_and_see(pipeline, prompt, seed)
        for name in GRAPHS:
            examples[name] += runs[name]
    return examples


@dataclass
class _Wanted:
    """Which step of a drawing is kept as an example: early ones of the first prompt, late ones of the last."""

    number: int
    count: int
    num_steps: int = 1

    def takes(self, step: int) -> bool:
        return step == (2 * self.number + 1) * self.num_steps // (2 * self.count)
