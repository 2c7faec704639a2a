"""Answers that come bit by bit, as server-sent events, and clients that do not wait. Knows nothing of what is sent."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.serving.http.errors import ClientGoneError, RefusalError

Result = TypeVar("Result")

# For a description of routes (OpenAPI) that answer at once, or with `stream` bit by bit.
AT_ONCE_OR_STREAMED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}}
}


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a work that is cancelled where the client goes; raises ClientGoneError then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, gone):
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def within(seconds: float, work: Awaitable[Result]) -> Result:
    """The result of a work, or TimeoutError.

    As `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes together with the result: then
    nobody would stop what a client has left.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # told, also where nobody waits any more
    try:
        if not (await asyncio.wait((task,), timeout=seconds))[0]:
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def server_sent(data: Any, event: str | None = None) -> bytes:
    """An event; data that is no text becomes JSON."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {text}\n\n".encode()


class EventStream(Response):
    """A response of events; an error in their midst becomes the last one.

    Args:
        items: What they are made of; closed at the end, and where the client goes.
        render: The events of an item.
        explain: What a client is told of an error.
    """

    def __init__(
        self,
        items: AsyncGenerator[Any, None],
        render: Callable[[Any], Iterable[bytes]],
        explain: Callable[[Exception], RefusalError],
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._items, self._render, self._explain = items, render, explain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with contextlib.suppress(ClientGoneError):
            await unless_gone(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        async with contextlib.aclosing(self._items) as items:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for item in items:
                    for event in self._render(item):
                        await send({"type": "http.response.body", "body": event, "more_body": True})
            except OSError:  # nobody reads
                raise
            except Exception as error:
                event = server_sent(self._explain(error).body, "error")
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
