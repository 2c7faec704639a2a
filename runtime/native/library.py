"""Finds librf_runtime and ONNX Runtime, opens the one, and raises what its statuses mean. Knows no struct."""

import ctypes
import importlib.util
import os
from ctypes import c_char_p, c_size_t, c_uint32
from pathlib import Path
from typing import Final

from runtime.errors import DrawingCancelledError, ErrorKind, RFError

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


def check(library: ctypes.CDLL, status: int) -> None:
    """Raise what a status means: RFError, DrawingCancelledError, MemoryError, RuntimeError."""
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
