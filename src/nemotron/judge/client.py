"""Asks an OpenAI-compatible endpoint or a model server of NeMo-Gym, and tells a slow judge from a dead one.

What is worth a second try (no connection, timeout, 429, 5xx) is retried with growing, jittered pauses; what is not (a
wrong token, an unknown model) stops the run at once. aiohttp, because httpx stalls at 64 concurrent requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import aiohttp
import tenacity

from nemotron.config.schema.judge import JudgeConfig
from nemotron.disk.documents import parse_json
from nemotron.errors import JudgeError
from nemotron.judge.messages import responses_request
from nemotron.judge.responses import read_response
from nemotron.judge.types import Message
from nemotron.processes.replies import TooLongError, read_text
from nemotron.vllm.tries import Interrupted, Tries

EXCERPT_CHARS = 300
SHORTEST_TOKEN = 8
"""Shorter ones are not looked for in what a judge says; they would be found by chance."""
MOST_BYTES = 4 << 20
"""Of an answer: more than a hundred thousand tokens, and what comes beside them."""
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0
_LONGEST_RETRY_AFTER_S = 60.0
_PROBE_PAUSE_S = 0.1
# 408 and 425 ask for a second try by definition.
_TRANSIENT_STATUS = frozenset({408, 425, 429})
# A refusal of what was asked. 401, 403 and 404 are about the endpoint, whatever is asked.
_MOST_TOKENS = 1 << 32
"""What an endpoint counts beyond it is no count."""
_REFUSES_ONE = frozenset({400, 413, 422})
_LARGEST_LOGPROB = 0.1
"""A probability is at most 1, but for rounding."""
_TOO_LONG_MARKS = ("context_length_exceeded", "maximum context length", "max_model_len")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible judge."""

    base_url: str
    """Up to and including ``/v1``."""
    model: str
    """The name it is served under."""
    api_key: str | None = field(default=None, repr=False)
    """Bearer token; never shown, not even in the repr."""
    api: Literal["chat", "responses"] = "chat"
    """``responses``: NeMo-Gym's ``genrm_model``, whose requests have the answers in ``metadata``."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the judge writes."""

    max_tokens: int
    temperature: float
    top_p: float
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer is held to."""
    top_logprobs: int = 0
    """Tokens whose probabilities come along, at every position."""

    def body(self) -> dict[str, Any]:
        """Fields of the request; none that has nothing to say, as not every endpoint knows all of them."""
        said: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        if self.schema is not None:
            named = {"name": "verdict", "schema": dict(self.schema), "strict": True}
            said["response_format"] = {"type": "json_schema", "json_schema": named}
        if self.top_logprobs:
            said |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return said


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request."""

    text: str | None
    """None when no usable answer came."""
    requests: int
    """HTTP requests sent for it."""
    failure: str | None = None
    """Why there is none."""
    first_token: Mapping[str, float] | None = None
    """Log-probabilities of what could stand first, by text; None where the endpoint gives none."""
    tokens_read: int = 0
    """Tokens of the question, as the endpoint counts them; 0 where it does not say."""
    tokens_written: int = 0


@dataclass(frozen=True, slots=True)
class _Said:
    """A completion."""

    text: str
    first_token: Mapping[str, float] | None
    tokens_read: int
    tokens_written: int


class Keeper(Protocol):
    """Whoever runs a judge, and knows how it is. Asked from threads of the client's."""

    @property
    def starts(self) -> int:
        """How often it has become ready."""

    def again(self, since: int) -> bool | None:
        """Whether what was asked while ``starts`` was ``since`` is lost, because the judge has been started again.

        None while that is not known: ask again in a moment. Raises JudgeError when it will never answer again.
        """


class _Transient(Exception):
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


class _Unanswerable(Exception):
    """This one request cannot be answered (too long, filtered, malformed to the endpoint); the others can."""


class JudgeClient:
    """One HTTP session to the judge. Belongs to the event loop it was entered in.

    Example::

        async with JudgeClient(endpoint, JudgeConfig()) as client:
            await client.wait_ready()
            answer = await client.ask(messages, sampling, seed=1)
    """

    def __init__(self, endpoint: Endpoint, config: JudgeConfig, *, keeper: Keeper | None = None) -> None:
        """``keeper``: who runs the judge, where that is known; it is asked when nothing comes back."""
        if endpoint.api_key is not None and not (endpoint.api_key.isascii() and endpoint.api_key.isprintable()):
            raise JudgeError(
                "`api_key` of the genrm block cannot be sent in an HTTP header",
                hint="it has a line break or a character outside ASCII; copy the token again",
            )
        self.endpoint = endpoint
        self.holds_digits = True
        """Whether it takes a schema for a single score (`judge.support` finds out)."""
        self._config = config
        self._keeper = keeper
        self._base = endpoint.base_url.rstrip("/")
        # A word such as EMPTY, which stands for no token, may stand in a verdict too.
        self._innocent = len(endpoint.api_key or "") < SHORTEST_TOKEN
        self._slots = asyncio.Semaphore(config.max_concurrent_requests)
        self._last_answer = time.monotonic()
        self._broken: str | None = None
        self._answered = False
        """Some request had a completion, so what is refused from now on is one request and not all."""
        self._in_flight = self._refusals = 0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self.endpoint.api_key}"} if self.endpoint.api_key else {}
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self._config.request_timeout_s),
            # The semaphore is the bound; a second one in the connector would count waiting time as request time.
            connector=aiohttp.TCPConnector(limit=0),
            # What one answer sets must not change how another question is asked.
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def wait_ready(self) -> None:
        """Wait until the endpoint answers and serves the model.

        Raises JudgeError when it does not answer within ``ready_timeout_s``, refuses the token, or serves other models.
        """
        if self.endpoint.api == "responses":
            # It is started beside whoever asks it, knows one model, and takes a request when the model is loaded.
            return
        deadline = time.monotonic() + self._config.ready_s
        while True:
            since = self._starts
            try:
                status, body, _ = await self._exchange("GET", "/models")
                if status < 500:
                    break
                reason = f"status {status}"
            except _Transient as failure:
                reason = failure.reason
            await self._started_again(since)
            if time.monotonic() >= deadline:
                raise JudgeError(
                    f"judge endpoint `{self._base}` is not ready after {self._config.ready_s:g} s ({reason})",
                    hint="start it, or correct `base_url`; `judge.ready_timeout_s` is how long to wait",
                )
            await asyncio.sleep(_PROBE_PAUSE_S)
        if status != 200:
            raise self._refused(status, body)
        served = _model_names(body)
        if served is None:
            raise JudgeError(
                f"judge endpoint `{self._base}` is no OpenAI-compatible server: `GET /models` gave {_excerpt(body)}",
                hint="`base_url` usually ends in `/v1`",
            )
        if self.endpoint.model not in served:
            names = ", ".join(f"`{name}`" for name in served) or "no model at all"
            raise JudgeError(
                f"judge endpoint `{self._base}` does not serve `{self.endpoint.model}`",
                hint=f"it serves {names}; set `model` of the genrm block to one of these",
            )

    async def ask(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Answer:
        """One completion, retried as the config says. No usable answer after all tries is an Answer with ``failure``.

        Raises JudgeError when retrying cannot help: the endpoint refuses (4xx other than 408, 425, 429), or it has
        given no sign of life to any request for as long as this one has been trying. 400, 413 and 422 are an Answer
        with the endpoint's words in ``failure`` where it answers other requests.
        """
        body = self._body(messages, sampling, seed)
        async with self._slots:
            started = time.monotonic()
            retrying = tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type((_Transient, Interrupted)),
                stop=Tries(self._config.max_retries + 1),
                wait=_pause,
                reraise=True,
            )
            said: _Said | None = None
            failure: str | None = None
            try:
                with self._counted():
                    said = await retrying(self._complete, body)
            except _Transient as error:
                failure = error.reason
                if error.unreachable and self._last_answer < started:
                    # All pauses went by and nobody got any answer: it is down. Spare the others their own retries.
                    self._broken = error.reason
                    self._check_circuit()
            except _Unanswerable as error:
                failure = str(error)
        requests = int(retrying.statistics["attempt_number"])
        if said is None:
            return Answer(None, requests, failure)
        return Answer(said.text, requests, None, said.first_token, said.tokens_read, said.tokens_written)

    async def takes(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """One completion of a request that the endpoint may not know: a refusal of it is an Answer with ``failure``.

        Raises JudgeError when it does not answer, or refuses whatever is asked (401, 403, 404).
        """
        # What it refuses, it refuses this one: an endpoint that answers nothing else is found out by the others.
        before, self._answered = self._answered, True
        try:
            return await self.ask(messages, sampling, seed=0)
        finally:
            self._answered = before

    def _body(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> dict[str, Any]:
        if self.endpoint.api == "chat":
            return {"model": self.endpoint.model, "messages": list(messages), **sampling.body(), "seed": seed}
        asked = responses_request(messages)
        # The Responses API knows no seed; NeMo-Gym's model server hands these on to the chat API.
        asked["metadata"]["extra_body"] = json.dumps({"seed": seed})
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        return {**asked, "max_output_tokens": sampling.max_tokens, **drawn}

    def _check_circuit(self) -> None:
        if self._broken is not None:
            raise JudgeError(
                f"judge endpoint `{self._base}` does not answer ({self._broken})",
                hint="see whether it still runs; `judge.max_retries` and `judge.request_timeout_s` say how long to try",
            )

    @property
    def _starts(self) -> int:
        return self._keeper.starts if self._keeper else 0

    async def _complete(self, body: dict[str, Any]) -> _Said:
        since = self._starts
        try:
            return await self._asked_once(body)
        except _Transient as failure:
            if failure.failing and await self._started_again(since):
                raise Interrupted from failure
            raise

    async def _asked_once(self, body: dict[str, Any]) -> _Said:
        self._check_circuit()
        chat = self.endpoint.api == "chat"
        status, raw, headers = await self._exchange("POST", "/chat/completions" if chat else "/responses", body)
        if status in _TRANSIENT_STATUS or status >= 500:
            raise _Transient(
                f"status {status}: {self._without_token(_excerpt(raw))}",
                failing=status >= 500,
                retry_after_s=_retry_after(headers),
            )
        if status == 400 and any(mark in raw for mark in _TOO_LONG_MARKS):
            raise _Unanswerable("does not fit the judge's context")
        if status in _REFUSES_ONE and await self._others_are_answered():
            raise _Unanswerable(f"status {status}: {self._without_token(_excerpt(raw))}")
        if status != 200:
            raise self._refused(status, raw)
        said = _said(raw) if chat else _output(raw)
        if said is None:
            raise _Transient(f"not a {'chat completion' if chat else 'response'}: {self._without_token(_excerpt(raw))}")
        self._answered = True
        # Once more: JSON has many ways to write a text.
        return said if self._innocent else replace(said, text=self._without_token(said.text))

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def _others_are_answered(self) -> bool:
        """Whether the endpoint answers anything at all; waits for the requests that are on their way beside this one.

        Which of them comes back first must not decide whether the run goes on.
        """
        self._refusals += 1
        try:
            while not self._answered and self._refusals < self._in_flight:
                await asyncio.sleep(_PROBE_PAUSE_S)
            return self._answered
        finally:
            self._refusals -= 1

    async def _exchange(self, method: str, path: str, body: object = None) -> tuple[int, str, Any]:
        """Status, text and headers of one exchange. Raises _Transient when nothing came back."""
        if self._session is None:
            raise RuntimeError("JudgeClient is used outside of its `async with` block")
        try:
            async with self._session.request(method, self._base + path, json=body) as response:
                text = await read_text(response, MOST_BYTES)
                self._last_answer = time.monotonic()
                # Some gateways echo what they were sent. What is read here may be kept, shown or trained on.
                text = text if response.status == 200 and self._innocent else self._without_token(text)
                return response.status, text, response.headers
        except TimeoutError as error:
            raise _Transient(f"no answer within {self._config.request_timeout_s:g} s", unreachable=True) from error
        except TooLongError as error:
            self._last_answer = time.monotonic()
            raise _Transient(str(error)) from error
        except aiohttp.InvalidURL as error:
            raise JudgeError(f"`{self._base}` is not a URL", hint="write it as `http://HOST:PORT/v1`") from error
        except aiohttp.ClientError as error:
            raise _Transient(self._without_token(_why(error)), unreachable=True) from error

    async def _started_again(self, since: int) -> bool:
        """Whether the judge has been started again since then; waits while it is. Raises JudgeError when it is gone."""
        if self._keeper is None:
            return False
        while (again := await asyncio.to_thread(self._keeper.again, since)) is None:
            await asyncio.sleep(_PROBE_PAUSE_S)
        return again

    def _without_token(self, said: str) -> str:
        return said.replace(self.endpoint.api_key, "[token]") if self.endpoint.api_key else said

    def _refused(self, status: int, body: str) -> JudgeError:
        hints = {
            401: "set `api_key` of the genrm block to the token the endpoint expects",
            403: "set `api_key` of the genrm block to a token that may use this model",
            404: "check `base_url` (it usually ends in `/v1`) and `model` of the genrm block",
        }
        said = self._without_token(_excerpt(body))
        return JudgeError(
            f"judge endpoint `{self._base}` refused the request with status {status}: {said}",
            hint=hints.get(status, "the endpoint's answer above says why"),
        )


def _why(error: aiohttp.ClientError) -> str:
    """What went wrong with a connection. Where the answer is no HTTP, aiohttp would quote it."""
    if isinstance(error, aiohttp.TooManyRedirects):
        return "it redirects without end"
    if isinstance(error, aiohttp.ClientResponseError):
        return "its answer is no HTTP"
    return " ".join(f"{type(error).__name__}: {error}".split())[:EXCERPT_CHARS]


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: what the endpoint asked for, else random up to a doubling bound."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, Interrupted):
        return 0.0
    if isinstance(error, _Transient) and error.retry_after_s is not None:
        return error.retry_after_s
    return tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S)(state)


def _retry_after(headers: Any) -> float | None:
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


def _said(raw: str) -> _Said | None:
    """The first choice; an empty text when the model said nothing; None when this is no chat completion."""
    try:
        answer = parse_json(raw)
        choice = answer["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    if content is not None and not isinstance(content, str):
        return None
    usage = answer.get("usage")
    read, written = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    return _Said(content or "", _first_token(choice), read, written)


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS:
        return value
    return 0


def _first_token(choice: Mapping[str, Any]) -> dict[str, float] | None:
    """What could stand first, by its text; of texts that several tokens have, the sum."""
    try:
        entries = choice["logprobs"]["content"][0]["top_logprobs"]
        found: dict[str, float] = {}
        for entry in entries:
            text, value = str(entry["token"]), float(entry["logprob"])
            if not value <= _LARGEST_LOGPROB:
                return None
            found[text] = value if text not in found else math.log(math.exp(value) + math.exp(found[text]))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None
    return found or None


def _output(raw: str) -> _Said | None:
    """The answer in a Responses-API object, without what was thought before; None when this is none."""
    try:
        response = parse_json(raw)
    except ValueError:
        return None
    if not isinstance(response, dict) or not isinstance(response.get("output"), list):
        return None
    return _Said(read_response(response).answer, None, 0, 0)


def _model_names(raw: str) -> list[str] | None:
    try:
        return [str(entry["id"]) for entry in parse_json(raw)["data"]]
    except (ValueError, KeyError, TypeError):
        return None


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return f"`{flat[:EXCERPT_CHARS]}{'...' if len(flat) > EXCERPT_CHARS else ''}`" if flat else "nothing"
