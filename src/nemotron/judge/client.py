"""Asks an OpenAI-compatible endpoint or a model server of NeMo-Gym, and tells a slow judge from a dead one.

What is worth a second try (no connection, timeout, 429, 5xx) is retried with growing, jittered pauses; what is not (a
wrong token, an unknown model) stops the run at once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import tenacity

from nemotron.config.schema.judge import JudgeConfig
from nemotron.errors import JudgeError
from nemotron.judge.completions import Said, chat_completion, excerpt, model_names, response_text, too_long
from nemotron.judge.endpoint import Answer, Endpoint, Keeper, Sampling
from nemotron.judge.messages import responses_request
from nemotron.judge.transport import Reply, Transient, Transport, retry_after
from nemotron.judge.types import Message
from nemotron.vllm.tries import Interrupted, Tries

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 8.0
_PROBE_PAUSE_S = 0.1
# 408 and 425 ask for a second try by definition.
_TRANSIENT_STATUS = frozenset({408, 425, 429})
# A refusal of what was asked. 401, 403 and 404 are about the endpoint, whatever is asked.
_REFUSES_ONE = frozenset({400, 413, 422})


class _Unanswerable(Exception):
    """This one request cannot be answered (too long, filtered, malformed to the endpoint); the others can."""


class _Question:
    """One request, until it is answered or given up."""

    def __init__(self, once: Callable[[], Awaitable[Said]]) -> None:
        self.requests = 0
        """Sent so far."""
        self._once = once

    async def answered(self, tries: int) -> Said:
        """The answer. Raises what the last try raised."""
        # Nearly all are answered at once, and what counts the tries costs a third of an exchange.
        try:
            return await self._try()
        except (Transient, Interrupted) as error:
            failed: list[Exception] = [error]

        async def further() -> Said:
            if failed:
                raise failed.pop()
            return await self._try()

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((Transient, Interrupted)),
            stop=Tries(tries),
            wait=_pause,
            reraise=True,
        )
        return await retrying(further)

    async def _try(self) -> Said:
        self.requests += 1
        return await self._once()


class JudgeClient:
    """One HTTP session to the judge. Belongs to the event loop it was entered in.

    Example::

        async with JudgeClient(endpoint, JudgeConfig()) as client:
            await client.wait_ready()
            answer = await client.ask(messages, sampling, seed=1)
    """

    def __init__(self, endpoint: Endpoint, config: JudgeConfig, *, keeper: Keeper | None = None) -> None:
        """``keeper``: who runs the judge, where that is known; it is asked when nothing comes back."""
        self.endpoint = endpoint
        self.holds_digits = True
        """Whether it takes a schema for a single score (`judge.support` finds out)."""
        self._config = config
        self._keeper = keeper
        self._http = Transport(endpoint, config.request_timeout_s)
        self._slots = asyncio.Semaphore(config.max_concurrent_requests)
        self._broken: str | None = None
        self._answered = False
        """Some request had a completion, so what is refused from now on is one request and not all."""
        self._in_flight = self._refusals = 0

    async def __aenter__(self) -> Self:
        self._http.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

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
                reply = await self._http.exchange("GET", "/models")
                if reply.status < 500:
                    break
                reason = f"status {reply.status}"
            except Transient as failure:
                reason = failure.reason
            await self._started_again(since)
            if time.monotonic() >= deadline:
                raise JudgeError(
                    f"judge endpoint `{self._http.base}` is not ready after {self._config.ready_s:g} s ({reason})",
                    hint="start it, or correct `base_url`; `judge.ready_timeout_s` is how long to wait",
                )
            await asyncio.sleep(_PROBE_PAUSE_S)
        if reply.status != 200:
            raise self._refused(reply)
        served = model_names(reply.text)
        if served is None:
            raise JudgeError(
                f"judge endpoint `{self._http.base}` is no OpenAI-compatible server: "
                f"`GET /models` gave {excerpt(reply.text)}",
                hint="`base_url` usually ends in `/v1`",
            )
        if self.endpoint.model not in served:
            names = ", ".join(f"`{name}`" for name in served) or "no model at all"
            raise JudgeError(
                f"judge endpoint `{self._http.base}` does not serve `{self.endpoint.model}`",
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
            said: Said | None = None
            failure: str | None = None
            question = _Question(partial(self._complete, body))
            self._in_flight += 1
            try:
                said = await question.answered(self._config.max_retries + 1)
            except Transient as error:
                failure = error.reason
                if error.unreachable and self._http.last_answer < started:
                    # All pauses went by and nobody got any answer: it is down. Spare the others their own retries.
                    self._broken = error.reason
                    self._check_circuit()
            except _Unanswerable as error:
                failure = str(error)
            finally:
                self._in_flight -= 1
        if said is None:
            return Answer(None, question.requests, failure)
        return Answer(said.text, question.requests, None, said.first_token, said.tokens_read, said.tokens_written)

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
                f"judge endpoint `{self._http.base}` does not answer ({self._broken})",
                hint="see whether it still runs; `judge.max_retries` and `judge.request_timeout_s` say how long to try",
            )

    @property
    def _starts(self) -> int:
        return self._keeper.starts if self._keeper else 0

    async def _complete(self, body: dict[str, Any]) -> Said:
        since = self._starts
        try:
            return await self._asked_once(body)
        except Transient as failure:
            if failure.failing and await self._started_again(since):
                raise Interrupted from failure
            raise

    async def _asked_once(self, body: dict[str, Any]) -> Said:
        self._check_circuit()
        chat = self.endpoint.api == "chat"
        reply = await self._http.exchange("POST", "/chat/completions" if chat else "/responses", body)
        if reply.status in _TRANSIENT_STATUS or reply.status >= 500:
            raise Transient(
                f"status {reply.status}: {self._http.without_token(excerpt(reply.text))}",
                failing=reply.status >= 500,
                retry_after_s=retry_after(reply.headers),
            )
        if reply.status == 400 and too_long(reply.text):
            raise _Unanswerable("does not fit the judge's context")
        if reply.status in _REFUSES_ONE and await self._others_are_answered():
            raise _Unanswerable(f"status {reply.status}: {self._http.without_token(excerpt(reply.text))}")
        if reply.status != 200:
            raise self._refused(reply)
        said = chat_completion(reply.text) if chat else response_text(reply.text)
        if said is None:
            shown = self._http.without_token(excerpt(reply.text))
            raise Transient(f"not a {'chat completion' if chat else 'response'}: {shown}")
        self._answered = True
        # Once more: JSON has many ways to write a text.
        return said if self._http.innocent else replace(said, text=self._http.without_token(said.text))

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

    async def _started_again(self, since: int) -> bool:
        """Whether the judge has been started again since then; waits while it is. Raises JudgeError when it is gone."""
        if self._keeper is None:
            return False
        while (again := await asyncio.to_thread(self._keeper.again, since)) is None:
            await asyncio.sleep(_PROBE_PAUSE_S)
        return again

    def _refused(self, reply: Reply) -> JudgeError:
        hints = {
            401: "set `api_key` of the genrm block to the token the endpoint expects",
            403: "set `api_key` of the genrm block to a token that may use this model",
            404: "check `base_url` (it usually ends in `/v1`) and `model` of the genrm block",
        }
        said = self._http.without_token(excerpt(reply.text))
        return JudgeError(
            f"judge endpoint `{self._http.base}` refused the request with status {reply.status}: {said}",
            hint=hints.get(reply.status, "the endpoint's answer above says why"),
        )


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: what the endpoint asked for, else random up to a doubling bound."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, Interrupted):
        return 0.0
    if isinstance(error, Transient) and error.retry_after_s is not None:
        return error.retry_after_s
    return tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S)(state)
