"""Sites of `rf-export export-web`, on a plain static server that stops and starts again. Knows no browser."""

import functools
import threading
from pathlib import Path
from typing import Any

import pytest

from rf_export.web import onnxruntime_web, preview
from rf_export.web.site import WEB, SiteOptions, export_site
from runtime.errors import RFError

__all__ = ["WEB", "StaticServer", "damage", "require_library", "write_site"]


def require_library() -> Path:
    """The files of onnxruntime-web; skips the test where they are not to be had."""
    found = _library()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@functools.cache
def _library() -> Path | str:
    """The files, or why there are none: a network that does not answer is waited for once."""
    try:
        return onnxruntime_web.fetch()
    except RFError as error:
        return str(error)


def write_site(bundle: Path, out: Path, **options: Any) -> Path:
    """Export a site; skips the test where that cannot be."""
    require_library()
    return export_site(bundle, out, SiteOptions(**options), lambda *_: None).path


def damage(site: Path, name: str) -> None:
    """Change one byte of a file, and take its packed twin away."""
    content = bytearray((site / name).read_bytes())
    content[len(content) // 2] ^= 1
    (site / name).write_bytes(content)
    (site / f"{name}.gz").unlink(missing_ok=True)


class StaticServer:
    """Serves a folder as it is, always at the same address."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, 0
        self.start()
        self.url = preview.url_of(self._server)

    def start(self) -> None:
        """Take requests."""
        self._server = preview.open_server(self._folder, self._port)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def stop(self) -> None:
        """Be unreachable."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
