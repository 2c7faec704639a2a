"""Serves an exported site on this machine, to look at it. Knows nothing of what is in it; no server for others."""

import contextlib
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from runtime.errors import RFError

ADDRESS: Final = "127.0.0.1"
_KINDS: Final = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


class _Handler(SimpleHTTPRequestHandler):
    def guess_type(self, path: Any) -> str:
        """The kind of a file, whatever the system's own table has."""
        return _KINDS.get(Path(path).suffix) or super().guess_type(path)

    def log_message(self, *_: Any) -> None:
        """Tell nothing."""


def open_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server that is bound and does not run yet; port 0 takes a free one. Raises RFError where it is taken."""
    try:
        return ThreadingHTTPServer((ADDRESS, port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise RFError(f"Port {port} cannot be listened on ({error.strerror}). Choose another --port.") from error


def url_of(server: ThreadingHTTPServer) -> str:
    """Where a browser finds it."""
    return f"http://{ADDRESS}:{server.server_port}/"


def serve(server: ThreadingHTTPServer, on_ready: Callable[[], None]) -> None:
    """Serve until Ctrl-C."""
    on_ready()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
