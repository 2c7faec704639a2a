"""Runs a long call into a C++ library so that Ctrl-C ends it. Knows nothing of the library.

Python delivers signals to the main thread between two of its instructions, and a callback that raises inside the
library would end the process. So the call runs in a thread of its own, the main thread waits in Python, and a callback
of the library asks whether to go on.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

Cancelled: TypeAlias = threading.Event

_POLL_SECONDS = 0.05


def run_cancellable(call: Callable[[], Any], cancelled: Cancelled) -> Any:
    """Run `call` to its end and return what it returns, or raise what it raises.

    Args:
        call: The long call.
        cancelled: Set when the caller was interrupted; the call should then return soon. It is waited for, so that
            nothing runs on behind the caller's back.

    Raises:
        BaseException: What interrupted the caller, after the call has ended.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="build")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
    except BaseException:
        cancelled.set()
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]
