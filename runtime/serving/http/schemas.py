"""The bodies of requests, as OpenAI's API has them, and what they mean to a drawer. Knows no route.

A parameter is heeded, or it is one that changes nothing here (INERT), or the request is refused: nothing is silently
ignored.
"""

import base64
import binascii
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from runtime.errors import RFError
from runtime.noise import MAX_SEED
from runtime.options import MAX_GUIDANCE, MAX_STEPS, AnswerOptions, GenerationOptions
from runtime.pictures.token_file import RepGrid
from runtime.serving.orders import Drawing, Question

MAX_PICTURES = 10  # of a request
MAX_TEXT = 32_000  # characters

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Guidance = Annotated[float, Field(ge=-MAX_GUIDANCE, le=MAX_GUIDANCE, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(max_length=200)] | None = None
    user: Any = None  # inert
    metadata: Any = None  # inert
    stream: bool = False


class ImageBody(_Body):
    """POST /v1/images/generations; seed, steps, guidance and what follows are this server's own."""

    prompt: Text
    n: Annotated[int, Field(ge=1, le=MAX_PICTURES)] = 1
    size: Annotated[str, Field(description="auto, or WIDTHxHEIGHT")] = "auto"
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    quality: Any = None  # inert, as the next ones
    style: Any = None
    moderation: Any = None
    output_compression: Any = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0

    seed: Seed | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance: Guidance | None = None
    rep_guidance: Guidance | None = None
    plan: Literal["paper", "tuned"] | None = None
    shift: float | None = None
    guided: tuple[float, float] | None = None
    window: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    progress: bool = False

    @field_validator("size")
    @classmethod
    def _is_size(cls, value: str) -> str:
        if value != "auto" and not re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}", value):
            raise ValueError(f"expected WIDTHxHEIGHT such as 48x48, or auto, got {value[:40]!r}.")
        return value

    @model_validator(mode="after")
    def _is_streamable(self) -> "ImageBody":
        if self.stream and self.n > 1:
            raise ValueError("A stream is of one picture. Ask for n = 1, or for one stream each.")
        if (self.seed or 0) + self.n - 1 > MAX_SEED:
            raise ValueError("Picture i is drawn with seed + i, which must be below 2**64.")
        return self

    def drawings(self) -> list[Drawing]:
        """What is to be drawn; raises RFError for a value that no model takes."""
        width, height = (None, None) if self.size == "auto" else map(int, self.size.split("x"))
        options = GenerationOptions(
            height=height,
            width=width,
            num_steps=self.steps,
            rep_guidance_scale=self.guidance if self.rep_guidance is None else self.rep_guidance,
            pix_guidance_scale=self.guidance,
            temperature=self.temperature,
            top_k=self.top_k,
            plan=self.plan,
            shift=self.shift,
            guided=self.guided,
            window=self.window,
        )
        tokens, edits = self.base()
        own = 0 if tokens is None else tokens.seed
        first = own if self.seed is None else self.seed
        return [
            Drawing(
                prompt=self.prompt,
                seed=first + index,
                options=options,
                tokens=tokens,
                edits=edits,
                num_previews=self.partial_images if self.stream else 0,
                tells_steps=self.stream and self.progress,
            )
            for index in range(self.n)
        ]

    def base(self) -> tuple[RepGrid | None, tuple[str, ...]]:
        """The tokens to begin with, and their edits; raises RFError for damaged ones."""
        return None, ()


class EditBody(ImageBody):
    """POST /v1/images/edits with a JSON body; the form of OpenAI's client has a file in the place of tokens."""

    rep_tokens: dict[str, Any] | None = None
    edit: Annotated[
        list[Annotated[str, Field(max_length=200)]], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
    ] = []
    input_fidelity: Any = None  # inert

    def base(self) -> tuple[RepGrid | None, tuple[str, ...]]:
        """The tokens to begin with, and their edits; raises RFError for damaged ones."""
        try:
            tokens = None if self.rep_tokens is None else RepGrid.from_dict(self.rep_tokens, "rep_tokens")
        except RFError as error:
            raise RFError(error.elsewhere) from error  # of a file of ours it would mean damage; this is the caller's
        return tokens, tuple(self.edit)


def edit_request_body() -> dict[str, Any]:
    """What an edit may be sent as, for a description of routes (OpenAPI): its route tells by the content type."""
    body = EditBody.model_json_schema()
    form = {name: schema for name, schema in body["properties"].items() if name != "rep_tokens"}
    form["image"] = {"type": "string", "contentMediaType": "image/png"}
    content = {"application/json": {"schema": body}}
    content["multipart/form-data"] = {"schema": {**body, "properties": form, "required": ["prompt", "image"]}}
    return {"content": content, "required": True}


class TextPart(BaseModel):
    """A part of a message that is a text."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: Text


class _ImageUrl(BaseModel):
    model_config = ConfigDict(extra="forbid")
    url: str
    detail: Any = None  # inert


class ImagePart(BaseModel):
    """A part of a message that is a picture."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["image_url"]
    image_url: _ImageUrl


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore")  # answers of clients carry fields of all kinds
    role: Literal["user", "assistant"]
    content: Text | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ChatBody(_Body):
    """POST /v1/chat/completions: questions about pictures."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=200)]
    n: Annotated[int, Field(ge=1, le=1)] = 1
    seed: Seed | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    stream_options: _StreamOptions | None = None
    store: Any = None  # inert
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def question(self) -> Question:
        """All pictures of the user, and the last words; raises ValueError where there is none, RFError for options."""
        users = [message.content for message in self.messages if message.role == "user"]
        if not users or self.messages[-1].role != "user":
            raise ValueError("The last message must be the user's.")
        parts = [part for content in users if isinstance(content, list) for part in content]
        pictures = tuple(_content(part.image_url.url) for part in parts if isinstance(part, ImagePart))
        if not pictures:
            raise ValueError("There is no picture to read. Give one as an image_url part: data:image/png;base64,...")
        if len(pictures) > MAX_PICTURES:
            raise ValueError(f"A conversation may have {MAX_PICTURES} pictures here, got {len(pictures)}.")
        last = users[-1] or ""
        words = [last] if isinstance(last, str) else [part.text for part in last if isinstance(part, TextPart)]
        given = {
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            **{name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")},
        }
        options = AnswerOptions(**{name: value for name, value in given.items() if value is not None})
        return Question(pictures=pictures, text=" ".join(words).strip(), seed=self.seed or 0, options=options)


def _content(url: str) -> bytes:
    """The picture in a data URL; an address is not fetched."""
    head, comma, data = url.partition(",")
    if not comma or not re.fullmatch(
        r"data:[\w.+/-]{0,100}(;[\w.=-]{1,40}){0,4};base64", head, re.ASCII | re.IGNORECASE
    ):
        raise ValueError("Pictures are read from data URLs only, data:image/png;base64,...: no address is fetched.")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        raise ValueError("The data URL of a picture is no base64. Encode the file again.") from None
