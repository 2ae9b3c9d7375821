"""The parent's side of `worker`: one child process that is killed when it is late and started again when needed."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from nemotron.config.schema.rewards import RewardConfig
from nemotron.errors import ConfigError, EngineError
from nemotron.processes.environment import plain_environment
from nemotron.rewards.types import VerifierError

START_S = 120.0
"""Seconds for a worker to import what it needs; a user's module may load a model."""


class Worker:
    """One child process. Used by one thread at a time."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def start(self) -> None:
        """Start the process unless it runs.

        Raises:
            ConfigError: a function cannot be set up, e.g. the user's module is not there.
            EngineError: the process ended or did not get ready in time.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        # A session of its own: Ctrl-C in the terminal is for the parent, which then closes our stdin.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nemotron.rewards.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**plain_environment(self._config.environment), "OMP_NUM_THREADS": "1"},
        )
        try:
            self._send(json.loads(self._config.model_dump_json()))
            answer = self._receive(START_S)
        except (TimeoutError, _Ended) as error:
            self.stop()
            raise EngineError(f"the process for reward functions did not start: {error}") from error
        if "error" in answer:
            self.stop()
            raise ConfigError(answer["error"], hint=answer["hint"])

    def call(self, index: int, row: Mapping[str, Any], response: str, *, ended: bool, timeout_s: float) -> float:
        """Value of the function ``index`` of the config.

        Raises:
            VerifierError: it gave none, took too long, or its process ended.
        """
        self.start()
        request = {"index": index, "row": row, "response": response, "ended": ended, "timeout_s": timeout_s}
        try:
            self._send(request)
            answer = self._receive(timeout_s)
        except TimeoutError as error:
            self.stop()
            raise VerifierError(f"took longer than {timeout_s:g} s") from error
        except _Ended as error:
            self.stop()
            raise VerifierError(str(error)) from error
        if "missing" in answer:
            raise VerifierError(answer["missing"])
        return float(answer["value"])

    def kill(self) -> None:
        """Make a call that is waiting in another thread fail at once."""
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """Kill the process and forget it."""
        process, self._process, self._rest = self._process, None, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was not sent is for a process that is no more

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise _Ended(self._how_it_ended()) from error

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline, out = time.monotonic() + timeout_s, self._process.stdout.fileno()
        while b"\n" not in self._rest:
            poll = select.poll()
            poll.register(out, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError("it took too long")
            block = os.read(out, 1 << 16)
            if not block:
                raise _Ended(self._how_it_ended())
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _how_it_ended(self) -> str:
        assert self._process is not None
        return f"its process ended with code {self._process.wait()}"


class _Ended(Exception):
    """The process is no more."""
