"""The one error class for a user's mistake. Knows nothing of what can go wrong: the message says it."""

_LONGEST = 2000  # characters of a message


class RFError(Exception):
    """Something that the user can put right: a wrong option, a damaged bundle, a full disk.

    The message has three parts: what happened, what was expected, what to do. Commands print it without a
    traceback and exit with 1. A bug in this library is never an `RFError`, so that it keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:  # names and values of a hostile file would fill the terminal and the log
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 4 :]}"
        super().__init__(message)
