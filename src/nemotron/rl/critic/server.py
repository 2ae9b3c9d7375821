"""The HTTP side of the critic: one actor at a time, one computation at a time, and no life without the actor.

==============  ==========================================================================================
``GET /health``  ``{"status": "ok"}`` once the models are loaded; needs no token
``GET /attach``  a WebSocket that the actor holds as long as it lives; with it gone the server ends
``POST /begin``  ``{"step": N, "config": HASH}``: put the critic where checkpoint N left it, 0 for the start; the hash
                 says that both sides run one config (``PpoMasterConfig.agreement``)
``POST /infer``  values and rewards (``wire.py``)
``POST /train``  one update of the critic (``wire.py``)
``POST /save``   ``{"step": N}``: write the critic's part into the checkpoint that the actor is writing
==============  ==========================================================================================

A refusal is a 4xx with ``{"error": why}``; a server-side failure that ends the run is a 500 with ``"fatal": true``.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from aiohttp import WSMsgType, web
from torch import Tensor

from nemotron.errors import EngineError, NemotronError
from nemotron.rl.critic.wire import CONTENT_TYPE, INFER, TRAIN, WireError, pack, unpack
from nemotron.rl.threads import apply_threads

FINISHED = "finished"
"""What the actor says before it leaves on purpose."""
MIB = 1024 * 1024
_log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


class Models(Protocol):
    """What the server needs of ``CriticModels``; every call comes from one thread."""

    def begin(self, step: int) -> None:
        """Load the critic of checkpoint ``step``."""

    def infer(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values and rewards."""

    def train(self, tensors: dict[str, Tensor]) -> dict[str, float]:
        """One update."""

    def save(self, step: int) -> None:
        """Write the critic's part of a checkpoint."""


class Refusal(Exception):
    """A request that is answered with a 4xx."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CriticServer:
    """Serves ``models`` to one actor."""

    def __init__(
        self,
        models: Models,
        *,
        token: str | None,
        config: str,
        max_request_mib: int,
        heartbeat_s: float,
        threads: int | None = None,
    ) -> None:
        """``config``: hash of our config. ``threads``: CPU threads of the computations; None leaves torch's setting."""
        self._models, self._token, self._config = models, token, config
        self._limit = max_request_mib * MIB
        self._heartbeat_s = heartbeat_s
        # One thread serialises all computations. The number of OpenMP threads belongs to the thread that sets it.
        setting = (apply_threads, (threads,)) if threads is not None else (None, ())
        self._worker = ThreadPoolExecutor(1, "critic-worker", *setting)
        self._actor: web.WebSocketResponse | None = None
        self._ended: asyncio.Future[EngineError | None] | None = None

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._errors], client_max_size=self._limit)
        app.router.add_get("/health", self._health)
        app.router.add_get("/attach", self._attach)
        for name, handler in (
            ("begin", self._begin),
            ("infer", self._infer),
            ("train", self._train),
            ("save", self._save),
        ):
            app.router.add_post(f"/{name}", handler)
        return app

    async def ended(self) -> EngineError | None:
        """Wait until the actor has gone; None when it left on purpose, else why the server ends."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        return await self._ended

    def _end(self, reason: EngineError | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(reason)

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path != "/health":
                self._authorise(request)
            if request.method == "POST" and self._actor is None:
                raise Refusal(409, "attach first: an actor holds `GET /attach` open as long as it lives")
            return await handler(request)
        except Refusal as refusal:
            return _failure(refusal.status, str(refusal))
        except WireError as error:
            return _failure(400, str(error))
        except NemotronError as error:
            return _failure(500, error.message, hint=error.hint, fatal=True)
        except RuntimeError as error:
            # How torch says that memory is used up, among others. Asking again would not help.
            _log.exception("%s failed", request.path)
            hint = "`critic.offload` or a smaller `value.train_micro_batch_size` saves memory; logs/critic.log has more"
            return _failure(500, str(error).splitlines()[0], hint=hint, fatal=True)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return _failure(error.status, error.reason)

    def _authorise(self, request: web.Request) -> None:
        if self._token is None:
            return
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            raise Refusal(401, "the bearer token is missing or wrong")

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _attach(self, request: web.Request) -> web.WebSocketResponse:
        if self._actor is not None:
            raise Refusal(409, "another actor is attached")
        # aiohttp waits half of `heartbeat` for the answer to a ping, so silence is noticed after at most 1.5 of it.
        socket = web.WebSocketResponse(heartbeat=self._heartbeat_s / 1.5, max_msg_size=1024)
        self._actor = socket
        last = None
        try:
            await socket.prepare(request)
            async for message in socket:
                if message.type == WSMsgType.TEXT:
                    last = message.data
        finally:
            # Also when this handler is cancelled, which is how aiohttp tells that the connection broke.
            self._actor = None
            gone = EngineError("the actor is gone", hint="its own error says why; both sides can be started again")
            self._end(None if last == FINISHED else gone)
        return socket

    async def _compute(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def _begin(self, request: web.Request) -> web.Response:
        content = _json(await request.read(), {"step", "config"})
        step = _step(content, least=0)
        if content["config"] != self._config:
            raise Refusal(409, "actor and critic run different configs: `value`, `value_loss_fn`, estimator or rewards")
        await self._compute(lambda: self._models.begin(step))
        return web.json_response({})

    async def _infer(self, request: web.Request) -> web.Response:
        tensors = unpack(await _payload(request), INFER)
        answer = await self._compute(lambda: pack(self._models.infer(tensors)))
        return web.Response(body=answer, content_type=CONTENT_TYPE)

    async def _train(self, request: web.Request) -> web.Response:
        tensors = unpack(await _payload(request), TRAIN)
        return web.json_response(await self._compute(lambda: self._models.train(tensors)))

    async def _save(self, request: web.Request) -> web.Response:
        step = _step(_json(await request.read(), {"step"}), least=1)
        await self._compute(lambda: self._models.save(step))
        return web.json_response({})


async def _payload(request: web.Request) -> bytes:
    if request.content_type != CONTENT_TYPE:
        raise Refusal(415, f"the body must be `{CONTENT_TYPE}`")
    return await request.read()


def _json(body: bytes, keys: set[str]) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError as error:
        raise WireError("the body is no JSON") from error
    if not isinstance(content, dict) or set(content) != keys:
        raise WireError(f"the body must be an object with {' and '.join(f'`{key}`' for key in sorted(keys))}")
    return content


def _step(content: dict[str, Any], *, least: int) -> int:
    step = content["step"]
    if not isinstance(step, int) or isinstance(step, bool) or not least <= step < 2**31:
        raise WireError(f"`step` must be a whole number from {least} on")
    return step


def _failure(status: int, message: str, **more: Any) -> web.Response:
    return web.json_response({"error": message, **more}, status=status)
