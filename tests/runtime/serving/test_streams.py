"""What is given up is given up, at whatever moment that is said."""

import asyncio

import pytest

from runtime.serving.http.streams import within


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
