"""Texts in, pictures out, and questions about pictures: loads a bundle and runs its stages.

Knows nothing of libraries that run graphs, and nothing of how graphs are made.
"""

import contextlib
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from runtime.backends import create_backend
from runtime.backends.host.stages import HostRunner, keep_drawn
from runtime.backends.interface import Backend, Drawing, Runner, Session, StageRunner, TextRow
from runtime.bundle.engine import Engine, find_engine, open_engine, require_weights, use_engine
from runtime.bundle.folder import Bundle, Verify, open_bundle
from runtime.bundle.verdict import require_verified
from runtime.errors import RFError
from runtime.events import AnswerEvent, Event, PictureEvent
from runtime.options import AnswerOptions, GenerationOptions
from runtime.pictures.load import Picture
from runtime.request import Request, check_requests
from runtime.signature import GRAPHS, Dialect, GraphName, Precision, check_signature
from runtime.tokenizer import PromptTokenizer
from runtime.understanding.conversation import Conversation, Loaded


class Pipeline:
    """A loaded bundle.

    Threads: a pipeline holds no state of a request. Every `generate` has its own cache and buffers, so that
    several threads may draw and converse with one pipeline at the same time, and a drawing that was given up
    leaves nothing behind. One generator, and one conversation, belongs to one thread at a time.

    Attributes:
        bundle: The bundle.
        precision: The precision that runs.
        dialect: The dialect of the graphs that run.
        engine: The engine in use, or None for the ONNX graphs.
        num_threads: Threads per run; None leaves it to the backend.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        engine: Engine | None,
        sessions: dict[GraphName, Session],
        num_threads: int | None = None,
        runner: Runner | None = None,
        dialect: Dialect = "classic",
    ) -> None:
        self._runner = runner or HostRunner()
        self.bundle = bundle
        self.precision: Precision = precision
        self.dialect: Dialect = dialect
        self.engine = engine
        self.num_threads = num_threads
        self._sessions = sessions
        manifest = bundle.manifest
        self._tokenizer = PromptTokenizer(bundle.file(manifest.tokenizer.file), manifest.model.vocab_size)

    @classmethod
    def load(
        cls,
        path: str | Path,
        precision: Precision = "fp32",
        backend: str = "ort",
        num_threads: int | None = None,
        engine: Literal["auto", "none"] | Path = "auto",
        verify: Verify = "auto",
        dialect: Dialect = "classic",
        allow_unverified: bool = False,
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

        Raises:
            RFError: Says what is missing, damaged, not verified or does not fit.
        """
        bundle = open_bundle(path)
        runner = create_backend(backend)
        if dialect != "classic" and not runner.needs_engine:
            if backend != "ort":
                raise RFError(f"The backend {backend} runs classic graphs, and {dialect} was asked for. Use classic.")
            engine = "none" if engine == "auto" else engine
        chosen = _choose_engine(bundle, (precision, dialect), runner, engine, verify)
        entries = {name: bundle.graph(name, precision, dialect) for name in GRAPHS}
        require_verified(bundle, precision, dialect, chosen, allow_unverified=allow_unverified)
        needed = [] if chosen else [file for entry in entries.values() for file in entry.files]
        bundle.verify([*needed, bundle.manifest.tokenizer.file], verify)
        sessions: dict[GraphName, Session] = {}
        for name, entry in entries.items():
            file = chosen.file(name) if chosen else bundle.file(entry.file)
            sessions[name] = runner.open(file, num_threads=num_threads, compiled=chosen is not None)
            check_signature(entry.signature, sessions[name].signature, str(file))
        return cls(bundle, precision, chosen, sessions, num_threads, runner, dialect)

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
        manifest, slots = self.bundle.manifest, self._fixed_slots
        return check_requests(prompts, seed, options, rep_ids, manifest, self._tokenizer, slots)

    @property
    def _fixed_slots(self) -> int | None:
        return self._sessions["rep_decoder"].signature.cache_slots

    @property
    def sessions(self) -> Mapping[GraphName, Session]:
        """The loaded graphs."""
        return self._sessions

    def with_sessions(self, sessions: Mapping[GraphName, Session]) -> "Pipeline":
        """The same pipeline with some of its graphs exchanged."""
        return type(self)(
            self.bundle,
            self.precision,
            self.engine,
            {**self._sessions, **sessions},
            self.num_threads,
            self._runner,
            self.dialect,
        )

    def draw(self, prompt: str, *, seed: int = 0, options: GenerationOptions | None = None) -> npt.NDArray[np.uint8]:
        """Draw one picture: [height, width, 3], red, green and blue from 0 to 255; see `generate`."""
        *_, last = self.generate([prompt], seed=seed, options=options, previews=False)
        assert isinstance(last, PictureEvent)
        return last.picture

    def converse(self) -> Conversation:
        """Begin a conversation about pictures; raises RFError where the model answers no questions."""
        return Conversation(
            Loaded(
                sessions=self._sessions,
                manifest=self.bundle.manifest,
                tokenizer=self._tokenizer,
                precision=self.precision,
                new_row=self.text_row,
            )
        )

    def text_row(self) -> TextRow:
        """An empty row of keys and values, for callers with token ids of their own; nothing is checked."""
        model, session = self.bundle.manifest.model, self._sessions["text_decoder"]
        return self._runner.text_row(session, model, self.precision, self.dialect)

    def understand(
        self, *pictures: Picture, question: str = "", seed: int = 0, options: AnswerOptions | None = None
    ) -> str:
        """The answer to one question about pictures, or a caption; see `converse`, `Conversation.ask`."""
        conversation = self.converse()
        conversation.show(*pictures)
        *_, last = conversation.ask(question, seed=seed, options=options)
        assert isinstance(last, AnswerEvent)
        return last.text

    def start(
        self, num_requests: int, prompt_length: int, num_rep_tokens: int, *, previews: bool = True
    ) -> StageRunner:
        """The stages of a drawing, for callers with token ids and noise of their own; nothing is checked."""
        drawing = Drawing(
            model=self.bundle.manifest.model,
            precision=self.precision,
            dialect=self.dialect,
            num_requests=num_requests,
            prompt_length=prompt_length,
            num_rep_tokens=num_rep_tokens,
            num_slots=self._fixed_slots or prompt_length + num_rep_tokens + 1,
            previews=previews,
        )
        return self._runner.stages(self._sessions, drawing)

    def run(
        self, requests: Sequence[Request], *, previews: bool = True, watch: Callable[[StageRunner], None] | None = None
    ) -> Generator[Event, None, None]:
        """Draw requests that were checked; see `generate`. `watch` sees the stages when the last step is done."""
        plan, times = requests[0].plan, requests[0].times
        prompt_length = max(len(request.ids) for request in requests)
        given = [request.forced for request in requests if request.forced is not None]
        forced = np.stack(given) if given else None
        pixels = np.stack([request.first_pixels() for request in requests])
        started = self.start(len(requests), prompt_length, plan.num_rep_tokens, previews=previews)
        with contextlib.closing(started) as stages:
            stages.prefill([request.ids for request in requests])
            drawn = yield from stages.draw_tokens(plan, functools.partial(_fill_gumbel, requests), forced)
            pixels = yield from stages.denoise(plan, times, pixels)
            if watch is not None:
                watch(stages)

        rep_ids = keep_drawn(drawn, forced)  # [R, N]
        rows = zip(requests, pixels, rep_ids, strict=True)
        yield from [request.finish(picture, ids, self.precision) for request, picture, ids in rows]


def _fill_gumbel(requests: Sequence[Request], step: int, out: npt.NDArray[np.float32]) -> None:
    for request, row in zip(requests, out, strict=True):
        request.fill_gumbel(step, row)


def _choose_engine(
    bundle: Bundle, kind: tuple[Precision, Dialect], backend: Backend, choice: str | Path, verify: Verify
) -> Engine | None:
    precision, dialect = kind
    if choice == "none":
        return None
    if choice == "auto":
        return find_engine(bundle, precision, backend.target(), verify, dialect, required=backend.needs_engine)
    engine = open_engine(Path(choice))
    use_engine(engine, bundle, precision, backend.target(), verify, dialect)
    require_weights(engine, bundle)
    return engine
