"""A critic server in a child process: started, waited for, and never left behind. No torch here."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from nemotron.config.schema.ppo import CriticConfig
from nemotron.errors import EngineError
from nemotron.processes.child import ServerChild
from nemotron.rl.threads import thread_environment

TOKEN_VARIABLE = "NEMOTRON_CRITIC_TOKEN"
_GOING_S = 3.0
"""How long a process may take to be gone after its last connection, on a machine that is busy."""


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
        self._threads, self._host, self._port = threads, host, port
        self._server = ServerChild("critic", hidden=[token], log_path=log_path)
        self._address: Address | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "nemotron.rl.critic", "--job", str(self._job)]
        command += ["--host", self._host, "--port", str(self._port)]
        command += ["--threads", str(self._threads), "--token-env", TOKEN_VARIABLE]
        self._server.start_server(command, {**thread_environment(self._threads), TOKEN_VARIABLE: self._token})
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
        return self._server.process.pid

    def explain(self) -> str | None:
        """Why the critic does not answer, when that is because its process has died; else None."""
        code = self._server.ended(_GOING_S)
        return None if code is None else f"the critic's server died with exit code {code}{self._server.tail()}"

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit code."""
        return self._server.process.wait()

    def last_words(self) -> str:
        """What it wrote to stderr before it ended."""
        return self._server.tail().removeprefix(":\n")

    def close(self) -> None:
        """End the server. May be called more than once."""
        self._server.close()

    def _wait_ready(self) -> Address:
        announced = self._server.announcement(self._config.ready_timeout_s)
        if announced is not None:
            host = announced["host"]
            return Address(f"http://{f'[{host}]' if ':' in host else host}:{announced['port']}", self._token)
        code, tail = self._server.returncode(), self._server.tail()
        if code is None:
            raise EngineError(
                f"the critic is not ready after {self._config.ready_timeout_s:g} s{tail}",
                hint="`critic.ready_timeout_s` is how long to wait",
            )
        raise EngineError(f"the critic could not be started (exit code {code}){tail}")
