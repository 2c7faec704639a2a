"""The route that answers questions about pictures: /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from runtime.serving.http.errors import RefusalError, explain
from runtime.serving.http.models import require_model
from runtime.serving.http.schemas import ChatBody
from runtime.serving.http.streams import AT_ONCE_OR_STREAMED, EventStream, server_sent, unless_gone
from runtime.serving.orders import Answer, AnswerEvent, Question, Word

router: Final = APIRouter()


@router.post("/v1/chat/completions", response_model=None, responses=AT_ONCE_OR_STREAMED)
async def chat(body: ChatBody, request: Request) -> Response:
    """Answer the last words of the user about all pictures of the conversation; earlier words are not read again."""
    require_model(request, body.model)
    try:
        question = body.question()
    except ValueError as error:
        raise RefusalError(400, str(error), param="messages") from None
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": request.app.state.model_name}
    if body.stream:
        events = await unless_gone(request.receive, _accepted(request, question))
        return EventStream(events, partial(_render, head=head, body=body), partial(explain, request))
    answer = await unless_gone(request.receive, _answer(request, question))
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.ended_by}
    return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": _usage(answer)})


async def _accepted(request: Request, question: Question) -> AsyncGenerator[AnswerEvent, None]:
    """A question that will be answered; raises RFError where it will not."""
    events: AsyncGenerator[AnswerEvent, None] = request.app.state.drawer.ask(question)
    await anext(events)
    return events


async def _answer(request: Request, question: Question) -> Answer:
    async with aclosing(await _accepted(request, question)) as events:
        async for event in events:
            if isinstance(event, Answer):
                return event
    raise AssertionError("an answer ends with the whole of it")


def _render(event: AnswerEvent, *, head: dict[str, Any], body: ChatBody) -> Iterable[bytes]:
    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return server_sent({**head, "object": "chat.completion.chunk", "choices": [choice]})

    if isinstance(event, Word) and event.text:
        yield chunk({"role": "assistant", "content": event.text})
    elif isinstance(event, Answer):
        yield chunk({}, event.ended_by)
        if body.tells_usage:
            yield server_sent({**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(event)})
        yield server_sent("[DONE]")


def _usage(answer: Answer) -> dict[str, int]:
    asked, told = answer.num_prompt_tokens, answer.num_tokens
    return {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}
