"""The parent's side of `worker`: one child process that is killed when it is late and started again when needed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from nemotron.config.schema.rewards import RewardConfig
from nemotron.errors import ConfigError, EngineError
from nemotron.processes.child import Child, ChildEnded
from nemotron.processes.environment import plain_environment
from nemotron.rewards.types import VerifierError

START_S = 120.0
"""Seconds for a worker to import what it needs; a user's module may load a model."""


class Worker:
    """One child process. Used by one thread at a time."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        # What a function of the user's prints is for the user.
        self._child = Child("reward worker", show_stderr=True)

    def start(self) -> None:
        """Start the process unless it runs.

        Raises:
            ConfigError: a function cannot be set up, e.g. the user's module is not there.
            EngineError: the process ended or did not get ready in time.
        """
        if self._child.running:
            return
        self.stop()
        environment = {**plain_environment(self._config.environment), "OMP_NUM_THREADS": "1"}
        self._child.start([sys.executable, "-m", "nemotron.rewards.worker"], environment)
        try:
            answer = self._ask(json.loads(self._config.model_dump_json()), START_S)
        except (TimeoutError, ChildEnded) as error:
            reason = self._why(error)
            self.stop()
            raise EngineError(f"the process for reward functions did not start: {reason}") from error
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
            answer = self._ask(request, timeout_s)
        except TimeoutError as error:
            self.stop()
            raise VerifierError(f"took longer than {timeout_s:g} s") from error
        except ChildEnded as error:
            reason = self._why(error)
            self.stop()
            raise VerifierError(reason) from error
        if "missing" in answer:
            raise VerifierError(answer["missing"])
        return float(answer["value"])

    def kill(self) -> None:
        """Make a call that is waiting in another thread fail at once."""
        self._child.kill()

    def stop(self) -> None:
        """Kill the process, with all that it has started, and forget it."""
        self._child.kill()
        self._child.close()

    def _ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        self._child.send(json.dumps(message).encode())
        answer: dict[str, Any] = json.loads(self._child.line(time.monotonic() + timeout_s))
        return answer

    def _why(self, error: TimeoutError | ChildEnded) -> str:
        if isinstance(error, TimeoutError):
            return "it took too long"
        return f"its process ended with code {self._child.process.wait()}"
