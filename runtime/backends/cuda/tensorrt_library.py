"""Imports TensorRT or TensorRT-RTX, which have one Python API, and hears what it says.

Knows nothing of engines. With the backend and the builder the only module that touches the library. Nothing here starts
CUDA: a machine without a GPU may import the library and compile ahead of time with TensorRT-RTX.
"""

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeAlias

from runtime.errors import RFError

TensorRTName: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]

_MODULES: Final[dict[TensorRTName, str]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# The parser warns of every int64 input; ours are bound as int64, or as the int32 that TensorRT 8.6 makes of them.
_EXPECTED: Final = ("has Int64 binding", "Your ONNX model has been generated with INT64 weights")

_log = logging.getLogger(__name__)
_messages: "dict[str, Messages]" = {}  # by the name of the module


def import_library(name: TensorRTName) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`.

    Raises:
        ModuleNotFoundError: It is not installed.
        RFError: It is installed, and its shared libraries do not load.
    """
    try:
        module = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError:
        raise
    except (ImportError, OSError, RuntimeError) as error:
        raise RFError(
            f"{name} is installed and does not load: {error}. Expected its shared libraries, of the same version as "
            f"the Python package: install it again with pip install --force-reinstall '{_MODULES[name]}'.",
            "missing",
        ) from error
    if not hasattr(module, "Builder"):
        raise ModuleNotFoundError(f"No module named {_MODULES[name]!r}", name=_MODULES[name])  # an empty folder, a stub
    return module


class Messages:
    """A logger for TensorRT: warnings go to `logging`, the last error is kept for our own message.

    The library keeps the first logger that it is handed and ignores all others, so there is one per process.

    Attributes:
        last_error: What the library complained about last; empty at first.
        logger: To be handed to the library.
    """

    def __init__(self, trt: Any) -> None:
        self.last_error = ""
        self._on_text: Callable[[str], None] | None = None
        outer = self

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # pybind11 wants it spelled out

            def log(self, severity: Any, message: str) -> None:
                outer._hear(severity.name, message)

        self.logger = Logger()

    @contextmanager
    def listening(self, on_text: Callable[[str], None]) -> Iterator[None]:
        """Hand everything that the library says, also what is logged nowhere, to `on_text`; starts without an error."""
        self.last_error = ""
        self._on_text = on_text
        try:
            yield
        finally:
            self._on_text = None

    def _hear(self, severity: str, text: str) -> None:
        if severity in ("INTERNAL_ERROR", "ERROR"):
            self.last_error = text
            _log.info("TensorRT: %s", text)  # the caller raises, with this text
        elif severity == "WARNING" and not any(part in text for part in _EXPECTED):
            _log.warning("TensorRT: %s", text)
        if self._on_text is not None:
            self._on_text(text)


def messages_of(trt: Any) -> Messages:
    """The one logger of a library."""
    return _messages.setdefault(trt.__name__, Messages(trt))
