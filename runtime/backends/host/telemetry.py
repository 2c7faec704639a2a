"""Keeps ONNX Runtime's telemetry off, unless who runs the program has allowed it. Imports no library.

From 1.32 on the official builds write a device id and a database below the user's home, and look up and call a host of
their maker while a graph runs. A device at the edge has to stay silent; ORT_DISABLE_TELEMETRY=0 allows it.
"""

import os
import sys
from typing import Final

VARIABLE: Final = "ORT_DISABLE_TELEMETRY"
_TRUE: Final = ("1", "true", "yes", "on")  # what ONNX Runtime 1.32 takes for "disable"; everything else leaves it on


def switch_off() -> None:
    """To be called before onnxruntime is imported: by then its telemetry runs.

    Where the program has imported it already, what may still be switched off is: the library goes on to tell that it
    was started, and nothing about graphs and runs.
    """
    os.environ.setdefault(VARIABLE, "1")
    disable = getattr(sys.modules.get("onnxruntime"), "disable_telemetry_events", None)
    if is_off() and disable is not None:
        disable()


def is_off() -> bool:
    """Whether an onnxruntime that is imported from now on is silent."""
    return os.environ.get(VARIABLE, "1").strip().lower() in _TRUE
