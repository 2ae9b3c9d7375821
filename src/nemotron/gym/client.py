"""Asks resources servers and agents of NeMo-Gym over HTTP.

What is worth a second try (no connection, timeout, 429, 5xx) is retried with growing, jittered pauses. A request that a
server does not accept (422) makes that response missing. A wrong address ends the run at once, and so does a server
that is gone: when all tries of a request went by and nothing at all came back from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from types import TracebackType
from typing import Any, Self

import aiohttp
import tenacity

from nemotron.config.schema.gym import GymConfig
from nemotron.disk.documents import parse_json
from nemotron.errors import RewardError
from nemotron.gym.protocol import Json, Verified, failure_in, read_verified
from nemotron.processes.replies import TooLongError, read_text

MOST_BYTES = 16 << 20
"""Of an answer, which repeats the row and the response that were sent."""
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0
_PROBE_PAUSE_S = 0.1
_TRANSIENT_STATUS = frozenset({408, 425, 429})
_EXCERPT_CHARS = 200


class _Transient(Exception):
    """Worth another try. ``unreachable``: nothing at all came back."""

    def __init__(self, reason: str, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unreachable = unreachable


class _Refused(Exception):
    """This one request is not accepted; others may be."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of one check."""

    verified: Verified
    requests: int
    """HTTP requests sent for it, retries included."""


@dataclass
class _Server:
    """What is known about one address."""

    base_url: str
    last_answer: float = 0.0
    gone: str | None = None
    """Why it counts as gone."""


class GymClient:
    """One HTTP session to all servers. Belongs to the event loop it was entered in.

    Example::

        async with GymClient(config, {"math": "http://127.0.0.1:12001"}) as client:
            await client.wait_ready()
            asked = await client.verify("math", {**row, "response": response}, seed_session=True)
    """

    def __init__(self, config: GymConfig, addresses: Mapping[str, str]) -> None:
        """``addresses``: base URL of every server by name."""
        self._config = config
        self._servers = {name: _Server(url.rstrip("/")) for name, url in addresses.items()}
        self._slots = asyncio.Semaphore(config.max_concurrent_requests)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._config.request_timeout_s),
            connector=aiohttp.TCPConnector(limit=0),
            # Every rollout has a session of its own; its cookies travel with the calls, not with the connection.
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def wait_ready(self) -> None:
        """Wait until every server answers. Raises RewardError when one does not within ``ready_timeout_s``."""
        await asyncio.gather(*(self._probe(name, server) for name, server in self._servers.items()))

    async def verify(self, server: str, body: Json, *, seed_session: bool) -> Asked:
        """``POST /seed_session`` (if asked) and ``POST /verify``. Raises RewardError when the server is gone."""
        requests = 0
        async with self._slot(server):
            cookies: dict[str, str] = {}
            try:
                if seed_session:
                    row = {name: value for name, value in body.items() if name != "response"}
                    _, cookies, tries = await self._post(server, "/seed_session", row, {})
                    requests += tries
                answer, _, tries = await self._post(server, "/verify", body, cookies)
            except _Failed as error:
                return Asked(Verified(None, error.reason, {}), requests + error.requests)
        return Asked(read_verified(answer, body), requests + tries)

    async def run(self, agent: str, row: Json) -> tuple[Asked, Json]:
        """``POST /run``: the agent makes a rollout of its own from ``row`` and has it verified.

        Returns the verdict and the whole answer (``response`` holds the rollout; empty when it failed).
        """
        async with self._slot(agent):
            try:
                answer, _, tries = await self._post(agent, "/run", row, {})
            except _Failed as error:
                return Asked(Verified(None, error.reason, {}), error.requests), {}
        return Asked(read_verified(answer, row), tries), answer if isinstance(answer, dict) else {}

    def _slot(self, name: str) -> AbstractAsyncContextManager[object]:
        """One of the requests in flight. Whoever waits for the rest of its group must not keep the rest from coming."""
        return contextlib.nullcontext() if self._group_timeout_s(name) else self._slots

    def _group_timeout_s(self, name: str) -> float:
        server = self._config.servers.get(name)
        return (server.group_timeout_s if server else None) or 0.0

    async def _post(
        self, name: str, path: str, body: Json, cookies: Mapping[str, str]
    ) -> tuple[Any, dict[str, str], int]:
        """Parsed answer, cookies to send from now on, and the number of tries. Raises _Failed or RewardError."""
        server = self._servers[name]
        started = time.monotonic()
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            stop=tenacity.stop_after_attempt(self._config.max_retries + 1),
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
            reraise=True,
        )
        answer: Any
        received: dict[str, str]
        try:
            answer, received = await retrying(self._exchange, name, server, path, body, cookies)
        except _Transient as error:
            if error.unreachable and server.last_answer < started:
                server.gone = error.reason
                self._check(name, server)
            raise _Failed(error.reason, int(retrying.statistics["attempt_number"])) from error
        except _Refused as error:
            raise _Failed(str(error), int(retrying.statistics["attempt_number"])) from error
        return answer, {**cookies, **received}, int(retrying.statistics["attempt_number"])

    async def _exchange(
        self, name: str, server: _Server, path: str, body: Json, cookies: Mapping[str, str]
    ) -> tuple[Any, dict[str, str]]:
        self._check(name, server)
        if self._session is None:
            raise RuntimeError("GymClient is used outside of its `async with` block")
        try:
            patience = aiohttp.ClientTimeout(total=self._config.request_timeout_s + self._group_timeout_s(name))
            async with self._session.post(
                server.base_url + path, json=body, cookies=cookies, timeout=patience
            ) as response:
                text = await read_text(response, MOST_BYTES)
                server.last_answer = time.monotonic()
        except TimeoutError as error:
            raise _Transient("no answer in time", unreachable=True) from error
        except TooLongError as error:
            # Asked again it would say the same, and cost as much.
            server.last_answer = time.monotonic()
            raise _Refused(str(error)) from error
        except aiohttp.ClientError as error:
            raise _Transient(_why(error), unreachable=True) from error
        if response.status >= 400 and (failure := failure_in(_json(text), status=response.status)) is not None:
            # The server has tried; asked again it would say the same.
            raise _Refused(failure)
        if response.status in _TRANSIENT_STATUS or response.status >= 500:
            raise _Transient(f"status {response.status}")
        if response.status in (401, 403, 404, 405):
            raise RewardError(
                f"server `{name}` at `{server.base_url}` answers {path} with status {response.status}: {_short(text)}",
                hint=f"see whether `gym.servers.{name}.base_url` is the address of a NeMo-Gym resources server",
            )
        if response.status != 200:
            raise _Refused(f"status {response.status}")
        try:
            return parse_json(text), _cookies(response.cookies)
        except ValueError:
            raise _Refused("the answer is not JSON") from None

    def _check(self, name: str, server: _Server) -> None:
        if server.gone is not None:
            raise RewardError(
                f"server `{name}` at `{server.base_url}` does not answer ({server.gone})",
                hint="see whether it still runs; `gym.max_retries` and `gym.request_timeout_s` say how long to try",
            )

    async def _probe(self, name: str, server: _Server) -> None:
        if self._session is None:
            raise RuntimeError("GymClient is used outside of its `async with` block")
        deadline = time.monotonic() + self._config.ready_timeout_s
        while True:
            try:
                async with self._session.get(
                    server.base_url + "/", timeout=aiohttp.ClientTimeout(total=max(deadline - time.monotonic(), 0.01))
                ) as response:
                    if response.status < 500:
                        return
                    reason = f"status {response.status}"
            except aiohttp.InvalidURL as error:
                raise RewardError(f"`{server.base_url}` is not a URL", hint="write `http://HOST:PORT`") from error
            except (TimeoutError, aiohttp.ClientError) as error:
                reason = _why(error)
            if time.monotonic() + _PROBE_PAUSE_S >= deadline:
                raise RewardError(
                    f"server `{name}` at `{server.base_url}` did not answer within "
                    f"{self._config.ready_timeout_s:g} s ({reason})",
                    hint=f"start it, or check `gym.servers.{name}.base_url`",
                )
            await asyncio.sleep(_PROBE_PAUSE_S)


class _Failed(Exception):
    """One request got no usable answer, after ``requests`` tries."""

    def __init__(self, reason: str, requests: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.requests = requests


def _why(error: Exception) -> str:
    """What went wrong with a connection, in a few words and without addresses, so that equal causes count together."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or "cannot connect"
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def _cookies(found: SimpleCookie) -> dict[str, str]:
    return {name: morsel.value for name, morsel in found.items()}


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return f"`{flat[:_EXCERPT_CHARS]}`" if flat else "nothing"
