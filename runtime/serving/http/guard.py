"""What every request passes before a route sees it: who may ask, and how much, and for how long. Knows no route.

- A page of another site may not ask for its visitor: the Origin of a browser must be this server, and where it listens
  on this machine alone, its name must be one of this machine.
- A key, if there is one, is asked for where the API is.
- A body is read as a whole, within limits of size, of time, and of memory for all bodies together. What is too large is
  read and dropped for a while, so that its client hears the answer.
- A client that reads nothing for long is given up.
"""

import hmac
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.serving.http.errors import RefusalError, refusal
from runtime.serving.http.streams import within
from runtime.serving.metrics import Metrics

_SECURITY: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
        "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
_DROPPED: Final = 8  # so many times the limit is read of a body that is too large


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server allows.

    Attributes:
        api_key: What a client has to know; None for nothing.
        hosts: The names that clients may call it by; None for all.
        max_body: Bytes of a body.
        max_bodies: Bytes of all bodies that are there at the same time.
        body_s: Seconds for a body to come.
        send_s: Seconds in which a client has to read on.
    """

    api_key: str | None = None
    hosts: frozenset[str] | None = None
    max_body: int = 32 << 20
    max_bodies: int = 256 << 20
    body_s: float = 60.0
    send_s: float = 60.0


class Guard:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, routes: Collection[str]) -> None:
        self._app, self._limits, self._metrics, self._routes = app, limits, metrics, frozenset(routes)
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        has_begun = False

        async def send_in_time(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                self._count(scope, message["status"])
                MutableHeaders(scope=message).update(_SECURITY)
            try:
                await within(self._limits.send_s, send(message))
            except TimeoutError:
                raise OSError("the client does not read") from None

        body = bytearray()
        try:
            self._require_allowed(scope)
            await self._read(Headers(scope=scope), receive, body)
            # Whoever checks on a server may ask with HEAD: it is GET whose body the server does not send.
            asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await self._app(asked, _again(bytes(body), receive), send_in_time)
        except RefusalError as error:
            await error.response()(scope, receive, send_in_time)
        except OSError:  # the client is gone: nobody is left to tell
            pass
        except Exception as error:
            told = refusal(error)  # writes it to the log
            if not has_begun:
                await told.response()(scope, receive, send_in_time)
        finally:
            self._held -= len(body)

    def _count(self, scope: Scope, status: int) -> None:
        route = path if (path := _path(scope)) in self._routes else "other"
        self._metrics.requests.labels(route, str(status)).inc()

    def _require_allowed(self, scope: Scope) -> None:
        headers, limits = Headers(scope=scope), self._limits
        host = headers.get("host", "")
        if limits.hosts is not None and (urlsplit(f"//{host}").hostname or "") not in limits.hosts:
            raise RefusalError(403, f"This server is not called {host!r}. Call it by the name it was started with.")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RefusalError(403, "Pages of other sites may not use this server. Open the page that it serves.")
        if limits.api_key is None or not _path(scope).startswith("/v1/"):
            return
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), limits.api_key.encode()):
            told = "The API key is missing or wrong. Send the one of this server as: Authorization: Bearer KEY."
            raise RefusalError(401, told, code="invalid_api_key")

    async def _read(self, headers: Headers, receive: Receive, body: bytearray) -> None:
        """Read a body; raises RefusalError where it is too much."""
        limits, too_large = self._limits, self._too_large()
        told = headers.get("content-length", "0")
        is_too_large = told.isdecimal() and int(told[:20]) > limits.max_body
        if is_too_large and "expect" in headers:  # the client waits for leave
            raise too_large
        deadline, dropped, more = time.monotonic() + limits.body_s, 0, True
        while more:
            try:
                message = await within(max(0.0, deadline - time.monotonic()), receive())
            except TimeoutError:
                if is_too_large:
                    break
                raise RefusalError(408, f"The body did not come within {limits.body_s:g} s. Send it again.") from None
            if message["type"] == "http.disconnect":
                raise OSError("the client is gone")
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if is_too_large or len(body) + len(chunk) > limits.max_body:
                is_too_large, dropped = True, dropped + len(chunk)
                more = more and dropped < _DROPPED * limits.max_body
                continue
            if self._held + len(chunk) > limits.max_bodies:
                raise RefusalError(503, "The server has too many bodies to read. Send it later.", retry_after_s=5)
            self._held += len(chunk)
            body += chunk
        if is_too_large:
            raise too_large

    def _too_large(self) -> RefusalError:
        size = self._limits.max_body
        shown = f"{size >> 20} MiB" if size >> 20 else f"{size} bytes"
        return RefusalError(413, f"The body is larger than {shown}. Send smaller or fewer pictures.")


def _path(scope: Scope) -> str:
    """The path below the one that the application is mounted at."""
    path: str = scope["path"]
    return "/" + path.removeprefix(scope.get("root_path", "")).lstrip("/")


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read, and then what else comes."""
    is_read = False

    async def give() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give
