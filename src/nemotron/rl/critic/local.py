"""A critic server in a child process: started, waited for, and never left behind. No torch here."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from nemotron.config.schema.ppo import CriticConfig
from nemotron.errors import EngineError, OutputError
from nemotron.rl.threads import thread_environment

TOKEN_VARIABLE = "NEMOTRON_CRITIC_TOKEN"
_POLL_S = 0.2
_STOP_TIMEOUT_S = 3.0
_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Address:
    """Where a critic answers."""

    url: str
    """``http://HOST:PORT``"""
    token: str = field(repr=False)
    """Bearer token; never shown, not even in the repr."""


class RunningCritic(Protocol):
    """A critic that answers, or is about to."""

    @property
    def address(self) -> Address:
        """Where it answers; may wait until it does."""

    def explain(self) -> str | None:
        """Why it will not answer any more, when that is known."""


@dataclass(frozen=True, slots=True)
class RemoteCritic:
    """A critic that was started elsewhere."""

    address: Address

    def explain(self) -> str | None:
        """Nothing is known about it but what it answers."""
        return None


class LocalCritic:
    """Serves the models of a job on this machine, in a process that ends with this one.

    Entering only starts the process; loading takes seconds that the caller can use. ``address`` waits for it.

    Example::

        with LocalCritic(run.path / "job.json", config.critic, token=token, threads=1) as critic:
            policy = Policy.load(...)
            with CriticClient(critic, config.critic) as client: ...
    """

    def __init__(
        self, job: Path, config: CriticConfig, *, token: str, threads: int, log_path: Path, host: str, port: int
    ) -> None:
        """``log_path``: where the server's stderr goes."""
        self._job, self._config, self._token = job, config, token
        self._threads, self._log_path = threads, log_path
        self._host, self._port = host, port
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._address: Address | None = None
        self._started = 0.0

    def __enter__(self) -> Self:
        try:
            self._log = self._log_path.open("w+b")
        except OSError as error:
            raise OutputError(f"cannot write the critic's log `{self._log_path}`: {error.strerror}") from error
        command = [sys.executable, "-m", "nemotron.rl.critic", "--job", str(self._job)]
        command += ["--host", self._host, "--port", str(self._port)]
        command += ["--threads", str(self._threads), "--token-env", TOKEN_VARIABLE]
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **thread_environment(self._threads), TOKEN_VARIABLE: self._token},
            # Ctrl-C in the terminal is for the run; the run then ends its critic.
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> Address:
        """Where the critic answers. Waits until it does.

        Raises EngineError with the end of its stderr when it dies, or is not ready within ``ready_timeout_s``.
        """
        if self._address is None:
            self._address = self._wait_ready()
        return self._address

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._child().pid

    def explain(self) -> str | None:
        """Why the critic does not answer, when that is because its process has died; else None."""
        try:
            # A refused connection is noticed a little before the process is gone for good.
            code = self._child().wait(_POLL_S)
        except subprocess.TimeoutExpired:
            return None
        return f"the critic's server died with exit code {code}{self._tail()}"

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit code."""
        return self._child().wait()

    def last_words(self) -> str:
        """What it wrote to stderr before it ended."""
        return self._tail().removeprefix(":\n")

    def close(self) -> None:
        """End the server. May be called more than once."""
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _child(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("LocalCritic is used outside of its `with` block")
        return self._process

    def _wait_ready(self) -> Address:
        process = self._child()
        announced = self._announcement(process)
        if announced is not None:
            host = announced["host"]
            return Address(f"http://{f'[{host}]' if ':' in host else host}:{announced['port']}", self._token)
        if process.poll() is None:
            raise EngineError(
                f"the critic is not ready after {self._config.ready_timeout_s:g} s{self._tail()}",
                hint="`critic.ready_timeout_s` is how long to wait",
            )
        raise EngineError(f"the critic could not be started (exit code {process.returncode}){self._tail()}")

    def _announcement(self, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
        """The line the server prints when it is ready; None when it died or the time is up."""
        if process.stdout is None:
            raise RuntimeError("the server was started without a pipe")
        deadline = self._started + self._config.ready_timeout_s
        while time.monotonic() < deadline:
            readable, _, _ = select.select([process.stdout], [], [], _POLL_S)
            if readable:
                line = process.stdout.readline()
                if not line:
                    process.wait(_STOP_TIMEOUT_S)
                    return None
                announced: dict[str, Any] = json.loads(line)
                return announced
        return None

    def _tail(self) -> str:
        """The end of the server's stderr, on lines of its own."""
        if self._log is None:
            return ""
        # The child writes at the file offset that both share, so it must not be moved.
        descriptor = self._log.fileno()
        start = max(0, os.fstat(descriptor).st_size - _TAIL_BYTES)
        text = os.pread(descriptor, _TAIL_BYTES, start).decode(errors="replace")
        text = text.replace(self._token, "[token]").strip()
        return f":\n{text}" if text else ""
