"""Runs the application on a socket until it is told to stop. Knows no route.

SIGTERM or SIGINT: no more connections are taken, what was accepted is finished, then the process ends. A second SIGINT
ends it at once.
"""

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from fastapi import FastAPI

from runtime.errors import RFError

_BACKLOG: Final = 2048
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class _Server(uvicorn.Server):
    """Ends well after a signal: uvicorn would raise it again."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for each in signals:
            loop.add_signal_handler(each, self.handle_exit, each, None)
        try:
            yield
        finally:
            for each in signals:
                loop.remove_signal_handler(each)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell it."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; raises RFError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RFError(f"Port {port} of {host} is taken by another program. Choose another --port.") from error
        raise RFError(f"{host}:{port} cannot be listened on ({error.strerror or error}). Choose another.") from error


def url_of(listening: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(app: FastAPI, listening: socket.socket, *, grace_s: int, on_ready: Callable[[], None]) -> None:
    """Serve until a signal; raises RFError where it does not start.

    Args:
        app: The application.
        listening: Where clients connect.
        grace_s: Seconds for what runs to end after the signal.
        on_ready: Called as soon as work is taken.
    """
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace_s,
        ws="none",
    )
    server = _Server(config, on_ready)
    asyncio.run(server.serve([listening]))
    if not server.started:
        raise RFError("The server did not start; the lines above tell why.", "damaged")
