"""What is given up is given up, at whatever moment that is said."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from runtime.serving.http.errors import refusal
from runtime.serving.http.guard import Guard, Limits
from runtime.serving.http.streams import EventStream, server_sent, within
from runtime.serving.metrics import Metrics


@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_is_heard_also_when_the_result_comes_at_the_same_time(turns: int) -> None:
    async def run() -> None:
        result: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(within(60, result))
        await asyncio.sleep(0.001)
        result.set_result(None)
        for _ in range(turns):
            await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())


def test_what_takes_too_long_is_cancelled() -> None:
    async def run() -> bool:
        task = asyncio.ensure_future(asyncio.sleep(60))
        with pytest.raises(TimeoutError):
            await within(0.001, task)
        await asyncio.sleep(0)
        return task.cancelled()

    assert asyncio.run(run())


def test_a_client_that_reads_nothing_for_long_is_given_up() -> None:
    sent, closed = [], []

    async def items() -> AsyncGenerator[int, None]:
        try:
            for number in range(1000):
                yield number
        finally:
            closed.append(True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await EventStream(items(), lambda item: [server_sent(item)], refusal)(scope, receive, send)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0 if not sent else 60)
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if len(sent) > 3:  # buffers are full
            await asyncio.sleep(60)

    guard = Guard(app, Limits(send_s=0.01), Metrics(), [])
    asyncio.run(guard({"type": "http", "path": "/", "method": "GET", "headers": []}, receive, send))
    assert len(sent) == 4 and closed == [True]
