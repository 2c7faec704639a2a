"""What runs in Triton's Python backend: requests in, previews and pictures out, on a scheduler.

    in    PROMPT the text · SEED uint64 · OPTIONS a JSON object: what GenerationOptions has, and "previews"
    out   PNG a file · PICTURE uint8 [height, width, 3] · REP_IDS int64 [N], empty for a preview
          STEP int32 [2]: after how many steps, and of how many; 0, 0 for the picture itself

Only what a request asks for is made. Triton gives the module that speaks with it to its own interpreter alone, so it is
imported when a model is made. Knows nothing of HTTP.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from runtime.errors import RFError
from runtime.events import PictureEvent, StepEvent, to_picture
from runtime.options import GenerationOptions
from runtime.pictures.png import encode_png
from runtime.pipeline import Pipeline
from runtime.scheduling.handle import DrawingHandle
from runtime.scheduling.scheduler import Scheduler
from runtime.serving.orders import preview_steps
from runtime.signature import Precision

_NOTHING: Final = np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a bundle is served, as the repository has it."""

    bundle: str
    precision: Precision = "fp32"
    backend: str = "ort"
    threads: int = 1
    max_batch: int = 8
    max_queue: int = 64
    allow_unverified: bool = False


class TritonPythonModel:
    """A model as Triton calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle."""
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        told = json.loads(args["model_config"])["parameters"]["rf_export"]["string_value"]
        settings = Settings(**json.loads(told))
        pipeline = Pipeline.load(
            settings.bundle,
            settings.precision,
            settings.backend,
            settings.threads,
            allow_unverified=settings.allow_unverified,
        )
        self._scheduler = Scheduler(pipeline, max_batch=settings.max_batch, max_queue=settings.max_queue)
        self._waiters = ThreadPoolExecutor(2 * settings.max_batch + settings.max_queue, "rf-waiter")

    def execute(self, requests: Sequence[Any]) -> None:
        """Draw; the answers are sent as they come."""
        for request in requests:
            self._waiters.submit(self._serve, request, request.get_response_sender())

    def finalize(self) -> None:
        """Finish what runs."""
        self._scheduler.close()
        self._waiters.shutdown()

    def _serve(self, request: Any, sender: Any) -> None:
        triton = self._triton
        try:
            for response in self._responses(request, sender):
                sender.send(response)
        except RFError as error:
            wrong = triton.TritonError.UNAVAILABLE if error.kind == "busy" else triton.TritonError.INVALID_ARG
            sender.send(triton.InferenceResponse(error=triton.TritonError(error.elsewhere, wrong)))
        except Exception as error:
            triton.Logger.log_error(f"rf-export: {error!r}")
            sender.send(triton.InferenceResponse(error=triton.TritonError("The model failed; see the server's log.")))
        finally:
            sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _responses(self, request: Any, sender: Any) -> Iterator[Any]:
        wanted = request.requested_output_names()
        options = _options(self._given(request, "OPTIONS", b"{}"))
        previews = options.pop("previews", 0)
        if not isinstance(previews, int) or previews < 0:
            raise RFError(f"previews must be a whole number >= 0, got {previews!r}.")
        handle = self._scheduler.submit(
            _text(self._given(request, "PROMPT", b"")),
            seed=int(self._given(request, "SEED", 0)),
            options=_generation_options(options),
            reports="all" if previews else "picture",
        )
        try:
            yield from self._events(handle, previews, wanted, sender)
        finally:
            handle.cancel()

    def _events(self, handle: DrawingHandle, previews: int, wanted: Sequence[str], sender: Any) -> Iterator[Any]:
        shown = preview_steps(previews, handle.request.plan.num_steps) if previews else []
        for event in handle:
            if sender.is_cancelled():
                return
            if isinstance(event, StepEvent) and event.step + 1 in shown:
                place = event.step + 1, event.num_steps
                yield self._response(wanted, to_picture(event.x_pred[0]), _NOTHING, place)
            elif isinstance(event, PictureEvent):
                yield self._response(wanted, event.picture, event.rep_ids, (0, 0))

    def _given(self, request: Any, name: str, default: Any) -> Any:
        tensor = self._triton.get_input_tensor_by_name(request, name)
        return default if tensor is None else tensor.as_numpy().ravel()[0]

    def _response(self, wanted: Sequence[str], picture: Any, rep_ids: Any, step: tuple[int, int]) -> Any:
        make: dict[str, Callable[[], Any]] = {
            "PNG": lambda: np.array([encode_png(picture)], object),
            "PICTURE": lambda: picture,
            "REP_IDS": lambda: np.asarray(rep_ids, np.int64),
            "STEP": lambda: np.array(step, np.int32),
        }
        return self._triton.InferenceResponse([self._triton.Tensor(name, make[name]()) for name in wanted])


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RFError("The text is not UTF-8. Encode it so.") from None


def _options(value: bytes) -> dict[str, Any]:
    try:
        options = json.loads(value)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise RFError('OPTIONS must be a JSON object such as {"num_steps": 10, "previews": 3}.')
    return options


def _generation_options(given: dict[str, Any]) -> GenerationOptions:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RFError(f"{name} must be a number, got {value!r}.")
    try:
        return GenerationOptions(**given)
    except TypeError:
        known = ", ".join(GenerationOptions.__dataclass_fields__)
        raise RFError(f"OPTIONS may have: previews, {known}; got {', '.join(given)}.") from None
