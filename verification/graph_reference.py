"""The fp32 graphs of a bundle on ONNX Runtime as a reference: for machines without a checkpoint and without torch.

Loop, noise and times are the runtime's on both sides then, so that what is found is a fault of other graphs or of
engines, and of batching, since every request is drawn alone here. Knows nothing of who is compared with it.
"""

from collections.abc import Collection
from dataclasses import replace

from runtime.backends import create_backend
from runtime.pipeline import Pipeline
from runtime.signature import GraphName
from verification.bisect import tapped_answer, tapped_drawing
from verification.cases import AnswerCase, DrawCase
from verification.subject import Subject
from verification.traces import Answer, Drawing, Taps


class GraphReference:
    """The graphs of a pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._subject = Subject(pipeline)
        version = create_backend("ort").target().version.split()[0]
        self.name = f"the {pipeline.precision} graphs on ONNX Runtime {version}"

    def draw(self, case: DrawCase) -> list[Drawing]:
        """Every request alone, token by token."""
        case = replace(case, options=replace(case.options, window=1))
        return [self._subject.draw(case.alone(request))[0] for request in range(len(case.prompts))]

    def answer(self, case: AnswerCase) -> Answer:
        """The answer."""
        return self._subject.answer(case)

    def tap_drawing(self, case: DrawCase, graph: GraphName, step: int, names: Collection[str]) -> Taps:
        """Inputs and outputs of products."""
        return tapped_drawing(self._subject.pipeline, case, 0, graph, step, None)

    def tap_answer(self, case: AnswerCase, graph: GraphName, step: int, names: Collection[str]) -> Taps:
        """The same of an answer."""
        return tapped_answer(self._subject.pipeline, case, graph, step, None)
