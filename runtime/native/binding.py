"""The native host from Python: `NativePipeline` has the API of `runtime.Pipeline`, and librf_runtime does the work.

For comparing the two, and for programs that want the C library's start and memory. Knows include/rf.h and nothing
of what is behind it. Needs the library: `runtime.native.install` or `make native` compiles it.
"""

import contextlib
import ctypes
import json
import os
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from ctypes import POINTER, byref, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from runtime.errors import RFError
from runtime.events import AnswerEvent, Event, PictureEvent, StepEvent, TokenEvent, WordEvent
from runtime.native import structs
from runtime.native.library import check, find_onnxruntime, load_library
from runtime.options import AnswerOptions, GenerationOptions, Plan
from runtime.pictures.load import Picture, load_pixels

_E = TypeVar("_E")


class NativePipeline:
    """A bundle, opened by the native host; see `runtime.Pipeline`. Several threads may use one at the same time."""

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle

    @classmethod
    def load(
        cls,
        path: str | Path,
        precision: str = "fp32",
        *,
        num_threads: int | None = None,
        engine: str | Path = "auto",
        verify: str = "auto",
        dialect: str = "classic",
        allow_unverified: bool = False,
        allow_spinning: bool = True,
        library: Path | None = None,
        onnxruntime: str | Path | None = None,
        provider: str | None = None,
        provider_library: str | Path | None = None,
        backend: str = "ort",
        backend_library: str | Path | None = None,
    ) -> "NativePipeline":
        """Load a bundle; see `runtime.Pipeline.load`.

        Args:
            path: The bundle.
            precision: The graphs to run.
            num_threads: Threads per run; None for one per core that the process may use.
            engine: "auto", "none" or the folder of one.
            verify: "auto", "size" or "hash".
            dialect: The graphs to run.
            allow_unverified: Also run graphs that failed a verification or that nobody verified.
            allow_spinning: Let threads wait busily for the next run.
            library: librf_runtime, where it is not where `make native` puts it.
            onnxruntime: ONNX Runtime's shared library; None for the one of the installed package. With another backend
                TensorRT's; None for the one that the system finds.
            provider: Execution provider of ONNX Runtime, such as "CUDA"; None for its CPU kernels.
            provider_library: The plugin that has it, where it is one.
            backend: "ort", "tensorrt" or "tensorrt-rtx".
            backend_library: librf_tensorrt, where it is not beside librf_runtime.

        Raises:
            RFError: Says what is missing, damaged, not verified or does not fit.
        """
        native = load_library(library)
        options, handle = structs.OpenOptions(), ctypes.c_void_p()
        native.rf_open_options_init(byref(options))
        found = onnxruntime or (find_onnxruntime() if backend == "ort" else None)
        options.num_threads, options.allow_unverified = num_threads or 0, allow_unverified
        options.no_spinning = not allow_spinning
        options.precision, options.dialect = precision.encode(), dialect.encode()
        options.engine, options.verify = os.fsencode(engine), verify.encode()
        options.library = os.fsencode(found) if found else None
        options.backend = backend.encode()
        options.backend_library = os.fsencode(backend_library) if backend_library else None
        options.provider = provider.encode() if provider else None
        options.provider_library = os.fsencode(provider_library) if provider_library else None
        check(native, native.rf_open(os.fsencode(path), byref(options), byref(handle)))
        return cls(native, handle)

    def close(self) -> None:
        """Drop the graphs and their memory; nothing may run any more."""
        handle, self._handle = self._handle, ctypes.c_void_p()
        self._library.rf_close(handle)

    def __enter__(self) -> "NativePipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def handle(self) -> ctypes.c_void_p:
        """The rf_pipeline; raises RFError where it was closed."""
        if not self._handle:
            raise RFError("This pipeline was closed. Load the bundle again: NativePipeline.load.")
        return self._handle

    def info(self) -> Mapping[str, Any]:
        """What was opened."""
        room = c_size_t()
        check(self._library, self._library.rf_info(self.handle, None, byref(room)))
        text = ctypes.create_string_buffer(room.value)
        check(self._library, self._library.rf_info(self.handle, text, byref(room)))
        content: Mapping[str, Any] = json.loads(text.value)
        return content

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text; raises RFError for one that the model could only misread."""
        room = c_size_t()
        encoded = _text(text)
        check(self._library, self._library.rf_tokenize(self.handle, encoded, None, byref(room)))
        ids = (c_int64 * room.value)()
        check(self._library, self._library.rf_tokenize(self.handle, encoded, ids, byref(room)))
        return list(ids)

    def draw(self, prompt: str, *, seed: int = 0, options: GenerationOptions | None = None) -> npt.NDArray[np.uint8]:
        """Draw one picture: [height, width, 3]; see `runtime.Pipeline.draw`."""
        return self.draw_all([prompt], seed=seed, options=options)[0].picture

    def draw_all(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        seed: int = 0,
        options: GenerationOptions | None = None,
        rep_ids: npt.ArrayLike | None = None,
        on_event: Callable[[Event], bool] | None = None,
    ) -> list[PictureEvent]:
        """Draw a picture for every prompt, a text or token ids.

        Args:
            prompts: What to draw.
            seed: Prompt i uses seed + i.
            options: How to draw.
            rep_ids: [R, N] tokens to use instead of drawing them; -1 is drawn.
            on_event: Called with every token and step; gives the drawing up where it returns False.

        Raises:
            DrawingCancelledError: `on_event` gave it up.
            RFError: What the model cannot take.
        """
        if not 0 <= seed < 2**64:
            raise RFError(f"seed must be 0 to 2**64 - {len(prompts)} for {len(prompts)} prompts, got {seed}.")
        native, kept = _draw_options(self._library, seed, options or GenerationOptions())
        size = structs.Size()
        check(self._library, self._library.rf_measure(self.handle, byref(native), byref(size)))
        count, shape = len(prompts), (size.height, size.width)
        if rep_ids is not None:
            forced = np.ascontiguousarray(rep_ids, np.int64)
            if forced.shape != (count, size.num_rep_tokens):
                raise RFError(
                    f"rep_ids must be whole numbers of shape {(count, size.num_rep_tokens)}, "
                    f"got {forced.dtype} {forced.shape}."
                )
            native.forced_rep_ids = _pointer(forced, c_int64)
            kept.append(forced)
        rgb, pixels = np.zeros((count, *shape, 3), np.uint8), np.zeros((count, 3, *shape), np.float32)
        ids, pictures = np.zeros((count, size.num_rep_tokens), np.int64), structs.Pictures()
        self._library.rf_pictures_init(byref(pictures))
        pictures.rgb, pictures.rgb_room = _pointer(rgb, c_uint8), rgb.size
        pictures.pixels, pictures.pixels_room = _pointer(pixels, c_float), pixels.size
        pictures.rep_ids, pictures.rep_ids_room = _pointer(ids, c_int64), ids.size
        texts = (structs.Prompt * count)(*[_prompt(each, kept) for each in prompts])
        with _called(structs.DRAW_CALLBACK, _draw_event, on_event) as callback:
            status = self._library.rf_draw(
                self.handle, texts, c_size_t(count), byref(native), callback, None, byref(pictures)
            )
        check(self._library, status)
        del kept
        names = [each if isinstance(each, str) else "" for each in prompts]
        return [PictureEvent(i, names[i], seed + i, rgb[i], pixels[i], ids[i]) for i in range(count)]

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        seed: int = 0,
        options: GenerationOptions | None = None,
        rep_ids: npt.ArrayLike | None = None,
    ) -> Generator[Event, None, None]:
        """The same as a generator of events, drawn by a thread of its own; closing it cancels the drawing."""
        found: queue.Queue[Event | BaseException | None] = queue.Queue(1)
        is_closed = threading.Event()

        def on_event(event: Event) -> bool:
            found.put(event)
            return not is_closed.is_set()

        def work() -> None:
            try:
                pictures = self.draw_all(prompts, seed=seed, options=options, rep_ids=rep_ids, on_event=on_event)
                for picture in pictures:
                    found.put(picture)
            except BaseException as error:
                found.put(error)
            found.put(None)

        thread = threading.Thread(target=work, name="rf-native", daemon=True)
        thread.start()
        try:
            while (item := found.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            is_closed.set()
            while thread.is_alive():
                with contextlib.suppress(queue.Empty):
                    found.get(timeout=0.01)
            thread.join()

    def converse(self) -> "NativeConversation":
        """Begin a conversation about pictures; raises RFError where the model answers no questions."""
        handle = ctypes.c_void_p()
        check(self._library, self._library.rf_converse(self.handle, byref(handle)))
        return NativeConversation(self, self._library, handle)

    def understand(
        self, *pictures: Picture, question: str = "", seed: int = 0, options: AnswerOptions | None = None
    ) -> str:
        """The answer to one question about pictures, or a caption; see `runtime.Pipeline.understand`."""
        with contextlib.closing(self.converse()) as conversation:
            conversation.show(*pictures)
            return conversation.ask(question, seed=seed, options=options).text


class NativeConversation:
    """One conversation; see `runtime.understanding.conversation.Conversation`."""

    def __init__(self, pipeline: NativePipeline, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._pipeline, self._library, self._handle = pipeline, library, handle

    def close(self) -> None:
        """Drop its memory."""
        handle, self._handle = self._handle, ctypes.c_void_p()
        self._library.rf_conversation_close(handle)

    @property
    def length(self) -> int:
        """Tokens so far, images included: a place to `rewind` to."""
        return int(self._library.rf_conversation_length(self._handle))

    @property
    def num_read(self) -> int:
        """Tokens whose keys and values are kept."""
        return int(self._library.rf_conversation_read(self._handle))

    def show(self, *pictures: Picture, height: int | None = None, width: int | None = None) -> None:
        """Add pictures, each fitted into `height` x `width` pixels, or into the model's default size."""
        model = self._pipeline.info()["model"]
        size = height or model["default_height"], width or model["default_width"]
        for picture in pictures:
            fitted = np.rint((load_pixels(picture, *size) + 1) * 127.5).astype(np.uint8)
            rgb = np.ascontiguousarray(fitted.transpose(1, 2, 0))
            status = self._library.rf_show(self._handle, _pointer(rgb, c_uint8), *map(c_int32, size))
            check(self._library, status)

    def say(self, text: str) -> None:
        """Add a text that is no question."""
        check(self._library, self._library.rf_say(self._handle, _text(text), None, c_size_t(0)))

    def rewind(self, length: int) -> None:
        """Go back to when the conversation had `length` tokens."""
        check(self._library, self._library.rf_rewind(self._handle, c_size_t(length)))

    def ask(
        self,
        question: str = "",
        *,
        seed: int = 0,
        options: AnswerOptions | None = None,
        history: str = "keep",
        token_ids: Sequence[int] | None = None,
        on_word: Callable[[WordEvent], bool] | None = None,
    ) -> AnswerEvent:
        """Ask; `on_word` is called with every token, and gives the answer up where it returns False."""
        chosen, native = options or AnswerOptions(), structs.AskOptions()
        self._library.rf_ask_options_init(byref(native))
        native.seed, native.forget = seed, history == "forget"
        native.max_tokens, native.top_k = chosen.max_tokens or 0, chosen.top_k or 0
        native.temperature, native.top_p = chosen.temperature, chosen.top_p
        native.repetition_penalty = chosen.repetition_penalty
        forced = np.array([] if token_ids is None else token_ids, np.int64)
        if token_ids is not None:
            native.forced_ids, native.num_forced_ids = _pointer(forced, c_int64), forced.size
        text, ids, answer = ctypes.create_string_buffer(1 << 20), np.zeros(1 << 16, np.int64), structs.Answer()
        self._library.rf_answer_init(byref(answer))
        answer.text, answer.text_room = ctypes.cast(text, ctypes.c_void_p), len(text)
        answer.ids, answer.ids_room = _pointer(ids, c_int64), ids.size
        with _called(structs.ASK_CALLBACK, _word_event, on_word) as callback:
            status = self._library.rf_ask(self._handle, _text(question), byref(native), callback, None, byref(answer))
        check(self._library, status)
        drawn = ids[: answer.ids_room].tolist()
        return AnswerEvent(question, text.value.decode(), drawn, seed, "length" if answer.is_cut_off else "stop")


def _draw_options(library: ctypes.CDLL, seed: int, options: GenerationOptions) -> tuple[structs.DrawOptions, list[Any]]:
    """The struct, and the memory that it points to."""
    native, kept = structs.DrawOptions(), []
    library.rf_draw_options_init(byref(native))
    native.seed = seed
    for name in ("height", "width", "num_steps", "top_k", "window"):
        setattr(native, name, getattr(options, name) or 0)
    for name in ("shift", "rep_guidance_scale", "pix_guidance_scale", "temperature"):
        if getattr(options, name) is not None:
            setattr(native, name, getattr(options, name))
    for name in ("times", "guided"):
        if getattr(options, name) is not None:
            values = np.array(getattr(options, name), np.float64)
            kept.append(values)
            setattr(native, name, _pointer(values, c_double))
    native.num_times = len(options.times or ())
    if isinstance(options.plan, Plan):
        raise RFError("The native host takes the plans of a bundle by name. Give the values of this one as options.")
    native.plan = options.plan.encode() if options.plan else None
    return native, kept


def _prompt(prompt: str | Sequence[int], kept: list[Any]) -> structs.Prompt:
    if isinstance(prompt, str):
        return structs.Prompt(_text(prompt), None, 0)
    ids = np.array(prompt, np.int64)
    kept.append(ids)
    return structs.Prompt(None, _pointer(ids, c_int64), ids.size)


def _text(text: str) -> bytes:
    if "\0" in text:
        raise RFError("A text for the native host has no NUL in it. Write it without.")
    return text.encode("utf-8", "surrogatepass")


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(POINTER(kind))


def _array(pointer: Any, *shape: int) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = np.ctypeslib.as_array(pointer, shape).copy()
    return values


def _draw_event(event: Any) -> Event:
    count = event.num_pictures
    if event.kind == 1:
        logits = _array(event.logits, count, event.num_logits)
        return TokenEvent(event.step, event.num_steps, _array(event.rep_ids, count), logits)
    shape = (count, 3, event.height, event.width)
    x_next, x_pred = _array(event.x_next, *shape), _array(event.x_pred, *shape)
    return StepEvent(event.step, event.num_steps, event.t, event.t_next, x_next, x_pred)


def _word_event(word: Any) -> WordEvent:
    logits = _array(word.logits, word.num_logits)
    return WordEvent(word.step, word.max_tokens, word.token_id, word.text.decode("utf-8", "replace"), logits)


@contextlib.contextmanager
def _called(kind: Any, make: Callable[[Any], _E], function: Callable[[_E], bool] | None) -> Generator[Any, None, None]:
    """A C callback around a function of Python; an exception in it gives the work up, and is raised behind it."""
    raised: list[BaseException] = []

    def call(event: Any, _user: Any) -> int:
        try:
            assert function is not None
            return 0 if function(make(event.contents)) else 1
        except BaseException as error:
            raised.append(error)
            return 1

    yield kind() if function is None else kind(call)
    if raised:
        raise raised[0]
