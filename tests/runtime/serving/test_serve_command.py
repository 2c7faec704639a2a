"""`rf-export serve` starts, asks for its key, and ends well; nothing that it accepted is lost."""

import signal
import socket
import threading
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from processes import start
from servers import Server

DRAW = "/v1/images/generations"
LONG = {"prompt": "a cup", "steps": 25}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_runs_and_takes_no_more(tiny_bundle: Path, tmp_path: Path, how: signal.Signals) -> None:
    with Server(tiny_bundle, tmp_path) as server:
        found: list[int] = []
        callers = [threading.Thread(target=lambda: found.append(server.request(DRAW, LONG)[0])) for _ in range(6)]
        with server.slow():
            for each in callers:
                each.start()
            server.wait_for(lambda: server.in_flight() == 6)
        server.process.send_signal(how)
        with pytest.raises(OSError):
            while True:
                server.request("/ready")
        for each in callers:
            each.join()
        assert found == [200] * 6
        assert server.process.wait(30) == 0
        assert server.err.read_text() == ""


def test_what_runs_longer_than_the_grace_is_given_up(tiny_bundle: Path, tmp_path: Path) -> None:
    with Server(tiny_bundle, tmp_path, "--grace", 1, "--max-steps", 1000) as server, server.slow():
        held = [server.open(DRAW, {"prompt": "a cup", "steps": 1000}) for _ in range(20)]
        server.wait_for(lambda: server.in_flight() == 20)
        assert server.stop(timeout_s=15) == 0
        for each in held:
            each.close()


def test_a_key_is_asked_for_where_the_api_is(tiny_bundle: Path, tmp_path: Path) -> None:
    with Server(tiny_bundle, tmp_path, "--api-key", "secret") as server:
        for key in ("wrong", "s", "secret2"):
            with pytest.raises(openai.AuthenticationError, match="API key"):
                OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0).models.list()
        assert server.request(DRAW, LONG)[0] == 401
        assert OpenAI(base_url=f"{server.url}/v1", api_key="secret").models.list().data
        for path in ("/", "/health", "/ready", "/metrics"):
            assert server.request(path)[0] == 200


def test_a_port_that_is_taken_is_told(tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        process = start("serve", tiny_bundle, "--port", str(other.getsockname()[1]))
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "is taken by another program. Choose another --port." in told


def test_a_bundle_that_is_replaced_while_it_is_served_disturbs_nobody(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    with Server(bundle, tmp_path) as server:
        before = server.json(DRAW, {"prompt": "a cup"})[1]["data"]
        bundle.rename(tmp_path / "old")
        shutil.copytree(tiny_bundle, bundle)
        shutil.rmtree(tmp_path / "old")
        assert server.json(DRAW, {"prompt": "a cup"})[1]["data"] == before
