"""Builds candidates of a graph with some layers in INT8, compares them with the original and times them.

Everything is done on whole inputs that were recorded from drawings. Knows nothing of what is kept and why.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calibration.config import Format
from calibration.job import CalibrationJob
from calibration.layers import Layer, find_layers, product_of
from calibration.quantise import Choice, owner_magnitudes, quantise
from calibration.smoothing import Range, choose_range
from calibration.statistics import Activations
from calibration.trajectory import Inputs, graph_file
from runtime.backends.interface import Session
from runtime.signature import GraphName
from verification.graphs.weights import WeightFile
from verification.measures.metrics import cosine, relative_error
from verification.measures.timing import Timing, interleave

MAIN_OUTPUT: dict[GraphName, str] = {
    "text_decoder": "logits",
    "rep_decoder": "logits",
    "denoiser": "x_pred",
    "vision_encoder": "image_features",
}
_TURN_SECONDS = 0.03  # shorter turns are noise
Formats = Mapping[str, Format]  # weight -> format


@dataclass(frozen=True)
class Agreement:
    """A candidate against the original on the recorded inputs.

    Attributes:
        cosine: of the main output, worst input.
        error: largest relative RMS error of any output, keys and values included.
    """

    cosine: float
    error: float


class Workbench:
    """One graph of a bundle, what its layers were fed, and what it gives for recorded inputs; writes into a folder.

    Attributes:
        graph: name of the graph.
        layers: by weight.
        ranges: of the layers' inputs, by weight.
        original: the graph without INT8.
    """

    def __init__(
        self, graph: GraphName, job: CalibrationJob, activations: Mapping[str, Activations], examples: Sequence[Inputs]
    ) -> None:
        self.graph: GraphName = graph
        config = job.config
        self._source = graph_file(job.base, graph)
        self._folder, self._backend, self._config, self._examples = job.folder / "graphs", job.backend, config, examples
        model = ir.load(self._source)
        self.layers: dict[str, Layer] = find_layers(model.graph)
        self.ranges: dict[str, Range] = {}
        if "static" in config.formats_of(graph):
            for weight in self.layers:
                matrix = model.graph.initializers[weight].const_value.numpy()  # type: ignore[union-attr]
                owner = owner_magnitudes(model.graph, product_of(model.graph, weight))
                self.ranges[weight] = choose_range(activations[weight], matrix, config, owner)
        self.original = job.base.sessions[graph]
        self._expected = [self.original.run(inputs) for inputs in examples]

    @property
    def kinds(self) -> list[str]:
        """Kinds of layers, in the graph's order."""
        return list(dict.fromkeys(layer.kind for layer in self.layers.values()))

    def weights_of(self, kind: str) -> list[str]:
        """The layers of a kind."""
        return [weight for weight, layer in self.layers.items() if layer.kind == kind]

    def rewrite(self, formats: Formats) -> ir.Model:
        """The graph with some layers in INT8."""
        model = ir.load(self._source)
        quantise(model, {weight: self._choice(weight, format) for weight, format in formats.items()})
        return model

    def candidate(self, formats: Formats) -> Session:
        """A loaded candidate; its files are gone when this returns."""
        with WeightFile(self._folder, "weights/candidate.bin") as file:
            path = file.save(self.rewrite(formats), "candidate.onnx")
        try:
            return self._backend.open(path, num_threads=self._config.num_threads, compiled=False)
        finally:
            path.unlink()
            file.path.unlink()

    def compare(self, session: Session) -> Agreement:
        """Run the recorded inputs; a candidate that is not finite agrees in nothing."""
        main = MAIN_OUTPUT[self.graph]
        cosines, errors = [1.0], [0.0]
        for inputs, expected in zip(self._examples, self._expected, strict=True):
            found = session.run(inputs)
            cosines.append(cosine(expected[main], found[main]))
            floats = [name for name, array in expected.items() if array.dtype.kind == "f"]
            errors += [relative_error(found[name], expected[name]) for name in floats]
        return Agreement(min(cosines), max(errors))

    def time(self, sessions: Mapping[str, Session]) -> dict[str, "StepTime"]:
        """Time per run, contenders in turns; the processor's time where one thread runs, or else the wall's.

        Runs that are short are repeated, on all recorded inputs; of those that are long one input has to do.
        """
        outputs = [{name: np.empty_like(array) for name, array in run.items()} for run in self._expected]

        def bind(session: Session) -> list[Callable[[], None]]:
            return [session.bind(inputs, out) for inputs, out in zip(self._examples, outputs, strict=True)]

        first = bind(self.original)[0]
        first()
        started = time.perf_counter()
        first()
        repeats = round(_TURN_SECONDS / (time.perf_counter() - started) / len(self._examples))

        def contender(session: Session) -> Callable[[], int]:
            runs = repeats * bind(session) if repeats else bind(session)[-1:]

            def run() -> int:
                for one in runs:
                    one()
                return len(runs)

            return run

        steps = {name: contender(session) for name, session in sessions.items()}
        timings = interleave(steps, self._config.num_rounds, warm=bool(repeats))
        return {name: StepTime.of(timing, self._config.num_threads) for name, timing in timings.items()}

    def _choice(self, weight: str, format: Format) -> Choice:
        if format != "static":
            return Choice(format, block=self._config.weight_block)
        found = self.ranges[weight]
        return Choice(format, found.largest, found.smoothing)


@dataclass(frozen=True)
class StepTime:
    """Milliseconds per run: median, and the median distance of the rounds from it."""

    ms: float
    spread_ms: float

    @classmethod
    def of(cls, timing: Timing, num_threads: int) -> "StepTime":
        """From the rounds of a contender."""
        rounds = [1e3 * value for value in (timing.cpu if num_threads == 1 else timing.wall)]
        median = statistics.median(rounds)
        return cls(median, statistics.median(abs(value - median) for value in rounds))
