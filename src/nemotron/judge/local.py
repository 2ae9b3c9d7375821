"""A judge of our own in a child process: started, waited for, and never left behind."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from nemotron.config.schema.judge import GenrmModelConfig, JudgeConfig
from nemotron.errors import JudgeError
from nemotron.judge.client import Endpoint
from nemotron.processes.child import ServerChild

TOKEN_VARIABLE = "NEMOTRON_JUDGE_TOKEN"


class RunningJudge(Protocol):
    """A judge that answers, or is about to."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it answers; may wait until it does."""

    def explain(self) -> str | None:
        """Why it will not answer any more, when that is known."""


@dataclass(frozen=True, slots=True)
class RemoteJudge:
    """A judge that somebody else runs."""

    endpoint: Endpoint

    def explain(self) -> str | None:
        """Nothing is known about it but what it answers."""
        return None


@contextlib.contextmanager
def running_judge(
    model: GenrmModelConfig, config: JudgeConfig, *, log_path: Path | None = None
) -> Iterator[RunningJudge]:
    """The judge of a config: the endpoint at ``base_url``, or without one ``model`` served by ourselves meanwhile."""
    if model.base_url is not None:
        key = None if model.api_key is None else model.api_key.get_secret_value()
        yield RemoteJudge(Endpoint(model.base_url, model.model, key))
        return
    with LocalJudge(model.model, config, log_path=log_path) as judge:
        yield judge


class LocalJudge:
    """Serves a checkpoint folder on a free loopback port behind a random bearer token.

    Entering only starts the process; loading takes seconds that the caller can use. ``endpoint`` waits for it. The
    child ends when its stdin closes, so it outlives neither this block nor a parent that was killed.

    Example::

        with LocalJudge(folder, JudgeConfig()) as judge:
            policy = Policy.load(...)
            with JudgePool(judge.endpoint, settings) as pool: ...
    """

    def __init__(self, model: str | Path, config: JudgeConfig, *, log_path: Path | None = None) -> None:
        """``log_path``: where the server's stderr goes; by default a temporary file that vanishes."""
        self._model = str(model)
        self._config = config
        self._token = secrets.token_urlsafe(32)
        self._server = ServerChild("judge", hidden=[self._token], log_path=log_path)
        self._endpoint: Endpoint | None = None

    def __enter__(self) -> Self:
        threads = self._config.server_threads
        command = [sys.executable, "-m", "nemotron.judge.server", "--model", self._model, "--port", "0"]
        command += ["--dtype", self._config.dtype, "--threads", str(threads)]
        command += ["--max-batch-size", str(self._config.max_batch_size), "--token-env", TOKEN_VARIABLE]
        self._server.start_server(command, {TOKEN_VARIABLE: self._token, "OMP_NUM_THREADS": str(threads)})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> Endpoint:
        """Where the judge answers. Waits until it does.

        Raises JudgeError with the end of its stderr when it dies, or when it is not ready within ``ready_timeout_s``.
        """
        if self._endpoint is None:
            self._endpoint = self._wait()
        return self._endpoint

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._server.process.pid

    def explain(self) -> str | None:
        """Why the judge does not answer, when that is because its process has died; else None."""
        code = self._server.ended()
        return None if code is None else f"the judge's own server died with exit code {code}{self._server.tail()}"

    def close(self) -> None:
        """End the server. May be called more than once."""
        self._server.close()

    def _wait(self) -> Endpoint:
        announced = self._server.announcement(self._config.ready_timeout_s)
        if announced is not None:
            return Endpoint(f"http://127.0.0.1:{announced['port']}/v1", announced["model"], self._token)
        code, tail = self._server.returncode(), self._server.tail()
        if code is None:
            raise JudgeError(
                f"the judge `{self._model}` is not ready after {self._config.ready_timeout_s:g} s{tail}",
                hint="`judge.ready_timeout_s` is how long to wait",
            )
        raise JudgeError(
            f"the judge `{self._model}` could not be served (exit code {code}){tail}",
            hint="set `model` of the genrm block to the folder of a judge, or `base_url` to an endpoint",
        )
