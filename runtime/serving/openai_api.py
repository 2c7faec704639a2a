"""The application: OpenAI's API over a drawer, the page that uses it, and what guards both.

Knows nothing of sockets and processes: server.py runs it, and so may any ASGI server.
"""

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.staticfiles import StaticFiles
from starlette.types import ExceptionHandler, Scope

from runtime.errors import RFError
from runtime.serving.drawer import DrawsAndAnswers
from runtime.serving.http import chat, images, models
from runtime.serving.http.errors import ERRORS, ClientGoneError, RefusalError, respond
from runtime.serving.http.guard import Guard, Limits

WEB: Final = Path(__file__).parents[1] / "web"
_ROUTERS: Final = (images.router, chat.router, models.router)
_ERRORS: Final = (RFError, RefusalError, ClientGoneError, RequestValidationError, HTTPException)


class _Page(StaticFiles):
    """The page's files. Where an address is the API's, and only its method is not, that is told."""

    def __init__(self, routes: Iterable[APIRoute]) -> None:
        super().__init__(directory=WEB, html=True)
        self._routes = tuple(routes)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file at a path below this one."""
        for route in self._routes:
            if route.matches(scope)[0] is Match.PARTIAL:
                methods = route.methods or set()
                methods = methods | {"HEAD"} if "GET" in methods else methods
                raise HTTPException(405, headers={"Allow": ", ".join(sorted(methods))})
        return await super().get_response(path, scope)


def create_app(drawer: DrawsAndAnswers, limits: Limits | None = None, *, model_name: str = "rf-export") -> FastAPI:
    """The application.

    Args:
        drawer: Does the work; warmed up when the application starts, and closed when it ends.
        limits: Who may ask, and how much.
        model_name: What clients call the model.
    """
    limits = limits or Limits()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        await drawer.warm_up()
        app.state.info = await drawer.info()
        yield
        await drawer.close()

    app = FastAPI(title="rf-export", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.drawer, app.state.limits, app.state.model_name = drawer, limits, model_name
    app.state.started = int(time.time())
    for router in _ROUTERS:
        app.include_router(router, responses=ERRORS)
    routes = [route for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    app.mount("/", _Page(routes))
    for error in _ERRORS:
        app.add_exception_handler(error, cast(ExceptionHandler, respond))
    app.add_middleware(Guard, limits=limits, metrics=drawer.metrics, routes={*(route.path for route in routes), "/"})
    return app
