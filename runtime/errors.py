"""The one error class for a user's mistake. Knows nothing of what can go wrong: the message says it."""


class RFError(Exception):
    """Something that the user can put right: a wrong option, a damaged bundle, a full disk.

    The message has three parts: what happened, what was expected, what to do. Commands print it without a
    traceback and exit with 1. A bug in this library is never an `RFError`, so that it keeps its traceback.
    """
