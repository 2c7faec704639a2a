"""The native host from Python: `NativePipeline` has the API of `runtime.Pipeline`, and librf_runtime does the work.

For comparing the two, and for programs that want the C library's start and memory. Knows the structs of include/rf.h
and nothing of what is behind them. Needs the library: `runtime.native.install` or `make native` compiles it.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_uint64
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from runtime.errors import DrawingCancelledError, ErrorKind, RFError
from runtime.events import AnswerEvent, Event, PictureEvent, StepEvent, TokenEvent, WordEvent
from runtime.options import AnswerOptions, GenerationOptions, Plan
from runtime.pictures.load import Picture, load_pixels

API_VERSION: Final = 1
_OK, _CANCELLED, _NO_MEMORY, _FAULT = 0, 6, 9, 10
_KINDS: Final[dict[int, ErrorKind]] = {
    1: "input",
    2: "damaged",
    3: "mismatch",
    4: "missing",
    5: "busy",
    6: "cancelled",
    7: "overflow",
    8: "input",
}
_E = TypeVar("_E")


class _OpenOptions(ctypes.Structure):
    _fields_ = (
        ("size", c_uint32),
        ("num_threads", c_int32),
        ("precision", c_char_p),
        ("dialect", c_char_p),
        ("engine", c_char_p),
        ("verify", c_char_p),
        ("library", c_char_p),
        ("allow_unverified", c_int32),
        ("warn", ctypes.c_void_p),
        ("user", ctypes.c_void_p),
        ("provider", c_char_p),
        ("provider_library", c_char_p),
        ("no_spinning", c_int32),
        ("backend", c_char_p),
        ("backend_library", c_char_p),
    )


class _Prompt(ctypes.Structure):
    _fields_ = (("text", c_char_p), ("ids", POINTER(c_int64)), ("num_ids", c_size_t))


class _DrawOptions(ctypes.Structure):
    _fields_ = (
        ("size", c_uint32),
        ("height", c_int32),
        ("width", c_int32),
        ("num_steps", c_int32),
        ("top_k", c_int32),
        ("window", c_int32),
        ("seed", c_uint64),
        ("shift", c_double),
        ("rep_guidance_scale", c_double),
        ("pix_guidance_scale", c_double),
        ("temperature", c_double),
        ("times", POINTER(c_double)),
        ("num_times", c_size_t),
        ("guided", POINTER(c_double)),
        ("plan", c_char_p),
        ("forced_rep_ids", POINTER(c_int64)),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("size", c_uint32),
        ("kind", c_int32),
        ("step", c_int32),
        ("num_steps", c_int32),
        ("num_pictures", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("rep_ids", POINTER(c_int64)),
        ("logits", POINTER(c_float)),
        ("num_logits", c_size_t),
        ("t", c_float),
        ("t_next", c_float),
        ("x_next", POINTER(c_float)),
        ("x_pred", POINTER(c_float)),
    )


class _Size(ctypes.Structure):
    _fields_ = tuple((name, c_int32) for name in ("height", "width", "num_rep_tokens", "num_steps", "window"))


class _Pictures(ctypes.Structure):
    _fields_ = (
        ("size", c_uint32),
        ("rgb", POINTER(c_uint8)),
        ("rgb_room", c_size_t),
        ("pixels", POINTER(c_float)),
        ("pixels_room", c_size_t),
        ("rep_ids", POINTER(c_int64)),
        ("rep_ids_room", c_size_t),
    )


class _AskOptions(ctypes.Structure):
    _fields_ = (
        ("size", c_uint32),
        ("max_tokens", c_int32),
        ("top_k", c_int32),
        ("forget", c_int32),
        ("seed", c_uint64),
        ("temperature", c_double),
        ("top_p", c_double),
        ("repetition_penalty", c_double),
        ("ids", POINTER(c_int64)),
        ("num_ids", c_size_t),
        ("forced_ids", POINTER(c_int64)),
        ("num_forced_ids", c_size_t),
    )


class _Word(ctypes.Structure):
    _fields_ = (
        ("size", c_uint32),
        ("step", c_int32),
        ("max_tokens", c_int32),
        ("token_id", c_int64),
        ("text", c_char_p),
        ("logits", POINTER(c_float)),
        ("num_logits", c_size_t),
    )


class _Answer(ctypes.Structure):
    _fields_ = (
        ("size", c_uint32),
        ("text", ctypes.c_void_p),
        ("text_room", c_size_t),
        ("ids", POINTER(c_int64)),
        ("ids_room", c_size_t),
        ("is_cut_off", c_int32),
    )


_DRAW_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, POINTER(_Event), ctypes.c_void_p)
_ASK_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, POINTER(_Word), ctypes.c_void_p)


def find_library() -> Path:
    """Where librf_runtime lies: RF_RUNTIME_LIBRARY names it, rf-export-native brought it, or `make native` built it.

    Raises:
        RFError: Nowhere.
    """
    named = os.environ.get("RF_RUNTIME_LIBRARY")
    installed = _folder_of("rf_export_native")
    places = [Path(named)] if named else [] if installed is None else [installed / "librf_runtime.so"]
    if not named:
        places.append(Path(__file__).resolve().parents[2] / "build/native/librf_runtime.so")
    for place in places:
        if place.is_file():
            return place
    raise RFError(
        f"There is no {' and no '.join(map(str, places))}. Compile the native host: pip install 'rf-export[native]', "
        "then python -m runtime.native.install (in a clone also: make native); or name it in RF_RUNTIME_LIBRARY.",
        "missing",
    )


def find_onnxruntime() -> str | None:
    """The shared library in the installed package onnxruntime, which is not imported; None where there is none."""
    folder = _folder_of("onnxruntime")
    found = sorted(folder.glob("capi/libonnxruntime.so*")) if folder else []
    return str(found[-1]) if found else None


def _folder_of(package: str) -> Path | None:
    """Where a package lies, which is not imported; None where it is not installed."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(folders))) if folders else None


def load_library(path: Path | None = None) -> ctypes.CDLL:
    """Open librf_runtime; raises RFError where there is none, or an older one than this binding is for."""
    library = ctypes.CDLL(str(path or find_library()))
    library.rf_last_error.restype = library.rf_version.restype = c_char_p
    library.rf_api_version.restype = c_uint32
    for name in ("rf_conversation_length", "rf_conversation_read"):
        getattr(library, name).restype = c_size_t
    if library.rf_api_version() < API_VERSION:
        raise RFError("librf_runtime is older than this binding. Build it again: make native", "mismatch")
    return library


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
        options, handle = _OpenOptions(), ctypes.c_void_p()
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
        _check(native, native.rf_open(os.fsencode(path), byref(options), byref(handle)))
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
        _check(self._library, self._library.rf_info(self.handle, None, byref(room)))
        text = ctypes.create_string_buffer(room.value)
        _check(self._library, self._library.rf_info(self.handle, text, byref(room)))
        content: Mapping[str, Any] = json.loads(text.value)
        return content

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text; raises RFError for one that the model could only misread."""
        room = c_size_t()
        encoded = _text(text)
        _check(self._library, self._library.rf_tokenize(self.handle, encoded, None, byref(room)))
        ids = (c_int64 * room.value)()
        _check(self._library, self._library.rf_tokenize(self.handle, encoded, ids, byref(room)))
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
        size = _Size()
        _check(self._library, self._library.rf_measure(self.handle, byref(native), byref(size)))
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
        ids, pictures = np.zeros((count, size.num_rep_tokens), np.int64), _Pictures()
        self._library.rf_pictures_init(byref(pictures))
        pictures.rgb, pictures.rgb_room = _pointer(rgb, c_uint8), rgb.size
        pictures.pixels, pictures.pixels_room = _pointer(pixels, c_float), pixels.size
        pictures.rep_ids, pictures.rep_ids_room = _pointer(ids, c_int64), ids.size
        texts = (_Prompt * count)(*[_prompt(each, kept) for each in prompts])
        with _called(_DRAW_CALLBACK, _draw_event, on_event) as callback:
            status = self._library.rf_draw(
                self.handle, texts, c_size_t(count), byref(native), callback, None, byref(pictures)
            )
        _check(self._library, status)
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
        _check(self._library, self._library.rf_converse(self.handle, byref(handle)))
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
            _check(self._library, status)

    def say(self, text: str) -> None:
        """Add a text that is no question."""
        _check(self._library, self._library.rf_say(self._handle, _text(text), None, c_size_t(0)))

    def rewind(self, length: int) -> None:
        """Go back to when the conversation had `length` tokens."""
        _check(self._library, self._library.rf_rewind(self._handle, c_size_t(length)))

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
        chosen, native = options or AnswerOptions(), _AskOptions()
        self._library.rf_ask_options_init(byref(native))
        native.seed, native.forget = seed, history == "forget"
        native.max_tokens, native.top_k = chosen.max_tokens or 0, chosen.top_k or 0
        native.temperature, native.top_p = chosen.temperature, chosen.top_p
        native.repetition_penalty = chosen.repetition_penalty
        forced = np.array([] if token_ids is None else token_ids, np.int64)
        if token_ids is not None:
            native.forced_ids, native.num_forced_ids = _pointer(forced, c_int64), forced.size
        text, ids, answer = ctypes.create_string_buffer(1 << 20), np.zeros(1 << 16, np.int64), _Answer()
        self._library.rf_answer_init(byref(answer))
        answer.text, answer.text_room = ctypes.cast(text, ctypes.c_void_p), len(text)
        answer.ids, answer.ids_room = _pointer(ids, c_int64), ids.size
        with _called(_ASK_CALLBACK, _word_event, on_word) as callback:
            status = self._library.rf_ask(self._handle, _text(question), byref(native), callback, None, byref(answer))
        _check(self._library, status)
        drawn = ids[: answer.ids_room].tolist()
        return AnswerEvent(question, text.value.decode(), drawn, seed, "length" if answer.is_cut_off else "stop")


def _check(library: ctypes.CDLL, status: int) -> None:
    """Raise what a status means."""
    if status == _OK:
        return
    message = library.rf_last_error().decode("utf-8", "replace")
    if status == _CANCELLED:
        raise DrawingCancelledError
    if status == _NO_MEMORY:
        raise MemoryError(message)
    if status == _FAULT:
        raise RuntimeError(message)
    raise RFError(message, _KINDS.get(status, "input"))


def _draw_options(library: ctypes.CDLL, seed: int, options: GenerationOptions) -> tuple[_DrawOptions, list[Any]]:
    """The struct, and the memory that it points to."""
    native, kept = _DrawOptions(), []
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


def _prompt(prompt: str | Sequence[int], kept: list[Any]) -> _Prompt:
    if isinstance(prompt, str):
        return _Prompt(_text(prompt), None, 0)
    ids = np.array(prompt, np.int64)
    kept.append(ids)
    return _Prompt(None, _pointer(ids, c_int64), ids.size)


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
