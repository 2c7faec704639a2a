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

from calibration.job import CalibrationJob
from calibration.layers import Layer
from calibration.statistics import Activations, Recorded
from runtime.backends.interface import Arrays, Session
from runtime.events import PictureEvent
from runtime.options import GenerationOptions
from runtime.pictures.load import Picture, load_pixels
from runtime.pipeline import Pipeline
from runtime.signature import GRAPHS, GraphName
from verification.graphs.taps import TappedSession, add_taps

GUIDED: Final[tuple[GraphName, ...]] = ("rep_decoder", "denoiser")
NUM_EXAMPLES: Final = 4  # to time and compare candidates with
Inputs = dict[str, npt.NDArray[Any]]


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
    job: CalibrationJob,
    recording: Recording,
    tapped: Sequence[tuple[GraphName, str]],
    prompts: Iterable[tuple[str, int]],  # with their seeds
    pictures: Iterable[Picture],
) -> Iterator[int]:
    """Draw prompts one by one and look at the pictures, with some layers tapped; yields how many are done.

    Args:
        job: Its graphs are drawn with; those with taps are written into its folder, and deleted in the end.
        recording: Where to.
        tapped: Graph and weight of the layers.
        prompts: What to draw.
        pictures: More pictures to look at, before.
    """
    sessions: dict[GraphName, TappedSession] = {}
    files: list[Path] = []
    try:
        for name in dict.fromkeys(graph for graph, _ in tapped):
            path = graph_file(job.base, name)
            weights = [weight for graph, weight in tapped if graph == name]
            out = job.folder / "graphs" / f"taps.{name}.onnx"
            files += [out, out.with_suffix(".bin")]
            found = add_taps(path, out, [_tap_of(weight) for weight in weights])
            taps = {weight: found[_tap_of(weight)] for weight in weights}
            session = job.backend.open(out, num_threads=job.base.num_threads, compiled=False)
            sessions[name] = TappedSession(session, job.base.sessions[name].signature, _taker(recording, name, taps))
        pipeline = job.base.with_sessions(sessions)
        for picture in pictures:
            see(pipeline, picture)
        for done, (prompt, seed) in enumerate(prompts, 1):
            for tapped_session in sessions.values():
                tapped_session.restart()
            draw_and_see(pipeline, prompt, seed)
            yield done
    finally:
        for path in files:
            path.unlink(missing_ok=True)


def _tap_of(weight: str) -> str:
    """The tap of what goes into the product with a weight."""
    return f"{weight.removeprefix('model.').removesuffix('.weight')} input"


def graph_file(pipeline: Pipeline, name: GraphName) -> Path:
    """Where a graph of a pipeline lies."""
    return pipeline.bundle.file(pipeline.bundle.graph(name, pipeline.model.variant).file)


def draw_and_see(pipeline: Pipeline, prompt: str, seed: int) -> None:
    """Draw a picture and let the image encoder read it."""
    *_, last = pipeline.generate([prompt], seed=seed, options=GenerationOptions(window=1), previews=False)
    assert isinstance(last, PictureEvent)
    see(pipeline, last.picture)


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


def record_examples(base: Pipeline, prompts: Sequence[tuple[str, int]]) -> dict[GraphName, list[Inputs]]:
    """Whole inputs of one run of every graph per prompt, spread over the steps: early ones first, late ones last."""
    examples: dict[GraphName, list[Inputs]] = {name: [] for name in GRAPHS}
    for number, (prompt, seed) in enumerate(prompts):
        num_steps = steps_of(base, prompt)
        sessions: dict[GraphName, Session] = {}
        for name, session in base.sessions.items():
            wanted = (2 * number + 1) * num_steps[name] // (2 * len(prompts))

            def keep(
                step: int, _: object, inputs: Arrays, kept: list[Inputs] = examples[name], wanted: int = wanted
            ) -> None:
                if step == wanted:
                    kept.append(copy.deepcopy(dict(inputs)))

            sessions[name] = TappedSession(session, session.signature, keep)
        draw_and_see(base.with_sessions(sessions), prompt, seed)
    return examples


def steps_of(pipeline: Pipeline, prompt: str) -> dict[GraphName, int]:
    """Runs of every graph in a drawing; that of rep_decoder which only fills the cache is left out."""
    plan = pipeline.check([prompt])[0].plan
    return {"vision_encoder": 1, "text_decoder": 1, "rep_decoder": plan.num_rep_tokens, "denoiser": plan.num_steps}
