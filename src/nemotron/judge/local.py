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
from nemotron.judge.endpoint import Endpoint, Keeper
from nemotron.judge.serving import choose_server
from nemotron.judge.vllm import VllmJudge
from nemotron.place import Place
from nemotron.processes.child import ServerChild
from nemotron.vllm.server import Tell
from nemotron.vllm.where import program_of

TOKEN_VARIABLE = "NEMOTRON_JUDGE_TOKEN"


class RunningJudge(Keeper, Protocol):
    """A judge that answers, or is about to."""

    def wait(self, tell: Tell, note: Tell | None = None) -> Endpoint:
        """Where it answers, when it does.

        Args:
            tell: hears what it is doing until then.
            note: hears of what becomes of it later.

        Raises:
            JudgeError: it cannot be started, or not in time.
        """


@dataclass(frozen=True, slots=True)
class RemoteJudge:
    """A judge that somebody else runs."""

    endpoint: Endpoint
    starts: int = 1

    def wait(self, tell: Tell, note: Tell | None = None) -> Endpoint:
        """It is there, or whoever asks it will find out."""
        return self.endpoint

    def again(self, since: int) -> bool | None:
        """Nothing is known about it but what it answers."""
        return False


@contextlib.contextmanager
def running_judge(
    model: GenrmModelConfig,
    config: JudgeConfig,
    place: Place,
    *,
    beside_policy: bool = False,
    log_path: Path | None = None,
) -> Iterator[RunningJudge]:
    """The judge of a config: the endpoint at ``base_url``, or ``model`` served by vLLM or ourselves meanwhile.

    Args:
        place: what the choice between them was made by.
        beside_policy: a policy computes in this process.
    """
    serving = choose_server(model, config, place)
    if model.base_url is not None:
        key = None if model.api_key is None else model.api_key.get_secret_value()
        yield RemoteJudge(Endpoint(model.base_url, model.model, key))
    elif serving.server == "vllm":
        # It was chosen by what was known of the place; here it is.
        here = Place.this_machine()
        program = program_of(config.vllm_command, here)
        with VllmJudge(model, config, program, here, beside_policy=beside_policy, log_path=log_path) as served:
            yield served
    else:
        with LocalJudge(model.model, config, log_path=log_path) as judge:
            yield judge


class LocalJudge:
    """Serves a checkpoint folder on a free loopback port behind a random bearer token.

    Entering only starts the process; loading takes seconds that the caller can use. ``endpoint`` waits for it. The
    child ends when its stdin closes, so it outlives neither this block nor a parent that was killed.

    Example::

        with LocalJudge(folder, JudgeConfig()) as judge:
            policy = Policy.load(...)
            with JudgePool(judge.endpoint, settings, keeper=judge) as pool: ...
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
    def starts(self) -> int:
        """Once: it is not started again, as a batch that it did not survive would come back."""
        return 1

    def wait(self, tell: Tell, note: Tell | None = None) -> Endpoint:
        """As ``endpoint``; it loads in seconds."""
        return self.endpoint

    def again(self, since: int) -> bool | None:
        """Nothing is lost while its process lives. Raises JudgeError when that has died."""
        reason = self.explain()
        if reason is not None:
            raise JudgeError(
                reason, hint="its own words above say why; the run can be resumed from its last checkpoint"
            )
        return False

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
        announced = self._server.announcement(self._config.ready_s)
        if announced is not None:
            return Endpoint(f"http://127.0.0.1:{announced['port']}/v1", announced["model"], self._token)
        code, tail = self._server.returncode(), self._server.tail()
        if code is None:
            raise JudgeError(
                f"the judge `{self._model}` is not ready after {self._config.ready_s:g} s{tail}",
                hint="`judge.ready_timeout_s` is how long to wait",
            )
        raise JudgeError(
            f"the judge `{self._model}` could not be served (exit code {code}){tail}",
            hint="set `model` of the genrm block to the folder of a judge, or `base_url` to an endpoint",
        )
