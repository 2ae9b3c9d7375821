"""A server of ours on loopback within a test's event loop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

Post = Callable[[str, Any], Awaitable[tuple[int, Any]]]


@contextlib.asynccontextmanager
async def serving(application: web.Application) -> AsyncIterator[Post]:
    """``await post("/verify", body)`` gives status and answer."""
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        timeout, connector = aiohttp.ClientTimeout(total=60), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

            async def post(path: str, body: Any) -> tuple[int, Any]:
                async with session.post(base + path, json=body) as response:
                    return response.status, await response.json()

            yield post
    finally:
        await runner.cleanup()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
