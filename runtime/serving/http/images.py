"""The routes that draw: /v1/images/generations and /v1/images/edits."""

import asyncio
import base64
import itertools
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.responses import JSONResponse, Response

from runtime.errors import RFError
from runtime.pictures.token_file import grid_in
from runtime.serving.http.errors import RefusalError, explain
from runtime.serving.http.models import require_model
from runtime.serving.http.schemas import EditBody, ImageBody, edit_request_body
from runtime.serving.http.streams import AT_ONCE_OR_STREAMED, EventStream, server_sent, unless_gone
from runtime.serving.orders import Drawing, DrawingEvent, Picture, Preview, Progress

router: Final = APIRouter()
_COMMON: Final = {"background": "opaque", "output_format": "png", "quality": "auto"}
_NO_TOKENS: Final = (
    "The picture holds no representation tokens: it was not drawn by rf-export. "
    "Send one of theirs as it was written, or rep_tokens."
)


@router.post("/v1/images/generations", response_model=None, responses=AT_ONCE_OR_STREAMED)
async def generate(body: ImageBody, request: Request) -> Response:
    """Draw pictures; with `stream` server-sent events, `partial_images` previews among them."""
    return await _draw(body, request, "image_generation")


@router.post(
    "/v1/images/edits",
    response_model=None,
    responses=AT_ONCE_OR_STREAMED,
    openapi_extra={"requestBody": edit_request_body()},
)
async def edit(request: Request) -> Response:
    """Draw a picture of ours again, from its tokens with changes: a form with `image`, or JSON with `rep_tokens`."""
    return await _draw(await _read_edit(request), request, "image_edit")


async def _draw(body: ImageBody, request: Request, kind: str) -> Response:
    require_model(request, body.model)
    drawings = body.drawings()
    most = request.app.state.drawer.max_queue
    if len(drawings) > most:
        raise RefusalError(400, f"This server draws {most} pictures of a request, at most.", param="n")
    if body.stream:
        drawing = drawings[0]
        events = await unless_gone(request.receive, _accepted(request, drawing))
        return EventStream(events, partial(_render, kind=kind), partial(explain, request))
    pictures = await unless_gone(request.receive, _pictures(request, drawings))
    return JSONResponse(_result(pictures))


async def _accepted(request: Request, drawing: Drawing) -> AsyncGenerator[DrawingEvent, None]:
    """A drawing that has a place; raises RFError where it gets none."""
    events: AsyncGenerator[DrawingEvent, None] = request.app.state.drawer.draw(drawing)
    await anext(events)
    return events


async def _pictures(request: Request, drawings: Iterable[Drawing]) -> list[Picture]:
    """All of them, or none: where one is refused, the others are given up."""
    async with AsyncExitStack() as stack:
        accepted = [
            await stack.enter_async_context(aclosing(await _accepted(request, drawing))) for drawing in drawings
        ]
        return await asyncio.gather(*map(_last, accepted))


async def _last(events: AsyncGenerator[DrawingEvent, None]) -> Picture:
    async for event in events:
        if isinstance(event, Picture):
            return event
    raise AssertionError("a drawing ends with its picture")


def _result(pictures: list[Picture]) -> dict[str, Any]:
    first = pictures[0]
    return {
        "created": int(time.time()),
        **_COMMON,
        "size": f"{first.width}x{first.height}",
        "data": [{"b64_json": _text(each.png), "seed": each.seed, "rep_tokens": each.tokens} for each in pictures],
        "usage": _usage(pictures),
    }


def _render(event: DrawingEvent, *, kind: str) -> Iterable[bytes]:
    """An event of a drawing as those of the API; progress is this server's own, and only where it was asked for."""
    if isinstance(event, Progress):
        told = {"type": "rf.progress", "stage": event.stage, "step": event.step, "num_steps": event.num_steps}
        yield server_sent(told if event.rep_id is None else {**told, "rep_id": event.rep_id}, "rf.progress")
    elif isinstance(event, Preview | Picture):
        name = f"{kind}.{'partial_image' if isinstance(event, Preview) else 'completed'}"
        body: dict[str, Any] = {
            "type": name,
            "b64_json": _text(event.png),
            "created_at": int(time.time()),
            "size": "auto",
            **_COMMON,
        }
        if isinstance(event, Preview):
            body |= {"partial_image_index": event.index, "step": event.step}
        else:
            body |= {"size": f"{event.width}x{event.height}", "usage": _usage([event])}
            body |= {"seed": event.seed, "rep_tokens": event.tokens}
        yield server_sent(body, name)


def _usage(pictures: list[Picture]) -> dict[str, Any]:
    texts = sum(picture.num_text_tokens for picture in pictures)
    drawn = sum(picture.tokens["rows"] * picture.tokens["columns"] for picture in pictures)
    return {
        "input_tokens": texts,
        "output_tokens": drawn,
        "total_tokens": texts + drawn,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": texts},
    }


def _text(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")


async def _read_edit(request: Request) -> EditBody:
    """The body of an edit: JSON, or the form that OpenAI's client sends."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return EditBody.model_validate_json(await request.body())
        if kind != "multipart/form-data":
            raise RefusalError(415, "Send an edit as multipart/form-data, or as application/json.")
        return EditBody.model_validate(await _read_form(request))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def _read_form(request: Request) -> dict[str, Any]:
    limit = request.app.state.limits.max_body
    try:
        async with request.form(max_files=1, max_fields=100, max_part_size=limit) as form:
            fields: dict[str, Any] = {}
            for name, values in itertools.groupby(sorted(form.multi_items(), key=lambda item: item[0]), lambda i: i[0]):
                given = [value for _, value in values]
                fields[name.removesuffix("[]")] = given if name.startswith("edit") else given[-1]
            image = fields.pop("image", None)
            if isinstance(image, UploadFile):
                fields["rep_tokens"] = _stored_tokens(await image.read())
            return fields
    except MultiPartException as error:
        raise RefusalError(400, f"The form is damaged: {error.message}") from None


def _stored_tokens(png: bytes) -> dict[str, Any]:
    try:
        grid = grid_in(png, "the picture")
    except RFError as error:
        raise RefusalError(400, error.elsewhere, param="image") from None
    if grid is None:
        raise RefusalError(400, _NO_TOKENS, param="image")
    return grid.to_dict()
