"""The one error class for what a user can put right. Knows nothing of what can go wrong: the message says it."""

from concurrent.futures import CancelledError
from typing import Final, Literal, TypeAlias

ErrorKind: TypeAlias = Literal["input", "damaged", "mismatch", "missing", "busy", "cancelled", "overflow"]

_LONGEST: Final = 2000  # characters of a message


class RFError(Exception):
    """Something that the user can put right: a wrong option, a damaged bundle, a full disk.

    The message has three parts: what happened, what was expected, what to do. Commands print it without a
    traceback and exit with 1. A bug in this library is never an `RFError`, so that it keeps its traceback.

    Attributes:
        kind: What a host may decide by, without reading the message. "input": a wrong prompt, option or file of the
            caller's. "damaged": a file of a bundle, engine or checkpoint is not what it has to be. "mismatch": sound
            parts that do not belong together, such as an engine of another device. "missing": a package, driver or
            device is not there. "busy": the same call may succeed later. "cancelled": somebody gave it up. "overflow":
            the numbers left the range of the precision.
        elsewhere: The message for whoever has no command line of ours, such as the client of a server.
    """

    def __init__(self, message: str, kind: ErrorKind = "input", *, elsewhere: str | None = None) -> None:
        super().__init__(_short(message))
        self.kind: ErrorKind = kind
        self.elsewhere = _short(message if elsewhere is None else elsewhere)


def _short(message: str) -> str:
    if len(message) <= _LONGEST:
        return message
    # Names and values of a hostile file would fill the terminal and the log.
    return f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 4 :]}"


class DrawingCancelledError(RFError, CancelledError):
    """A drawing was given up before its picture was there; `concurrent.futures.CancelledError` too."""

    def __init__(self) -> None:
        super().__init__("The drawing was cancelled before its picture was there. Submit it again.", "cancelled")
