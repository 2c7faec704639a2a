"""An application below a path, and numbers of several processes: what a cluster needs, and no cluster."""

import asyncio
from typing import Any

import pytest

from runtime.serving.http.guard import Guard, Limits
from runtime.serving.metrics import Metrics, merged


@pytest.mark.parametrize("root", ["", "/", "/cars", "/v1"])
def test_a_key_is_asked_for_wherever_the_application_is_mounted(root: str) -> None:
    metrics, found = Metrics(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        found.append(message.get("status"))

    guard = Guard(app, Limits(api_key="secret"), metrics, ["/v1/models", "/ready"])
    prefix = root.rstrip("/")
    for path in ("/v1/models", "/ready"):
        scope = {"type": "http", "method": "GET", "path": prefix + path, "root_path": root, "headers": []}
        asyncio.run(guard(scope, receive, send))
    assert [status for status in found if status] == [401, 200]
    told = metrics.text().decode()
    assert 'rf_http_requests_total{route="/v1/models",status="401"} 1.0' in told
    assert 'rf_http_requests_total{route="/ready",status="200"} 1.0' in told


def test_numbers_of_several_processes_are_told_apart() -> None:
    first, second = Metrics(), Metrics()
    first.pictures.inc(3)
    second.pictures.inc()
    second.on_step("pixels", 4, 0.003)
    told = merged([("a", first.text()), ("b", second.text())]).decode().splitlines()
    assert told.count("# TYPE rf_pictures_total counter") == 1
    assert {'rf_pictures_total{process="a"} 3.0', 'rf_pictures_total{process="b"} 1.0'} <= set(told)
    assert 'rf_batch_size_bucket{le="4.0",process="b",stage="pixels"} 1.0' in told
    assert 'rf_batch_size_bucket{le="2.0",process="b",stage="pixels"} 0.0' in told
