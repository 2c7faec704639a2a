"""What a client is told of an error: a status, and a sentence that is meant for it. Knows no route.

What a caller can put right is told as it is. What only the owner of the server can put right, and bugs, are told to the
log; a client learns that it happened.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime.errors import ErrorKind, RFError

log = logging.getLogger("rf_export.serving")

_BROKEN: Final = "The server failed, and its log tells why. Try again later."
_STATUS: Final[dict[ErrorKind, int]] = {"input": 400, "busy": 429, "cancelled": 503, "overflow": 500}
_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
}
GONE: Final = 499  # the client did not wait, as nginx counts it


class _Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of an answer that is an error, in the shape of OpenAI's."""

    error: _Problem


# For a description of routes (OpenAPI).
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorBody, "description": "The request is refused, and this is why."},
    "5XX": {"model": ErrorBody, "description": "The server failed, or stops."},
}


class RefusalError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after_s = status, param, code, retry_after_s
        self._headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of an `ErrorBody`."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        headers = dict(self._headers)
        if self.retry_after_s:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


class ClientGoneError(Exception):
    """The client did not wait for its answer."""


def refusal(error: BaseException, *, retry_after_s: int = 1, is_stopping: bool = False) -> RefusalError:
    """What a client is told of an error."""
    if isinstance(error, RefusalError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_body(error)
    if isinstance(error, HTTPException):
        return RefusalError(error.status_code, f"{error.detail}.", headers=error.headers)  # Allow
    if not isinstance(error, RFError) or error.kind not in _STATUS:
        log.error("a request failed", exc_info=error)
        return RefusalError(500, _BROKEN)
    if error.kind != "busy":
        return RefusalError(_STATUS[error.kind], error.elsewhere, code=error.kind)
    if is_stopping:
        return RefusalError(503, "The server is stopping. Ask again later.", code="stopping", retry_after_s=10)
    told = f"The server is busy: as many requests wait as it takes. Ask again in {retry_after_s} s."
    return RefusalError(429, told, code="queue_full", retry_after_s=retry_after_s)


def _of_body(error: RequestValidationError) -> RefusalError:
    """The first thing that is wrong with a body, in a sentence."""
    first = error.errors()[0]
    name = ".".join(str(each) for each in first["loc"] if each != "body")
    reason, told = first["type"], first["msg"]
    if reason == "json_invalid":
        return RefusalError(400, f"The body is no JSON: {first.get('ctx', {}).get('error', told)}.")
    if not name and reason in ("missing", "model_attributes_type", "model_type"):
        return RefusalError(400, "The body must be a JSON object. Send it with Content-Type: application/json.")
    if reason == "extra_forbidden":
        told = f"{name} is no parameter of this request. Leave it out."
    elif reason == "missing":
        told = f"{name} is missing."
    elif reason == "value_error":
        told = f"{name}: {first['ctx']['error']}" if name else str(first["ctx"]["error"])
    else:
        told = f"{name}: {told[:1].lower()}{told[1:]}, got {_short(first['input'])}."
    return RefusalError(400, told, param=name or None)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def explain(request: Request, error: Exception) -> RefusalError:
    """The same, with what the server of this request advises."""
    drawer = request.app.state.drawer
    return refusal(error, retry_after_s=drawer.retry_after_s, is_stopping=drawer.state == "stopping")


async def respond(request: Request, error: Exception) -> Response:
    """The answer to a request that raised an error; for `FastAPI.add_exception_handler`."""
    return Response(status_code=GONE) if isinstance(error, ClientGoneError) else explain(request, error).response()
