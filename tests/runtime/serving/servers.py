"""`rf-export serve` in a process of its own, and a client that needs no library. Knows nothing of pytest."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from processes import ROOT


class Server:
    """A server that runs; what it writes goes to files in `folder`."""

    def __init__(
        self, bundle: Path, folder: Path, *arguments: Any, python: str = sys.executable, timeout_s: float = 60
    ) -> None:
        self.out, self.err = folder / "out", folder / "err"
        self._slow = folder / "slow"
        command = [
            python,
            Path(__file__).with_name("slow_server.py"),
            "serve",
            bundle,
            "--port",
            "0",
            "--engine",
            "none",
            *arguments,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RF_EXPORT_TEST_SLOW": str(self._slow)}
        environment.pop("RF_EXPORT_API_KEY", None)
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=err, env=environment)
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(r"http://\S+", self.out.read_text())):
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)
        self.url = found[0]
        self.host, self.port = urlsplit(self.url).hostname or "", urlsplit(self.url).port or 0

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = 30) -> int:
        """Ask it to end; returns its exit code."""
        self.process.send_signal(how)
        return self.process.wait(timeout_s)

    def request(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer; a body that is no bytes goes as JSON."""
        headers = {**({} if body is None else {"Content-Type": "application/json"}), **(headers or {})}
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with closing(http.client.HTTPConnection(self.host, self.port, timeout=300)) as connection:
            connection.request(method or ("GET" if body is None else "POST"), path, content, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def json(self, path: str, body: Any = None, **more: Any) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        status, _, content = self.request(path, body, **more)
        return status, json.loads(content)

    def open(self, path: str, body: dict[str, Any]) -> socket.socket:
        """A connection on which a request was sent, and nothing read; closing it is how a client vanishes."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
        connection = socket.create_connection((self.host, self.port), timeout=60)
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return connection

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The process stands still meanwhile: what it was doing is not over, however fast the machine."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Steps take longer meanwhile: drawings of many steps do not end, however fast the machine."""
        self._slow.touch()
        try:
            yield
        finally:
            self._slow.unlink()

    def metric(self, name: str, **labels: str) -> float:
        """A number of /metrics; 0 where nothing was counted yet."""
        shown = "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else ""
        found = re.search(rf"^{re.escape(name + shown)} (\S+)$", self.request("/metrics")[2].decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def in_flight(self) -> int:
        """Pictures that are drawn or wait, and questions, at one look: between two, one may go to the next stage."""
        found = re.findall(r"^rf_in_flight\{.*\} (\S+)$", self.request("/metrics")[2].decode(), re.MULTILINE)
        return int(sum(map(float, found)))

    def wait_for(self, what: Any, timeout_s: float = 30) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.01)


def events(content: bytes) -> list[tuple[str, Any]]:
    """The server-sent events of an answer: name and data."""
    found = []
    for block in content.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if fields:
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found
