"""The part of OpenAI's chat API that this server speaks.

Nothing is ignored silently: a field that this server does not implement is refused with a 400 unless it has the value
that means "off", and an unknown field is refused as OpenAI does.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

# They change nothing about the answer.
_WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
)
# Not implemented: accepted only when null or one of these values, which mean the same as leaving the field out.
_OFF_VALUES: dict[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "stream": (False,),
    "stream_options": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}


class ApiError(Exception):
    """An answer with an OpenAI-style error body."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = {401: "authentication_error", 500: "server_error"}.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn; which roles exist is up to the model's chat template."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[_Part] | None
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class _JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(BaseModel):
    """``text``, or a JSON schema that the answer is held to."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    type: Literal["text", "json_schema"]
    json_schema: _JsonSchema | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("`json_schema` comes with the type of that name")
        return self


class ChatRequest(BaseModel):
    """Body of ``POST /v1/chat/completions``; null means the default, as with OpenAI."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=64)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None

    @field_validator("top_logprobs")
    @classmethod
    def _asks_for_logprobs(cls, top: int | None, info: ValidationInfo) -> int | None:
        if top and not info.data.get("logprobs"):
            raise ValueError("it needs `logprobs: true`")
        return top

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The JSON schema that the answer is held to."""
        wanted = self.response_format.json_schema if self.response_format else None
        return wanted.schema_ if wanted else None

    @property
    def limit(self) -> int | None:
        """Tokens to write at most, when the request says."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in stop if text]


def parse_request(raw: bytes) -> ChatRequest:
    """Read a request body. Raises ApiError (400) naming the first thing that is wrong with it."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    wanted = {}
    for name, value in body.items():
        if name in _WITHOUT_EFFECT:
            continue
        if name not in _OFF_VALUES:
            wanted[name] = value
        elif value is not None and value not in _OFF_VALUES[name]:
            raise ApiError(400, f"`{name}` is not supported by this server", param=name, code="unsupported_parameter")
    try:
        request = ChatRequest.model_validate(wanted)
    except ValidationError as error:
        raise _invalid(error) from error
    try:
        "".join(message.role + message.text for message in request.messages).encode()
    except UnicodeEncodeError as error:
        raise ApiError(400, "the messages are not valid Unicode (lone surrogate)", param="messages") from error
    return request


def _invalid(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    # Only plain names and indices: for unions pydantic adds the names of types.
    param = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in _FIELD_NAMES)
    if first["type"] == "extra_forbidden":
        name = ".".join(map(str, first["loc"]))
        return ApiError(400, f"unrecognized request argument `{name}`", param=name, code="unknown_parameter")
    return ApiError(400, f"`{param}`: {first['msg'].lower()}", param=param, code="invalid_value")


_FIELD_NAMES = frozenset(
    {*ChatRequest.model_fields, *ChatMessage.model_fields, *_Part.model_fields, *ResponseFormat.model_fields}
)


def choice(index: int, text: str, *, stopped: bool, logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
    """One entry of ``choices``."""
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": "stop" if stopped else "length",
        "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
    }


def completion(
    model: str, choices: Sequence[dict[str, Any]], *, prompt_tokens: int, completion_tokens: int
) -> dict[str, Any]:
    """Body of a successful answer."""
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": list(choices),
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def model_list(model: str, created: int) -> dict[str, Any]:
    """Body of ``GET /v1/models``."""
    return {"object": "list", "data": [{"id": model, "object": "model", "created": created, "owned_by": "nemotron"}]}
