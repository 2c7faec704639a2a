"""The routes that tell what is served, and how it is: /v1/models, /health, /ready, /metrics."""

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from runtime.serving.http.errors import RefusalError
from runtime.serving.metrics import CONTENT_TYPE

router: Final = APIRouter()
_STATE: Final = {"content": {"application/json": {"schema": {"type": "object", "required": ["status"]}}}}
_STATES: Final[dict[int | str, dict[str, Any]]] = {200: _STATE, 503: {**_STATE, "description": "It does not."}}


def require_model(request: Request, name: str | None) -> None:
    """Refuse a request for another model than the one that is here."""
    served = request.app.state.model_name
    if name is not None and name != served:
        raise RefusalError(
            404, f"There is no model {name[:60]!r} here, but {served!r}.", param="model", code="model_not_found"
        )


def _model(request: Request) -> dict[str, Any]:
    state = request.app.state
    return {"id": state.model_name, "object": "model", "created": state.started, "owned_by": "rf-export", **state.info}


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model; beside OpenAI's fields what it can do: sizes, steps, words."""
    return {"object": "list", "data": [_model(request)]}


@router.get("/v1/models/{name}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """The model of that name."""
    require_model(request, name)
    return _model(request)


@router.get("/health", response_model=None, responses=_STATES)
async def health(request: Request) -> Response:
    """200 while the process is sound: otherwise it is to be started again."""
    state = request.app.state.drawer.state
    return JSONResponse({"status": state}, 503 if state == "broken" else 200)


@router.get("/ready", response_model=None, responses=_STATES)
async def ready(request: Request) -> Response:
    """200 while it takes work."""
    state = request.app.state.drawer.state
    return JSONResponse({"status": state}, 200 if state == "ready" else 503)


@router.get("/metrics", response_model=None, response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """What was done, for Prometheus."""
    return Response(await request.app.state.drawer.metrics_text(), headers={"Content-Type": CONTENT_TYPE})
