"""Draws and reads pictures with an exported bundle: the part of rf-export that ships, without torch.

    from runtime import Pipeline
    pipeline = Pipeline.load("bundle")
    picture = pipeline.draw("a red car", seed=7)
    caption = pipeline.understand(picture)

Importing this package loads nothing: each name is imported when it is first used, and the library that runs
graphs when a pipeline is loaded.

Code map, from what knows least to what knows most. Alone: errors, events, noise, schedule, options, signature (what
goes in and out of graphs), tokenizer. backends: interface (what a backend is), host (ONNX Runtime on a CPU: cache,
stages, text), cuda (TensorRT and ONNX Runtime on a GPU: driver, memory, device, stages, text). bundle: manifest,
folder, engine, verdict (files). pictures: load, png, token_file. loading, request, pipeline (drawing);
understanding: conversation, answers. scheduling: scheduler, dispatch, batches, handle (many callers). commands: those
that ship, and what they print. serving: all of it over a network; web/ is its page.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from runtime.bundle.folder import Bundle, open_bundle
    from runtime.errors import RFError
    from runtime.events import AnswerEvent, Event, PictureEvent, StepEvent, TokenEvent, WordEvent
    from runtime.options import AnswerOptions, GenerationOptions, Plan
    from runtime.pictures.png import save_png
    from runtime.pipeline import Pipeline
    from runtime.scheduling.handle import DrawingHandle
    from runtime.scheduling.scheduler import Scheduler
    from runtime.understanding.conversation import Conversation

__all__ = [
    "AnswerEvent",
    "AnswerOptions",
    "Bundle",
    "Conversation",
    "DrawingHandle",
    "Event",
    "GenerationOptions",
    "PictureEvent",
    "Pipeline",
    "Plan",
    "RFError",
    "Scheduler",
    "StepEvent",
    "TokenEvent",
    "WordEvent",
    "open_bundle",
    "save_png",
]

_HOMES: Final = {
    "AnswerEvent": "events",
    "AnswerOptions": "options",
    "Bundle": "bundle.folder",
    "Conversation": "understanding.conversation",
    "DrawingHandle": "scheduling.handle",
    "Event": "events",
    "GenerationOptions": "options",
    "PictureEvent": "events",
    "Pipeline": "pipeline",
    "Plan": "options",
    "RFError": "errors",
    "Scheduler": "scheduling.scheduler",
    "StepEvent": "events",
    "TokenEvent": "events",
    "WordEvent": "events",
    "open_bundle": "bundle.folder",
    "save_png": "pictures.png",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
