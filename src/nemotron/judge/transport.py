"""One HTTP exchange with a judge: what came back, or why nothing did. Nothing that leaves here has the token in it.

aiohttp, because httpx stalls at 64 concurrent requests.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from nemotron.errors import JudgeError
from nemotron.judge.completions import EXCERPT_CHARS
from nemotron.judge.endpoint import Endpoint
from nemotron.processes.replies import TooLongError, read_text

SHORTEST_TOKEN = 8
"""Shorter ones are not looked for in what a judge says; they would be found by chance."""
MOST_BYTES = 4 << 20
"""Of an answer: more than a hundred thousand tokens, and what comes beside them."""
_LONGEST_RETRY_AFTER_S = 60.0


class Transient(Exception):
    """Worth another try. ``unreachable``: nothing at all came back; ``failing``: the server itself is in trouble."""

    def __init__(
        self,
        reason: str,
        *,
        unreachable: bool = False,
        failing: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unreachable = unreachable
        self.failing = failing or unreachable
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    text: str
    headers: Mapping[str, str]


class Transport:
    """An HTTP session. Belongs to the event loop in which it was opened."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        """``timeout_s``: of one exchange. Raises JudgeError for a token that no header can carry."""
        key = endpoint.api_key
        if key is not None and not (key.isascii() and key.isprintable()):
            raise JudgeError(
                "`api_key` of the genrm block cannot be sent in an HTTP header",
                hint="it has a line break or a character outside ASCII; copy the token again",
            )
        self.base = endpoint.base_url.rstrip("/")
        self.last_answer = time.monotonic()
        self.innocent = len(key or "") < SHORTEST_TOKEN
        """A word such as EMPTY, which stands for no token, may stand in a verdict too."""
        self._key = key
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    def begin(self) -> None:
        """The session; from now on requests can be made."""
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            # Whoever asks bounds the requests; a second bound here would count waiting time as request time.
            connector=aiohttp.TCPConnector(limit=0),
            # What one answer sets must not change how another question is asked.
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """End what is in flight."""
        if self._session is not None:
            await self._session.close()

    async def exchange(self, method: str, path: str, body: object = None) -> Reply:
        """Ask once. Raises Transient when nothing came back, JudgeError when the address is none."""
        if self._session is None:
            raise RuntimeError("JudgeClient is used outside of its `async with` block")
        try:
            async with self._session.request(method, self.base + path, json=body) as response:
                text = await read_text(response, MOST_BYTES)
                self.last_answer = time.monotonic()
                # Some gateways echo what they were sent. What is read here may be kept, shown or trained on.
                text = text if response.status == 200 and self.innocent else self.without_token(text)
                return Reply(response.status, text, response.headers)
        except TimeoutError as error:
            raise Transient(f"no answer within {self._timeout_s:g} s", unreachable=True) from error
        except TooLongError as error:
            self.last_answer = time.monotonic()
            raise Transient(str(error)) from error
        except aiohttp.InvalidURL as error:
            raise JudgeError(f"`{self.base}` is not a URL", hint="write it as `http://HOST:PORT/v1`") from error
        except aiohttp.ClientError as error:
            raise Transient(self.without_token(_why(error)), unreachable=True) from error

    def without_token(self, said: str) -> str:
        """For people."""
        return said.replace(self._key, "[token]") if self._key else said


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds asked for by a Retry-After header (a number or an HTTP date), at most a minute; None without one."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)


def _why(error: aiohttp.ClientError) -> str:
    """What went wrong with a connection. Where the answer is no HTTP, aiohttp would quote it."""
    if isinstance(error, aiohttp.TooManyRedirects):
        return "it redirects without end"
    if isinstance(error, aiohttp.ClientResponseError):
        return "its answer is no HTTP"
    return " ".join(f"{type(error).__name__}: {error}".split())[:EXCERPT_CHARS]
