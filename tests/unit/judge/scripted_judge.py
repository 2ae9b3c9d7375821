"""A real HTTP endpoint that plays a script: the only border at which these tests replace a component."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tests.loopback import Loopback

Play = Callable[[int, dict[str, Any]], Awaitable[web.Response]]


class Scripted(Loopback):
    """A real HTTP server on loopback, in a thread of its own, that answers chat requests by a script.

    ``play(k, body)`` answers the k-th chat request (0-based). Requests are kept in ``bodies`` and ``headers``.
    """

    def __init__(self, play: Play, *, models: tuple[str, ...] = ("judge",), token: str | None = None) -> None:
        self.play, self.models, self.token = play, models, token
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.base_url = ""
        super().__init__()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _list(self, request: web.Request) -> web.Response:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": {"message": "bad token " + self.token[:3]}}, status=401)
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _chat(self, request: web.Request) -> web.Response:
        number = len(self.bodies)
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.play(number, self.bodies[number])
        finally:
            self.in_flight -= 1


def says(text: str | None) -> web.Response:
    """A chat completion with this content."""
    return web.json_response({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


def verdict(score_1: float, score_2: float, ranking: float = 3) -> web.Response:
    """A chat completion with a verdict."""
    return says(json.dumps({"score_1": score_1, "score_2": score_2, "ranking": ranking}))
