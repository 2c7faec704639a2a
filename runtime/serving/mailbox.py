"""Brings what a thread makes, one by one, to an event loop. Knows nothing of what it is."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Executor
from typing import Final, TypeVar

Item = TypeVar("Item")
_END: Final = object()


async def from_thread(
    make: Callable[[], Iterable[Item]], stop: Callable[[], object], pool: Executor
) -> AsyncGenerator[Item, None]:
    """What an iterable gives, which blocks and so runs in a thread of the pool.

    Args:
        make: Makes the iterable, in that thread.
        stop: Called at the end, and where the generator is closed before: makes the iterable end soon.
        pool: Has a thread for it.
    """
    loop = asyncio.get_running_loop()
    mail: asyncio.Queue[object] = asyncio.Queue()

    def post(item: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who waited
            loop.call_soon_threadsafe(mail.put_nowait, item)

    def run() -> None:
        try:
            for item in make():
                post(item)
        except BaseException as error:
            post(_Failure(error))
        else:
            post(_END)

    pool.submit(run)
    try:
        while (item := await mail.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stop()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
