"""Draws pictures with an exported bundle: the part of rf-export that ships, without torch.

    from runtime import Pipeline
    picture = Pipeline.load("bundle").draw("a red car", seed=7)

Importing this package loads nothing: each name is imported when it is first used, and the library that runs
graphs when a pipeline is loaded.

Code map: signature (what goes in and out of graphs) -> manifest, bundle, engine (files) -> backends
(libraries that run graphs) -> cache, stages, stage_runner, request, pipeline (drawing) -> handle, batches, dispatch,
scheduler (drawing for many callers); noise, schedule, options, tokenizer, events, png, doctor stand alone. On a GPU:
backends/tensorrt, backends/ort_cuda -> backends/device_stages -> backends/device_memory, backends/cuda_device ->
backends/cuda_driver.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from runtime.bundle import Bundle, open_bundle
    from runtime.errors import RFError
    from runtime.events import Event, PictureEvent, StepEvent, TokenEvent
    from runtime.handle import DrawingHandle
    from runtime.options import GenerationOptions
    from runtime.pipeline import Pipeline
    from runtime.png import save_png
    from runtime.scheduler import Scheduler

__all__ = [
    "Bundle",
    "DrawingHandle",
    "Event",
    "GenerationOptions",
    "PictureEvent",
    "Pipeline",
    "RFError",
    "Scheduler",
    "StepEvent",
    "TokenEvent",
    "open_bundle",
    "save_png",
]

_HOMES: Final = {
    "Bundle": "bundle",
    "DrawingHandle": "handle",
    "Event": "events",
    "GenerationOptions": "options",
    "PictureEvent": "events",
    "Pipeline": "pipeline",
    "RFError": "errors",
    "Scheduler": "scheduler",
    "StepEvent": "events",
    "TokenEvent": "events",
    "open_bundle": "bundle",
    "save_png": "png",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
