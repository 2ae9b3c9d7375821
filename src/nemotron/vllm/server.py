"""Keeps one `vllm serve` running: waits until it answers, starts it again when it dies, leaves nothing of it behind."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import tenacity

from nemotron.errors import NemotronError
from nemotron.processes.answering import healthy
from nemotron.processes.child import ServerChild
from nemotron.vllm.arguments import Serve
from nemotron.vllm.log import cause, last_words

HOST = "127.0.0.1"
_POLL_S = 0.2
_TELL_EVERY_S = 5.0
_STOP_S = 15.0
"""Seconds for a polite end, in which vLLM removes its sockets and shared memory."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LOG_BYTES, _WORDS_BYTES = 1 << 16, 1 << 12

Tell = Callable[[str], None]


class _Died(Exception):
    """It answered, and does no more; or it did not come back. Another start may help."""


class _Closed(Exception):
    """Nobody needs it any more."""


class VllmServer:
    """Serves one model on loopback behind a bearer token that it makes up, until it is closed.

    Entering returns at once: loading takes minutes that the caller can use. A server that does not start at all is an
    error (another start would repeat it); one that dies later is started again, ``max_restarts`` times in all, after
    pauses that grow. It has a process group of its own on a leash, so it outlives neither this block nor a parent that
    was killed.

    Example::

        with VllmServer("the judge `m`", serve, failure=JudgeError, ready_timeout_s=600, max_restarts=3) as server:
            server.wait(print)
            ...  # server.url, server.token; after a lost connection: server.again(since)
    """

    def __init__(
        self,
        what: str,
        serve: Serve,
        *,
        failure: type[NemotronError],
        ready_timeout_s: float,
        ready_key: str,
        max_restarts: int,
        log_path: Path | None = None,
        at: Path | None = None,
        host: str = HOST,
        token: str | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            what: what is served, for messages.
            failure: the error that a server is which cannot be had.
            ready_key: the config key of ``ready_timeout_s``.
            log_path: where its words go; those of later starts go beside it. By default a file that vanishes.
            at: the socket that it answers at, in a folder of this user alone; by default a port of loopback, which
                other users of the machine reach, too, and are asked for the token at what vLLM guards.
            host: the interface of that port.
            token: what is asked for; by default one that nobody else knows.
        """
        self._what, self._serve, self._failure = what, serve, failure
        self._ready_timeout_s, self._ready_key, self._max_restarts = ready_timeout_s, ready_key, max_restarts
        self._log_path = log_path
        self._note: Tell | None = None
        self.token = token or secrets.token_urlsafe(32)
        self._at, self._host = at, host
        self._reserved = _reserved(host) if at is None else None
        self._port: int = self._reserved.getsockname()[1] if self._reserved else 0
        if self._reserved is not None and sys.platform != "linux":
            # Elsewhere nobody could listen there beside it.
            self._reserved.close()
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._tries = self._starts = 0
        self._words = ""
        """What it said last while it loads."""
        self._began = time.monotonic()
        self._child: ServerChild | None = None
        self._process: subprocess.Popen[bytes] | None = None
        """The process that answers; None while none does."""
        self._gone: NemotronError | None = None
        self._thread = threading.Thread(target=self._keep, name="vllm-keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where it answers, now or later: the same after every start."""
        return f"http://{HOST}:{self._port}" if self._at is None else "http://localhost"

    @property
    def port(self) -> int:
        """Of the machine, now or later; 0 of one with a socket."""
        return self._port

    @property
    def _healthy(self) -> bool | None:
        return healthy(f"{self.url}/health" if self._at is None else f"unix:{self._at}:/health")

    @property
    def starts(self) -> int:
        """How often it has become ready."""
        return self._starts

    @property
    def pid(self) -> int | None:
        """The process group of the server that answers."""
        process = self._process
        return process.pid if process else None

    def wait(self, tell: Tell, note: Tell | None = None) -> None:
        """Wait until it answers; ``tell`` hears what it is doing meanwhile, ``note`` of every later start.

        Raises:
            NemotronError: of the kind ``failure``: it could not be started, or not within ``ready_timeout_s``.
        """
        self._note = note
        said, told = "", 0.0
        while True:
            with self._changed:
                self._raise_if_gone()
                if self._process is not None:
                    return
                self._changed.wait(_POLL_S)
                words, since = self._words, time.monotonic() - self._began
            if words != said and time.monotonic() - told >= _TELL_EVERY_S:
                said, told = words, time.monotonic()
                tell(f"vLLM starts, {since:.0f} s: {words}")

    def again(self, since: int) -> bool | None:
        """Whether what was asked while ``starts`` was ``since`` is lost, because the server has been started again.

        None while that is not known: ask again in a moment. For any thread, when nothing came back.

        Raises:
            NemotronError: of the kind ``failure``: it is gone for good.
        """
        with self._changed:
            self._raise_if_gone()
            if self._closing.is_set():
                return False
            process, child = self._process, self._child
            if process is None or child is None:
                self._changed.wait(_POLL_S)
                return None
            if self._starts > since:
                return True
        # A refused connection is noticed a little before the process is gone.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
            return None
        if self._healthy is False:
            # Its engine is dead: it answers with errors for some seconds, and would answer so for ever if it hung.
            child.kill()
            return None
        return False

    def close(self) -> None:
        """End it. May be called more than once."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        if self._reserved is not None:
            self._reserved.close()

    def _raise_if_gone(self) -> None:
        if self._gone is not None:
            raise type(self._gone)(self._gone.message, hint=self._gone.hint)

    def _keep(self) -> None:
        """The thread: one life after the other."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Died),
            stop=tenacity.stop_after_attempt(self._max_restarts + 1) | tenacity.stop_when_event_set(self._closing),
            wait=tenacity.wait_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
            sleep=tenacity.sleep_using_event(self._closing),
            before_sleep=self._tell_of_restart,
            reraise=True,
        )
        try:
            retrying(self._live)
        except _Closed:
            return
        except _Died as death:
            times = f"{self._tries} times" if self._tries > 1 else "once"
            self._give_up(
                self._failure(
                    f"vLLM, which serves {self._what}, has died {times}, the last time {death}{self._where_log()}",
                    hint="its own words say why; `max_restarts` beside the settings of the server is how often it is "
                    "started again, and the run can be resumed from its last checkpoint",
                )
            )
        except NemotronError as error:
            self._give_up(error)
        except Exception as error:
            # Whoever waits for it must not do so for ever.
            self._give_up(self._failure(f"{self._what} is not kept running any more: {error!r}"))
            raise

    def _live(self) -> None:
        """One start and what comes of it. Raises _Died, _Closed, or an error that another start would repeat."""
        if self._closing.is_set():
            raise _Closed
        self._tries += 1
        child = ServerChild("vLLM", hidden=[self.token], log_path=self._log(), log_stdout=True)
        variables = {**self._serve.variables, "VLLM_API_KEY": self.token}
        with self._changed:
            self._child, self._began = child, time.monotonic()
        address = ("--host", self._host, "--port", str(self._port)) if self._at is None else ("--uds", str(self._at))
        if self._at is not None:
            # A socket that a server before it has left behind cannot be bound.
            self._at.unlink(missing_ok=True)
        try:
            child.start_on_leash(self._serve.argv(*address), variables, clean=True)
            self._until_ready(child)
            with self._changed:
                self._starts += 1
                self._process = child.process
                self._changed.notify_all()
            while child.running:
                if self._closing.wait(_POLL_S):
                    raise _Closed
            raise _Died(f"with exit code {child.returncode()}: {cause(child.words(_LOG_BYTES))}")
        finally:
            with self._changed:
                self._process = None
                self._changed.notify_all()
            _end(child)

    def _until_ready(self, child: ServerChild) -> None:
        deadline = self._began + self._ready_timeout_s
        while self._healthy is not True:
            if self._closing.wait(_POLL_S):
                raise _Closed
            self._words = last_words(child.words(_WORDS_BYTES))
            if child.running and time.monotonic() < deadline:
                continue
            code = child.returncode()
            said = cause(child.words(_LOG_BYTES)) if code is not None else self._words or "nothing"
            late = f"is not ready after {self._ready_timeout_s:g} s; vLLM said last: {said}"
            if self._starts:
                raise _Died(f"before it was ready again, with exit code {code}: {said}" if code is not None else late)
            if code is not None:
                raise self._failure(
                    f"vLLM could not serve {self._what} (exit code {code}): {said}{self._where_log()}",
                    hint="its own words say why; its settings are `vllm_serve_kwargs` beside the model's name",
                )
            raise self._failure(
                f"{self._what} {late}{self._where_log()}", hint=f"`{self._ready_key}` is how long to wait"
            )

    def _tell_of_restart(self, state: tenacity.RetryCallState) -> None:
        death = state.outcome.exception() if state.outcome else None
        if self._note is not None:
            self._note(
                f"vLLM, which serves {self._what}, died {death}; started again ({self._tries} of {self._max_restarts})"
            )

    def _give_up(self, error: NemotronError) -> None:
        with self._changed:
            self._gone = error
            self._changed.notify_all()

    def _log(self) -> Path | None:
        path = self._log_path
        if path is None or self._tries == 1:
            return path
        return path.with_name(f"{path.stem}.{self._tries}{path.suffix}")

    def _where_log(self) -> str:
        return f" (log: `{self._log()}`)" if self._log_path else ""


def _reserved(host: str) -> socket.socket:
    """A port that the kernel gives nobody else before a server listens there, nor between two of its lives."""
    held = socket.socket()
    # Servers have this option, too: whoever asks for this very port still gets it.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    return held


def _end(child: ServerChild) -> None:
    """Politely first, so that nothing stays behind in shared memory; then with everything that it has started."""
    if child.running:
        child.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(_STOP_S)
    child.close()
