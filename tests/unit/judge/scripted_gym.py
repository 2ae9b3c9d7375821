"""A resources server that answers what a test wants."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

Answer = Callable[[int, web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class ScriptedGym:
    """``answer(k, request, body)`` makes the answer to the k-th POST to /verify or /run."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
            self._runner = None

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/", self._health)
        for path in ("/verify", "/run"):
            app.router.add_post(path, self._scripted)
        app.router.add_post("/seed_session", self._session)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _session(self, request: web.Request) -> web.Response:
        self.requests.append((request.path, await request.json(), dict(request.cookies)))
        response = web.json_response({})
        response.set_cookie("Server___math", f"session-{len(self.requests)}")
        return response

    async def _scripted(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append((request.path, body, dict(request.cookies)))
        asked = sum(path != "/seed_session" for path, _, _ in self.requests)
        return await self._answer(asked - 1, request, body)


async def _cancel_others() -> None:
    """Handlers that still sleep would be destroyed with the loop."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
