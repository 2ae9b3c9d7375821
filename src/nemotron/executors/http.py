"""Calls to a cluster's HTTP API, each tried again where the service stumbles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from nemotron.errors import ExecutorError, NotFoundError

TIMEOUT_S = 30.0
PATIENCE_S = 60.0
"""How long a service that answers 5xx, 429 or not at all is asked again."""


class _Stumbles(Exception):
    """An answer that may be another one in a moment."""


class Service:
    """Calls to one address."""

    def __init__(
        self,
        name: str,
        url: str,
        headers: Mapping[str, str],
        *,
        token_hint: str,
        stumble_hint: str = "try again later",
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Nothing is called yet.

        Args:
            name: for messages, "Lepton".
            headers: of every call.
            token_hint: what to do when it wants another token.
            stumble_hint: what to do when it does not come round.
        """
        self._name, self._url = name, url
        self._token_hint, self._stumble_hint = token_hint, stumble_hint
        self._client = httpx.Client(headers=dict(headers), timeout=TIMEOUT_S, trust_env=True)
        self._patience_s = patience_s

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
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
            return again(self._once, method, path, body, params, content)
        except _Stumbles as error:
            raise ExecutorError(
                f"{self._name} does not answer at {self._url}: {error}", hint=self._stumble_hint
            ) from error

    def stream(self, path: str) -> Iterator[bytes]:
        """The bytes of an answer as they come, until it ends or the connection does.

        Raises:
            ExecutorError: it is refused or breaks.
        """
        url = self._url + path
        try:
            with self._client.stream("GET", url, timeout=httpx.Timeout(TIMEOUT_S, read=None)) as response:
                if response.status_code != 200:
                    response.read()
                    raise ExecutorError(f"{self._name} answers {response.status_code} for the log: {_words(response)}")
                yield from response.iter_raw()
        except httpx.HTTPError as error:
            raise ExecutorError(f"the connection to {self._name} broke: {error}") from error

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _once(self, method: str, path: str, body: Any, params: Mapping[str, str] | None, content: bytes | None) -> Any:
        try:
            response = self._client.request(method, self._url + path, json=body, params=params, content=content)
        except httpx.HTTPError as error:
            raise _Stumbles(str(error) or type(error).__name__) from error
        if response.status_code >= 500 or response.status_code == 429:
            raise _Stumbles(f"{response.status_code} {_words(response)}")
        if response.status_code == 404:
            raise NotFoundError(f"{self._name} knows no `{path}`")
        if response.status_code in (401, 403):
            raise ExecutorError(
                f"{self._name} refuses the token ({response.status_code}): {_words(response)}",
                hint=self._token_hint,
            )
        if response.status_code >= 400:
            raise ExecutorError(f"{self._name} refuses {method} {path} ({response.status_code}): {_words(response)}")
        try:
            return response.json() if response.content else None
        except ValueError:
            raise ExecutorError(f"{self._name}'s answer to {method} {path} is no JSON") from None


def _words(response: httpx.Response) -> str:
    try:
        content = response.json()
    except ValueError:
        # Of a traceback, which some services send, the last line says what it is about.
        text = response.text.strip()
        return (text.splitlines()[-1] if text.startswith("Traceback") else text)[:300]
    if isinstance(content, dict):
        content = content.get("message") or content.get("detail") or content
    return str(content)[:300]
