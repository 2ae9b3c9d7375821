"""The HTTP side: routes, the bearer token, and OpenAI-style error bodies."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from aiohttp import web

from nemotron.judge.server.batching import Batcher, Job, Writer, Written
from nemotron.judge.server.constraint import Constraint
from nemotron.judge.server.protocol import ApiError, ChatRequest, choice, completion, model_list, parse_request

MAX_BODY_BYTES = 4 * 1024 * 1024
_log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Model(Protocol):
    """What the server needs of a model (``JudgeModel`` is one)."""

    @property
    def context(self) -> int | None:
        """Longest prompt plus answer in tokens."""

    def encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Prompt tokens."""

    def decode(self, token_ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> str:
        """Text of an answer."""

    def token(self, token_id: int) -> str:
        """Text of one token."""

    def constraint(self, schema: Mapping[str, Any]) -> Constraint:
        """What holds a text to a schema. Raises ApiError (400) for a schema that it cannot be held to."""

    @property
    def write(self) -> Writer:
        """Decodes a batch."""


class ChatServer:
    """Serves one model under one name."""

    def __init__(self, model: Model, name: str, *, max_batch_size: int, token: str) -> None:
        self._model = model
        self._name = name
        self._token = token
        self._started = int(time.time())
        self._max_batch_size = max_batch_size
        self._batcher: Batcher | None = None

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._errors], client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.cleanup_ctx.append(self._background)
        return app

    async def _background(self, _: web.Application) -> AsyncIterator[None]:
        self._batcher = Batcher(self._model.write, self._max_batch_size)
        task = asyncio.create_task(self._batcher.run())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path != "/health":
                self._authorise(request)
            return await handler(request)
        except ApiError as error:
            return web.json_response(error.body(), status=error.status)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return web.json_response(ApiError(error.status, error.reason).body(), status=error.status)

    def _authorise(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise ApiError(401, "the bearer token is missing or wrong", code="invalid_api_key")

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response(model_list(self._name, self._started))

    async def _chat(self, request: web.Request) -> web.Response:
        chat = parse_request(await request.read())
        if chat.model != self._name:
            raise ApiError(
                404, f"the model `{chat.model}` does not exist; this server serves `{self._name}`",
                param="model", code="model_not_found",
            )  # fmt: skip
        prompt = self._model.encode([{"role": m.role, "content": m.text} for m in chat.messages])
        job_limit = self._token_limit(chat, len(prompt))
        seed = secrets.randbits(63) if chat.seed is None else chat.seed
        schema = chat.schema_wanted
        constraint = None if schema is None else self._model.constraint(schema)
        if self._batcher is None:
            raise RuntimeError("the application has not been started")
        texts = await asyncio.gather(
            *(
                self._batcher.write(
                    Job(
                        prompt,
                        job_limit,
                        1.0 if chat.temperature is None else chat.temperature,
                        1.0 if chat.top_p is None else chat.top_p,
                        seed + index,
                        constraint,
                        chat.top_logprobs or 0,
                    )
                )
                for index in range(chat.n or 1)
            )
        )
        body = completion(
            self._name,
            [self._choice(index, prompt, written, chat) for index, written in enumerate(texts)],
            prompt_tokens=len(prompt),
            completion_tokens=sum(written.tokens for written in texts),
        )
        return web.json_response(body)

    def _token_limit(self, chat: ChatRequest, prompt_tokens: int) -> int:
        """Tokens the answer may have. Raises ApiError (400) when prompt and answer do not fit the context."""
        context = self._model.context
        if prompt_tokens == 0:
            raise ApiError(400, "the chat template makes an empty prompt of these messages", param="messages")
        if context is None:
            return chat.limit or 1024
        wanted = chat.limit or 1
        if prompt_tokens + wanted > context:
            raise ApiError(
                400,
                f"this model's maximum context length is {context} tokens; the messages have {prompt_tokens} and "
                f"{wanted} were requested for the answer",
                param="messages",
                code="context_length_exceeded",
            )
        return chat.limit or context - prompt_tokens

    def _choice(self, index: int, prompt: Sequence[int], written: Written, chat: ChatRequest) -> dict[str, Any]:
        text, stopped = self._model.decode(written.token_ids, prompt), written.stopped
        ends = [at for at in (text.find(stop) for stop in chat.stops) if at >= 0]
        if ends:
            text, stopped = text[: min(ends)], True
        return choice(index, text, stopped=stopped, logprobs=self._logprobs(written) if chat.logprobs else None)

    def _logprobs(self, written: Written) -> list[dict[str, Any]]:
        entries = []
        for place, (token_id, logprob) in enumerate(zip(written.token_ids, written.logprobs, strict=True)):
            likely = written.top[place] if written.top else []
            entries.append({**self._entry(token_id, logprob), "top_logprobs": [self._entry(*one) for one in likely]})
        return entries

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._model.token(token_id)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
