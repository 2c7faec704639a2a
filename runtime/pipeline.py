"""Texts in, pictures out, and questions about pictures: checks what is asked for, and runs a loaded model.

Knows nothing of libraries that run graphs, and nothing of how graphs are made.
"""

import contextlib
import functools
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from runtime.backends.interface import Session, StageRunner, keep_drawn
from runtime.bundle.engine import Engine
from runtime.bundle.folder import Bundle, Verify
from runtime.errors import RFError
from runtime.events import AnswerEvent, Event, PictureEvent
from runtime.loading import EngineChoice, LoadedModel, load_model
from runtime.options import AnswerOptions, GenerationOptions
from runtime.pictures.load import Picture
from runtime.request import Request, check_requests, fill_gumbel
from runtime.signature import Dialect, GraphName, Precision, Variant
from runtime.understanding.conversation import Conversation


class Pipeline:
    """A loaded bundle.

    Threads: a pipeline holds no state of a request. Every `generate` has its own cache and buffers, so that
    several threads may draw and converse with one pipeline at the same time, and a drawing that was given up
    leaves nothing behind. One generator, and one conversation, belongs to one thread at a time.

    It is a context manager: `close`, or the end of a `with`, drops the graphs and their memory.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model: LoadedModel | None = model

    @classmethod
    def load(
        cls,
        path: str | Path,
        precision: Precision = "fp32",
        backend: str = "ort",
        num_threads: int | None = None,
        engine: EngineChoice = "auto",
        verify: Verify = "auto",
        dialect: Dialect = "classic",
        allow_unverified: bool = False,
        allow_spinning: bool = True,
    ) -> "Pipeline":
        """Load a bundle.

        Args:
            path: The bundle.
            precision: The graphs to run.
            backend: What runs them.
            num_threads: Threads per run; None leaves it to the backend.
            engine: "auto" takes the bundle's engine where one fits and the ONNX graphs otherwise; "none"
                takes the ONNX graphs; a path takes that engine or refuses.
            verify: How the files that are read are checked, as in `Bundle.verify`.
            dialect: The graphs to run. Engines of ONNX Runtime are built from the classic ones.
            allow_unverified: Also run graphs and engines that failed a verification or that nobody verified.
            allow_spinning: Let threads wait busily for the next run; False where others need the cores. Backend `ort`
                alone.

        Raises:
            RFError: Says what is missing, damaged, not verified or does not fit.
        """
        variant = Variant(precision, dialect)
        return cls(
            load_model(
                path,
                variant,
                backend=backend,
                num_threads=num_threads,
                engine=engine,
                verify=verify,
                allow_unverified=allow_unverified,
                allow_spinning=allow_spinning,
            )
        )

    @property
    def model(self) -> LoadedModel:
        """The loaded bundle; raises RFError where the pipeline was closed."""
        if self._model is None:
            raise RFError("This pipeline was closed. Load the bundle again: Pipeline.load.")
        return self._model

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self.model.bundle

    @property
    def precision(self) -> Precision:
        """The precision of the graphs that run."""
        return self.model.variant.precision

    @property
    def dialect(self) -> Dialect:
        """The dialect of the graphs that run."""
        return self.model.variant.dialect

    @property
    def engine(self) -> Engine | None:
        """The engine in use, or None for the ONNX graphs."""
        return self.model.engine

    @property
    def num_threads(self) -> int | None:
        """Threads per run; None leaves it to the backend."""
        return self.model.num_threads

    @property
    def sessions(self) -> Mapping[GraphName, Session]:
        """The loaded graphs."""
        return self.model.sessions

    def close(self) -> None:
        """Drop the graphs and their memory, as soon as the drawings and conversations that run have ended."""
        self._model = None

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def with_sessions(self, sessions: Mapping[GraphName, Session]) -> "Pipeline":
        """The same pipeline with some of its graphs exchanged."""
        return type(self)(self.model.with_sessions(sessions))

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        options: GenerationOptions | None = None,
        rep_ids: npt.ArrayLike | None = None,  # [R, N]
        previews: bool = True,
    ) -> Generator[Event, None, None]:
        """Draw a picture for every prompt, all of them together, and report each step.

        Everything is checked by the call; the work begins with the first `next`. Closing the generator, or
        dropping it, cancels the drawing after the step that runs.

        Args:
            prompts: One text per picture; an empty one draws without a text.
            seed: Prompt i uses seed + i, and looks the same alone with that seed, up to rounding.
            options: How to draw.
            rep_ids: Representation tokens to use instead of drawing them: to edit a picture's, or to compare. Where it
                is -1, at the same places for all prompts, the model draws the token.
            previews: Report tokens and steps. Without, pictures only, and nothing is kept on a device for the others.

        Returns:
            A generator of N `TokenEvent`s, `num_steps` `StepEvent`s and a `PictureEvent` per prompt. On a GPU a stage
            runs in one go, and its events come at its end.

        Raises:
            RFError: A prompt or an option that the model cannot take. The generator raises it too, where
                the numbers overflow.
        """
        return self.run(self.check(prompts, seed=seed, options=options, rep_ids=rep_ids), previews=previews)

    def check(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        options: GenerationOptions | None = None,
        rep_ids: npt.ArrayLike | None = None,
    ) -> list[Request]:
        """Only check what `generate` takes; raises RFError."""
        model = self.model
        return check_requests(
            prompts, seed, options, rep_ids, model.manifest, model.tokenizer, model.cache_slots, model.window
        )

    def draw(self, prompt: str, *, seed: int = 0, options: GenerationOptions | None = None) -> npt.NDArray[np.uint8]:
        """Draw one picture: [height, width, 3], red, green and blue from 0 to 255; see `generate`."""
        *_, last = self.generate([prompt], seed=seed, options=options, previews=False)
        assert isinstance(last, PictureEvent)
        return last.picture

    def converse(self) -> Conversation:
        """Begin a conversation about pictures; raises RFError where the model answers no questions."""
        return Conversation(self.model)

    def understand(
        self, *pictures: Picture, question: str = "", seed: int = 0, options: AnswerOptions | None = None
    ) -> str:
        """The answer to one question about pictures, or a caption; see `converse`, `Conversation.ask`."""
        conversation = self.converse()
        conversation.show(*pictures)
        *_, last = conversation.ask(question, seed=seed, options=options)
        assert isinstance(last, AnswerEvent)
        return last.text

    def run(self, requests: Sequence[Request], *, previews: bool = True) -> Generator[Event, None, None]:
        """Draw requests that were checked; see `generate`."""
        with contextlib.closing(self.begin(requests, previews=previews)) as stages:
            yield from draw_stages(stages, requests, self.precision)

    def begin(self, requests: Sequence[Request], *, previews: bool = True) -> StageRunner:
        """The stages of a drawing, for `draw_stages`; who begins closes it."""
        longest = max(len(request.ids) for request in requests)
        return self.model.start(len(requests), longest, requests[0].plan.num_rep_tokens, previews=previews)


def draw_stages(stages: StageRunner, requests: Sequence[Request], precision: Precision) -> Generator[Event, None, None]:
    """The drawing itself: read the prompts, draw the tokens, denoise, finish."""
    plan, times = requests[0].plan, requests[0].times
    given = [request.forced for request in requests if request.forced is not None]
    forced = np.stack(given) if given else None
    stages.prefill([request.ids for request in requests])
    drawn = yield from stages.draw_tokens(plan, functools.partial(fill_gumbel, requests), forced)
    pixels = yield from stages.denoise(plan, times, np.stack([request.first_pixels() for request in requests]))
    rep_ids = keep_drawn(drawn, forced)  # [R, N]
    rows = zip(requests, pixels, rep_ids, strict=True)
    yield from [request.finish(picture, ids, precision) for request, picture, ids in rows]
