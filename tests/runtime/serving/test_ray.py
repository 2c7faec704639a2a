"""The same server on Ray, where that is installed: same pictures, and a replica that is killed loses nothing.

RF_EXPORT_TEST_RAY=/path/of/an/environment with `rf-export[ort,ray]` runs `pytest -m slow` with it; the tests come in
the order of the life of one cluster, and the last one ends it.
"""

import base64
import http.client
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from openai import BadRequestError, OpenAI
from PIL import Image
from processes import ROOT
from servers import Server, events

from runtime import GenerationOptions, Pipeline

ENVIRONMENT = os.environ.get("RF_EXPORT_TEST_RAY")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(ENVIRONMENT is None, reason="RF_EXPORT_TEST_RAY names no environment with ray[serve]"),
]
DRAW = "/v1/images/generations"
LONG = {"prompt": "a cup", "steps": 1000, "size": "32x32", "seed": 3}
PATIENCE_S = 300


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cluster of this machine, with a temporary folder of its own."""
    python = str(Path(str(ENVIRONMENT)) / "bin/python")
    arguments = ("--ray", "--max-steps", 1000, "--replicas", 2, "--max-batch", 2, "--max-queue", 4)
    with Server(tiny_bundle, tmp_path_factory.mktemp("ray"), *arguments, python=python, timeout_s=600) as server:
        yield server
        if server.process.poll() is None:
            server.stop(timeout_s=PATIENCE_S)


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, num_threads=1, engine="none")


def pixels(text: str | None) -> np.ndarray:
    with Image.open(BytesIO(base64.b64decode(text or ""))) as image:
        return np.asarray(image).astype(int)


def total(server: Server, name: str, label: str = "") -> float:
    """A number of /metrics over all processes."""
    text = server.request("/metrics")[2].decode()
    found = re.findall(rf"^{name}\{{([^}}]*)\}} (\S+)$", text, re.MULTILINE)
    return sum(float(number) for labels, number in found if label in labels)


def drawing(server: Server) -> float:
    return sum(total(server, "rf_in_flight", f'stage="{stage}"') for stage in ("queued", "tokens", "pixels"))


def processes_of(server: Server, deployment: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(server.process.pid).children(recursive=True)
        if re.search(rf"ServeReplica:.*:{deployment}", " ".join(process.cmdline()))
    ]


def test_openais_client_gets_the_pictures_and_answers_of_the_pipeline(server: Server, pipeline: Pipeline) -> None:
    native = pipeline.draw("a red car", seed=7)
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        drawn = client.images.generate(prompt="a red car", n=2, extra_body={"seed": 7})
        assert (pixels((drawn.data or [])[0].b64_json) == native).all()
        *partial, last = list(
            client.images.generate(prompt="a red car", stream=True, partial_images=3, extra_body={"seed": 7})
        )
        assert [each.type for each in partial] == ["image_generation.partial_image"] * 3
        assert (pixels(last.b64_json) == native).all()
        with pytest.raises(BadRequestError, match="elephant"):
            client.images.generate(prompt="a red elephant")
        url = f"data:image/png;base64,{(drawn.data or [])[0].b64_json}"
        messages: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        said = client.chat.completions.create(model="rf-export", messages=messages)
        assert said.choices[0].message.content == pipeline.understand(native.astype(np.uint8))
    assert server.request("/")[0] == server.request("/ready")[0] == 200
    assert total(server, "rf_pictures_total") == 3
    assert total(server, "rf_answers_total") == 1


def test_clients_that_vanish_leave_no_work_behind(server: Server) -> None:
    connections = [server.open(DRAW, {**LONG, "stream": index > 0}) for index in range(3)]
    server.wait_for(lambda: drawing(server) == 3, PATIENCE_S)
    cancelled = total(server, "rf_cancelled_total", "picture")
    for each in connections:
        each.close()
    server.wait_for(lambda: total(server, "rf_cancelled_total", "picture") == cancelled + 3, PATIENCE_S)
    assert drawing(server) == total(server, "rf_in_flight", "accepted") == 0
    steps = total(server, "rf_step_seconds_count", "pixels")
    time.sleep(0.5)
    assert total(server, "rf_step_seconds_count", "pixels") <= steps + 4, "two steps of two replicas"


def test_what_is_more_than_the_queue_is_a_rate_limit(server: Server) -> None:
    held = [server.open(DRAW, LONG) for _ in range(2 * 4 + 4 + 20)]  # two replicas with two batches each, the queue
    try:
        server.wait_for(lambda: total(server, "rf_http_requests_total", 'status="429"') > 0, PATIENCE_S)
    finally:
        for each in held:
            each.close()
    server.wait_for(lambda: total(server, "rf_in_flight", "accepted") == 0, PATIENCE_S)


def test_a_replica_that_is_killed_while_it_draws_loses_nothing(server: Server, pipeline: Pipeline) -> None:
    """Each client sees every event once, and the picture that the pipeline draws."""
    *_, native = pipeline.generate(["a cup"], seed=3, options=GenerationOptions(num_steps=1000, height=32, width=32))
    begun, found = threading.Barrier(4), []
    replicas = processes_of(server, "drawer")  # looked up first: drawings do not wait for that

    def draw() -> None:
        content = b""
        with closing(server.open(DRAW, {**LONG, "stream": True, "progress": True})) as connection:
            connection.settimeout(PATIENCE_S)
            while b'"pixels"' not in content:
                content += connection.recv(65536)
            begun.wait(PATIENCE_S)
            while b"\r\n0\r\n\r\n" not in content[-20:]:
                content += connection.recv(65536)
        found.append(content)

    callers = [threading.Thread(target=draw) for _ in range(3)]
    for each in callers:
        each.start()
    begun.wait(PATIENCE_S)
    for replica in replicas:
        replica.send_signal(signal.SIGKILL)
    for each in callers:
        each.join(PATIENCE_S)
    assert len(replicas) >= 1 and len(found) == 3
    for content in found:
        told = events(dechunked(content))
        steps = [data["step"] for name, data in told if name == "rf.progress" and data["stage"] == "pixels"]
        assert steps == list(range(1, 1001))
        (name, last) = told[-1]
        assert name == "image_generation.completed"
        assert [code for row in last["rep_tokens"]["rep_ids"] for code in row] == native.rep_ids.tolist()
        assert np.abs(pixels(last["b64_json"]) - native.picture).max() <= 1
    server.wait_for(lambda: total(server, "rf_pictures_total") > 0)  # some were drawn by replicas that are there now


def dechunked(content: bytes) -> bytes:
    head, _, rest = content.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0]
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def test_a_front_that_is_killed_is_back_and_its_requests_are_told(server: Server) -> None:
    """Whoever waited for an answer of that front hears of it, at once."""
    connection = server.open(DRAW, LONG)
    server.wait_for(lambda: drawing(server) == 1, PATIENCE_S)
    for front in processes_of(server, "front"):
        front.send_signal(signal.SIGKILL)
    with closing(connection):
        connection.settimeout(PATIENCE_S)
        head = connection.recv(100)
    assert not head or head.startswith(b"HTTP/1.1 5")
    server.wait_for(lambda: server.request("/ready")[0] == 200, PATIENCE_S)
    server.wait_for(lambda: drawing(server) == 0, PATIENCE_S)


def test_a_signal_finishes_what_runs(server: Server) -> None:
    found: list[int] = []
    callers = [threading.Thread(target=lambda: found.append(server.request(DRAW, LONG)[0])) for _ in range(3)]
    for each in callers:
        each.start()
    server.wait_for(lambda: drawing(server) == 3, PATIENCE_S)
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert server.stop(timeout_s=PATIENCE_S) == 0
    for each in callers:
        each.join(PATIENCE_S)
    assert found == [200] * 3
    _, alive = psutil.wait_procs(children, 30)
    assert not alive


def status(port: int, path: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:  # nobody listens yet
            return 0


CONFIG = """
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: cars
    route_prefix: /cars
    import_path: runtime.serving.ray_app:app
    args: {{bundle: {bundle}, model_name: cars}}
  - name: birds
    route_prefix: /birds
    import_path: runtime.serving.ray_app:app
    args: {{bundle: {bundle}, model_name: birds, api_key: secret}}
"""


def test_a_config_file_serves_several_bundles_in_one_cluster(
    tiny_bundle: Path, tmp_path: Path, pipeline: Pipeline
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "serve.yaml"
    config.write_text(CONFIG.format(port=port, bundle=tiny_bundle))
    log = (tmp_path / "log").open("wb")
    patience = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    command = [Path(str(ENVIRONMENT)) / "bin/serve", "run", config]
    process = subprocess.Popen(command, env={**os.environ, **patience}, stdout=log, stderr=log, cwd=ROOT)
    try:
        deadline = time.monotonic() + 600
        while [status(port, f"/{name}/ready") for name in ("cars", "birds")] != [200, 200]:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        native = pipeline.draw("a red car", seed=7)
        for name, key in (("cars", "none"), ("birds", "secret")):
            url = f"http://127.0.0.1:{port}/{name}/v1"
            with OpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE_S) as client:
                assert [each.id for each in client.models.list().data] == [name]
                drawn = client.images.generate(prompt="a red car", extra_body={"seed": 7})
                assert (pixels((drawn.data or [])[0].b64_json) == native).all()
        assert [status(port, path) for path in ("/cars/", "/birds/v1/models", "/nothing")] == [200, 401, 404]
    finally:
        process.send_signal(signal.SIGINT)
        with closing(log):
            process.wait(PATIENCE_S)
