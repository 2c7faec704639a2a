"""A browser, and a site with the module, onnxruntime-web and bundles, whose files a test may exchange.

Needs onnxruntime-web, which is fetched from npm's registry once. Knows nothing of what is drawn.
"""

import base64
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
from chromium import launched
from sites import require_library

ROOT: Final = Path(__file__).parents[2]
HOST: Final = ROOT / "runtime/web/host"
HEADERS: Final = {  # the strictest under which it has to work; threads need the page to be isolated
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
KINDS: Final = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}
# What tests call in the page.
PAGE: Final = (
    b"""<!doctype html><meta charset="utf-8"><title>rf-export</title><script type="module" src="/page.js"></script>"""
)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A page that goes away breaks its connections."""


class Site:
    """Serves /page.js, and files below /host, /ort and /<bundle>; `spoilt` has other content for paths, or None.

    A path of `dropped` gets no answer.
    """

    def __init__(self, script: Path) -> None:
        self.spoilt: dict[str, bytes | None] = {}
        self.dropped: set[str] = set()
        self.folders = {"host": HOST, "ort": require_library()}
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = unquote(self.path.partition("?")[0]).lstrip("/")
                if path in site.dropped:
                    return  # without an answer
                content = PAGE if not path else script.read_bytes() if path == "page.js" else site.content(path)
                self.send_response(404 if content is None else 200)
                self.send_header(
                    "Content-Type", KINDS.get(Path(path).suffix, "text/html" if not path else "text/plain")
                )
                self.send_header("Content-Length", str(len(content or b"")))
                if path in site.spoilt:
                    self.send_header("Cache-Control", "max-age=600")
                for name, value in HEADERS.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def content(self, path: str) -> bytes | None:
        if path in self.spoilt:
            return self.spoilt[path]
        folder, _, rest = path.partition("/")
        file = self.folders.get(folder, HOST) / rest
        return file.read_bytes() if folder in self.folders and file.is_file() else None

    def add(self, name: str, bundle: Path) -> str:
        """Serve a bundle under a name; its address."""
        self.folders[name] = bundle
        return f"{self.url}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def opened_page(script: Path) -> Iterator[tuple[Site, Any]]:
    """The site, and a page of it; nothing but the site may be asked, and nothing may go wrong unseen."""
    site = Site(script)
    troubles: list[str] = []
    with launched("--js-flags=--expose-gc") as browser:
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "console", lambda told: troubles.append(told.text) if "Failed to load resource" not in told.text else None
        )
        page.on(
            "request", lambda asked: None if asked.url.startswith((site.url, "blob:")) else troubles.append(asked.url)
        )
        page.goto(site.url)
        page.wait_for_function("window.isReady")
        yield site, page
    site.close()
    assert not troubles, troubles


def array(text: str, kind: Any) -> np.ndarray:
    """What the page sent as base64."""
    return np.frombuffer(base64.b64decode(text), kind)


def in_javascript(options: dict[str, Any]) -> dict[str, Any]:
    """Options by their names in the browser."""
    return {re.sub(r"_(\w)", lambda found: found[1].upper(), name): value for name, value in options.items()}
