"""Calls to a cluster's HTTP API, each tried again where the service stumbles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import cached_property, partial
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from nemotron.disk.documents import parse_json
from nemotron.errors import ConfigError, ExecutorError, NotFoundError, UnreachableError
from nemotron.processes.loop_thread import LoopThread

TIMEOUT_S = 30.0
"""How long nothing may come."""
WHOLE_S = 300.0
"""How long one call may take in all: a service that sends a byte now and then is none."""
PATIENCE_S = 60.0
"""How long a service that answers 5xx, 429 or not at all is asked again."""
MOST_BYTES = 32 << 20
"""Of an answer that is no log."""
_WORDS = 300
T = TypeVar("T", bound=BaseModel)


class _Stumbles(Exception):
    """An answer that may be another one in a moment."""


class _TooLong(Exception):
    """A body goes on beyond what an answer can have."""


class Service:
    """Calls to one address."""

    def __init__(
        self,
        name: str,
        url: str,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        token_hint: str,
        stumble_hint: str = "try again later",
        patience_s: float = PATIENCE_S,
        whole_s: float = WHOLE_S,
    ) -> None:
        """Nothing is called yet.

        Args:
            name: for messages, "Lepton".
            token: goes with every call, and is cut out of what the service says.
            headers: of every call, besides.
            token_hint: what to do when it wants another token.
            stumble_hint: what to do when it does not come round.

        Raises:
            ConfigError: no header can hold the token.
        """
        self._name, self._url, self._token = name, url, token
        self._token_hint, self._stumble_hint = token_hint, stumble_hint
        sent = dict(headers or {})
        if token is not None:
            if not (token.isascii() and token.isprintable() and token == token.strip()):
                # The library would say which header is wrong, with the token in it.
                raise ConfigError(
                    f"the token for {name} cannot be sent in an HTTP header",
                    hint="it has a line break, a space around it or a character outside ASCII; copy it again",
                )
            sent["Authorization"] = f"Bearer {token}"
        self._headers = sent
        # Of the libraries' clients only this one can be told when to give up a call as a whole.
        self._client = httpx.AsyncClient(headers=sent, timeout=TIMEOUT_S, trust_env=True)
        self._loop = LoopThread(f"{name.lower()}-calls")
        self._loop.start()
        self._patience_s, self._whole_s = patience_s, whole_s

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        most: int = MOST_BYTES,
    ) -> Any:
        """One call, with ``body`` as JSON or ``content`` as it is; the parsed answer.

        Raises:
            NotFoundError: 404. ExecutorError: any other refusal, or the service cannot be reached.
        """
        waits = wait_random_exponential(multiplier=0.4, max=5.0)
        again = Retrying(
            retry=retry_if_exception_type(_Stumbles), stop=stop_after_delay(self._patience_s), wait=waits, reraise=True
        )
        try:
            ask = partial(self._exchange, method, path, body, params, content, most)
            return again(self._once, ask, method, path, most)
        except _Stumbles as error:
            raise UnreachableError(
                f"{self._name} does not answer at {self._url}: {error}", hint=self._stumble_hint
            ) from error

    def ask(
        self,
        shape: type[T],
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        most: int = MOST_BYTES,
    ) -> T:
        """One call whose answer is used: what of it is looked at is of its type.

        Raises:
            NotFoundError: 404. ExecutorError: as :meth:`call`, or an answer of another form.
        """
        answer = self.call(method, path, body=body, params=params, most=most)
        try:
            return shape.model_validate(answer)
        except ValidationError as error:
            wrong = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, wrong["loc"])) or "the whole"
            raise ExecutorError(
                f"{self._name}'s answer to {method} {path} has another form than expected ({where}: {wrong['msg']})",
                hint=f"see whether {self._url} is the address of {self._name}",
            ) from None

    def stream(self, path: str) -> Iterator[bytes]:
        """The bytes of an answer as they come, until it ends or the connection does.

        Raises:
            ExecutorError: it is refused or breaks.
        """
        url = self._url + path
        try:
            with self._logs.stream("GET", url, timeout=httpx.Timeout(TIMEOUT_S, read=None)) as response:
                if response.status_code != 200:
                    begun = next(response.iter_bytes(), b"")
                    raise ExecutorError(f"{self._name} answers {response.status_code} for the log: {self._said(begun)}")
                yield from response.iter_raw()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ExecutorError(f"the connection to {self._name} broke: {self._why(error)}") from error

    @cached_property
    def _logs(self) -> httpx.Client:
        return httpx.Client(headers=self._headers, timeout=TIMEOUT_S, trust_env=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        if "_logs" in vars(self):
            self._logs.close()
        self._loop.close(self._client.aclose)

    def _once(
        self, ask: Callable[[], Coroutine[Any, Any, tuple[int, bytes]]], method: str, path: str, most: int
    ) -> Any:
        exchange = self._loop.run(ask())
        try:
            status, answer = exchange.result()
        except TimeoutError as error:
            raise _Stumbles(f"no whole answer within {self._whole_s:g} s") from error
        except httpx.InvalidURL as error:
            raise ExecutorError(f"`{self._url}` is no address of {self._name}: {error}") from error
        except httpx.HTTPError as error:
            raise _Stumbles(self._why(error)) from error
        except _TooLong:
            raise ExecutorError(f"{self._name}'s answer to {method} {path} has more than {most >> 20} MiB") from None
        finally:
            exchange.cancel()
        if status >= 500 or status == 429:
            raise _Stumbles(f"{status} {self._said(answer)}")
        if status == 404:
            raise NotFoundError(f"{self._name} knows no `{path}`")
        if status in (401, 403):
            raise ExecutorError(
                f"{self._name} refuses the token ({status}): {self._said(answer)}",
                hint=self._token_hint,
            )
        if not 200 <= status < 300:
            raise ExecutorError(f"{self._name} refuses {method} {path} ({status}): {self._said(answer)}")
        try:
            return parse_json(answer) if answer else None
        except ValueError:
            raise ExecutorError(f"{self._name}'s answer to {method} {path} is no JSON") from None

    async def _exchange(
        self,
        method: str,
        path: str,
        body: Any,
        params: Mapping[str, str] | None,
        content: bytes | None,
        most: int,
    ) -> tuple[int, bytes]:
        """Status and body."""
        answer = bytearray()
        # Both ask for the same: a service that gives a cookie is not asked another question with it.
        self._client.cookies.clear()
        async with (
            asyncio.timeout(self._whole_s),
            self._client.stream(method, self._url + path, json=body, params=params, content=content) as response,
        ):
            async for chunk in response.aiter_bytes():
                answer += chunk
                if len(answer) > most:
                    raise _TooLong
        return response.status_code, bytes(answer)

    def _why(self, error: Exception) -> str:
        return self._without_token(str(error)) or type(error).__name__

    def _without_token(self, said: str) -> str:
        return said.replace(self._token, "[token]") if self._token else said

    def _said(self, content: bytes) -> str:
        """What an answer that is none says, in a few words."""
        text = content.decode("utf-8", "replace").strip()
        try:
            value = parse_json(content)
        except ValueError:
            # Of a traceback, which some services send, the last line says what it is about.
            said = text.splitlines()[-1] if text.startswith("Traceback") else text
        else:
            found = (value.get("message") or value.get("detail") or value) if isinstance(value, dict) else value
            said = str(found)
        return self._without_token(said)[:_WORDS]
