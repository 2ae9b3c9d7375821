"""A judge of our own in a child process: started, waited for, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from nemotron.config.schema.judge import GenrmModelConfig, JudgeConfig
from nemotron.errors import JudgeError, OutputError
from nemotron.judge.client import Endpoint

TOKEN_VARIABLE = "NEMOTRON_JUDGE_TOKEN"
_POLL_S = 0.2
_STOP_TIMEOUT_S = 3.0
_TAIL_BYTES = 2000


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
        self._log_path = log_path
        self._token = secrets.token_urlsafe(32)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._endpoint: Endpoint | None = None
        self._started = 0.0

    def __enter__(self) -> Self:
        self._log = self._open_log()
        threads = 1 if self._config.threads == "auto" else self._config.threads
        command = [sys.executable, "-m", "nemotron.judge.server", "--model", self._model, "--port", "0"]
        command += ["--dtype", self._config.dtype, "--threads", str(threads)]
        command += ["--max-batch-size", str(self._config.max_batch_size), "--token-env", TOKEN_VARIABLE]
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, TOKEN_VARIABLE: self._token, "OMP_NUM_THREADS": str(threads)},
            # Ctrl-C in the terminal is for the run; the run then ends its judge.
            start_new_session=True,
        )
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
        return self._child().pid

    def explain(self) -> str | None:
        """Why the judge does not answer, when that is because its process has died; else None."""
        try:
            # A refused connection is noticed a little before the process is gone for good.
            code = self._child().wait(_POLL_S)
        except subprocess.TimeoutExpired:
            return None
        return f"the judge's own server died with exit code {code}{self._tail()}"

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
            raise RuntimeError("LocalJudge is used outside of its `with` block")
        return self._process

    def _open_log(self) -> IO[bytes]:
        if self._log_path is None:
            return tempfile.TemporaryFile()
        try:
            return self._log_path.open("w+b")
        except OSError as error:
            raise OutputError(f"cannot write the judge's log `{self._log_path}`: {error.strerror}") from error

    def _wait(self) -> Endpoint:
        process = self._child()
        announced = self._read_announcement(process)
        if announced is None:
            if process.poll() is None:
                raise JudgeError(
                    f"the judge `{self._model}` is not ready after {self._config.ready_timeout_s:g} s{self._tail()}",
                    hint="`judge.ready_timeout_s` is how long to wait",
                )
            raise JudgeError(
                f"the judge `{self._model}` could not be served (exit code {process.returncode}){self._tail()}",
                hint="set `model` of the genrm block to the folder of a judge, or `base_url` to an endpoint",
            )
        return Endpoint(f"http://127.0.0.1:{announced['port']}/v1", announced["model"], self._token)

    def _read_announcement(self, process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
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
