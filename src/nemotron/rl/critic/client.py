"""The actor's side: asks the critic in the background, and ends the actor when the critic is gone.

Requests run in an event loop in a thread of their own, so generation and log-probs go on meanwhile. What is worth a
second try (no connection, timeout, 5xx) is retried with growing, jittered pauses; an update carries a number, so that a
retry is never applied twice. A WebSocket that both sides hold as long as they live tells each at once when the other
has died.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import signal
import threading
import time
from collections.abc import Coroutine, Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import tenacity
import torch
from torch import Tensor

from nemotron.config.schema.ppo import CriticConfig
from nemotron.errors import EngineError
from nemotron.rl.critic.local import TOKEN_VARIABLE, RunningCritic
from nemotron.rl.critic.server import FINISHED
from nemotron.rl.critic.wire import CONTENT_TYPE, INFERRED, WireError, pack, unpack

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_PROBE_PAUSE_S = 0.1
_CLOSE_TIMEOUT_S = 5.0
_RESUME_HINT = "`nemotron runs resume` goes on from the last checkpoint"
T = TypeVar("T")


class _Transient(Exception):
    """Worth another try."""


class CriticClient:
    """One actor's connection to its critic.

    Entering waits until the critic answers and attaches to it (EngineError otherwise). Leaving says goodbye, which ends
    the server; when an exception passes through, the server is left to notice.

    Example::

        with CriticClient(critic, config.critic) as client, client.interrupting():
            client.begin(0, config.agreement())
            answers = [client.infer(padded([group])) for group in groups]
            ...  # log-probs meanwhile
            rewards = [answer.result()["rewards"] for answer in answers]
    """

    def __init__(self, critic: RunningCritic, config: CriticConfig) -> None:
        self._critic, self._config = critic, config
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="critic-client", daemon=True)
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._lost: asyncio.Future[str] | None = None
        self._reason: str | None = None
        self._interrupt = False
        self._leaving = False
        self._number = 0
        self._updating = asyncio.Lock()
        self._base = ""

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._run(self._open()).result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            # A server that does not listen any more ends when the connection does.
            with contextlib.suppress(TimeoutError):
                self._run(self._goodbye()).result(_CLOSE_TIMEOUT_S)
        self.close()

    def begin(self, step: int, config: str) -> None:
        """Let the critic start from checkpoint ``step`` (0: from its first weights).

        Raises EngineError, also when ``config`` (``PpoMasterConfig.agreement``) is not that of the server.
        """
        self._number = 0
        body = json.dumps({"step": step, "config": config}).encode()
        self._run(self._call("begin", body, "application/json")).result()

    def infer(self, tensors: dict[str, Tensor]) -> concurrent.futures.Future[dict[str, Tensor]]:
        """Values and rewards of the rows ``wire.padded`` made. The future raises EngineError."""
        return self._run(self._infer(pack(tensors)))

    def train(self, tensors: dict[str, Tensor]) -> concurrent.futures.Future[dict[str, float]]:
        """One update (``wire.TRAIN`` without ``number``); updates are applied in the order of these calls."""
        body = pack({**tensors, "number": torch.tensor([self._number])})
        self._number += 1
        return self._run(self._train(body))

    def save(self, step: int) -> None:
        """Let the critic write its part into the checkpoint that is being written. Raises EngineError."""
        self._run(self._call("save", json.dumps({"step": step}).encode(), "application/json")).result()

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Meanwhile a lost critic interrupts whatever the main thread computes, with an EngineError.

        Without it only the calls of this client raise. Needs to be entered in the main thread.
        """

        def stop(signum: int, frame: FrameType | None) -> None:
            if self._interrupt:
                self._interrupt = False
                raise self._gone()

        # The handler stays: a signal that is on its way when the block ends must not meet the default, which kills.
        signal.signal(signal.SIGUSR1, stop)
        self._interrupt = True
        try:
            if self._reason is not None:
                raise self._gone()
            yield
        finally:
            self._interrupt = False

    def close(self) -> None:
        """Drop the connection and stop the thread. May be called more than once."""
        if self._loop.is_closed():
            return
        self._leaving = True
        if self._thread.is_alive():
            with contextlib.suppress(TimeoutError):
                self._run(self._shut_down()).result(_CLOSE_TIMEOUT_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_TIMEOUT_S)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _gone(self) -> EngineError:
        return EngineError(self._reason or "the critic is gone", hint=_RESUME_HINT)

    async def _open(self) -> None:
        address = await asyncio.to_thread(lambda: self._critic.address)
        self._base = address.url.rstrip("/")
        self._lost = asyncio.get_running_loop().create_future()
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {address.token}"},
            timeout=aiohttp.ClientTimeout(total=self._config.request_timeout_s),
            connector=aiohttp.TCPConnector(limit=0),
        )
        await self._wait_ready(self._session)
        await self._attach(self._session)

    async def _wait_ready(self, session: aiohttp.ClientSession) -> None:
        deadline = time.monotonic() + self._config.ready_timeout_s
        while True:
            try:
                async with session.get(f"{self._base}/health") as answer:
                    if answer.status == 200:
                        return
                    reason = f"status {answer.status}"
            except aiohttp.InvalidURL as error:
                raise EngineError(
                    f"`critic.address` is `{self._base}`, which is no URL", hint="write it as `http://HOST:PORT`"
                ) from error
            except (TimeoutError, aiohttp.ClientError) as error:
                reason = str(error) or type(error).__name__
            if time.monotonic() >= deadline:
                raise EngineError(
                    f"the critic at `{self._base}` is not ready after {self._config.ready_timeout_s:g} s ({reason})",
                    hint="start it with `--only critic`, or correct `critic.address`; `critic.ready_timeout_s` is how "
                    "long to wait",
                )
            await asyncio.sleep(_PROBE_PAUSE_S)

    async def _attach(self, session: aiohttp.ClientSession) -> None:
        try:
            self._socket = await session.ws_connect(
                f"{self._base}/attach", heartbeat=self._config.heartbeat_s / 1.5, max_msg_size=1024
            )
        except aiohttp.WSServerHandshakeError as error:
            reasons = {
                401: (
                    "refuses the token",
                    f"both sides need the same `{TOKEN_VARIABLE}` in their environment",
                ),
                409: ("serves another actor", "every actor needs a critic of its own"),
            }
            said, hint = reasons.get(error.status, (f"refuses us with status {error.status}", "is it a critic?"))
            raise EngineError(f"the critic at `{self._base}` {said}", hint=hint) from error
        except (TimeoutError, aiohttp.ClientError) as error:
            raise EngineError(f"the critic at `{self._base}` cannot be reached: {error}") from error
        self._watcher = asyncio.ensure_future(self._watch(self._socket))

    async def _watch(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Wait for the end of the connection, which is the end of the critic."""
        async for _ in socket:
            continue
        if self._leaving:
            return
        reason = await asyncio.to_thread(self._critic.explain)
        self._reason = reason or f"the critic at `{self._base}` is gone: its connection broke or gave no sign of life"
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(self._reason)
        if self._interrupt and (main := threading.main_thread().ident) is not None:
            signal.pthread_kill(main, signal.SIGUSR1)

    async def _goodbye(self) -> None:
        self._leaving = True
        if self._socket is not None and not self._socket.closed:
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                await self._socket.send_str(FINISHED)
            await self._socket.close()

    async def _shut_down(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _infer(self, body: bytes) -> dict[str, Tensor]:
        answer = await self._call("infer", body, CONTENT_TYPE)
        try:
            return unpack(answer, INFERRED)
        except WireError as error:
            raise EngineError(
                f"the critic's answer to `infer` cannot be used: {error}",
                hint="a reward or value that is not finite means that training has diverged: lower the learning rates",
            ) from error

    async def _train(self, body: bytes) -> dict[str, float]:
        # One after the other: requests on connections of their own may overtake each other, retries even more so.
        async with self._updating:
            metrics: dict[str, float] = json.loads(await self._call("train", body, CONTENT_TYPE))
        return metrics

    async def _call(self, name: str, body: bytes, content_type: str) -> bytes:
        """The body of the answer, after retries; ends at once when the critic is lost. Raises EngineError."""
        if self._lost is None:
            raise RuntimeError("CriticClient is used outside of its `with` block")
        asking = asyncio.ensure_future(self._retrying(name, body, content_type))
        waiting: set[asyncio.Future[Any]] = {asking, self._lost}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            asking.cancel()
            raise self._gone()
        return asking.result()

    async def _retrying(self, name: str, body: bytes, content_type: str) -> bytes:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            stop=tenacity.stop_after_attempt(self._config.max_retries + 1),
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
            reraise=True,
        )
        try:
            return await retrying(self._exchange, name, body, content_type)
        except _Transient as error:
            raise EngineError(
                f"the critic at `{self._base}` does not answer `{name}`: {error}",
                hint="the critic's own log (`logs/critic.log` of its run) may say why; `critic.max_retries` and "
                "`critic.request_timeout_s` say how long to try",
            ) from error

    async def _exchange(self, name: str, body: bytes, content_type: str) -> bytes:
        if self._session is None:
            raise RuntimeError("CriticClient is used outside of its `with` block")
        try:
            async with self._session.post(
                f"{self._base}/{name}", data=body, headers={"Content-Type": content_type}
            ) as answer:
                content = await answer.read()
        except TimeoutError as error:
            raise _Transient(f"nothing within {self._config.request_timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise _Transient(str(error) or type(error).__name__) from error
        if answer.status == 200:
            return content
        said = _failure(content)
        if answer.status >= 500 and not said.get("fatal"):
            raise _Transient(f"status {answer.status}: {said['error']}")
        hint = said.get("hint")
        if answer.status == 413:
            hint = "raise `critic.max_request_mib`, or lower `ppo.num_prompts_per_step`"
        raise EngineError(f"the critic refuses `{name}`: {said['error']}", hint=hint)


def _failure(content: bytes) -> dict[str, Any]:
    try:
        said = json.loads(content)
    except ValueError:
        said = None
    if isinstance(said, dict) and "error" in said:
        return said
    return {"error": " ".join(content.decode(errors="replace").split())[:300] or "no reason given"}
