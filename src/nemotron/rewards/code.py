"""Code that has to pass unit tests, in the sandbox. Right outputs never enter the sandbox, except in assert lines."""

from __future__ import annotations

import json
import math
import queue
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron.config.schema.rewards import CodeRewardConfig
from nemotron.errors import NotAvailableError
from nemotron.rewards.code_tests import UnitTest, right_value, same_output, unit_tests
from nemotron.rewards.text import answer_part, last_fenced
from nemotron.rewards.types import VerifierError
from nemotron.sandbox import harness
from nemotron.sandbox.box import Level, Limits, Outcome, Sandbox, SandboxError, containment

_HARNESS = Path(harness.__file__).read_text(encoding="utf-8")


class Code:
    """See `CodeRewardConfig`. Sandboxes are kept and used again; `close` ends them."""

    def __init__(self, config: CodeRewardConfig) -> None:
        self._config = config
        self._limits = Limits(
            cpu_s=math.ceil(config.test_timeout_s),
            wall_s=2 * config.test_timeout_s + 1,
            memory_mb=config.memory_mb,
            file_mb=config.file_mb,
            output_mb=config.output_mb,
            max_processes=config.max_processes,
        )
        self._idle: queue.SimpleQueue[Sandbox] = queue.SimpleQueue()
        self._busy: set[Sandbox] = set()

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the row cannot be used."""
        tests = unit_tests(row, self._config.tests_field)
        return tests if isinstance(tests, str) else None

    def level(self) -> Level:
        """The sandbox's level here.

        Raises:
            NotAvailableError: only the weak level holds, and the config does not allow that.
        """
        level, why = containment()
        if level == "weak" and not self._config.allow_weak_sandbox:
            reasons = ", ".join(f"{name}: {reason}" for name, reason in why.items())
            raise NotAvailableError(
                f"this machine cannot keep untrusted code from the network and from its files ({reasons})",
                hint="run where user namespaces or Landlock are allowed, or set `allow_weak_sandbox: true` for code "
                "that you trust",
            )
        return level

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> float:
        """The share of tests passed, or 1.0 only for all. An answer without code is wrong."""
        tests = unit_tests(row, self._config.tests_field)
        if isinstance(tests, str):
            raise VerifierError(tests)
        text: str | None = answer_part(response, self._config.strip_thinking)
        if self._config.extract == "fenced":
            text = last_fenced(text or "")
        if not text or not text.strip():
            return 0.0
        try:
            return self._score(text, tests[: self._config.max_tests])
        except SandboxError as error:
            raise VerifierError(f"the sandbox failed: {error}") from error

    def kill(self) -> None:
        """Make what runs in other threads fail at once."""
        for box in tuple(self._busy):
            box.kill()

    def close(self) -> None:
        """End the sandboxes that wait for work."""
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _score(self, source: str, tests: list[UnitTest]) -> float:
        passed, begun = 0, time.monotonic()
        for test in tests:
            # What is too slow has failed: this is the code's own doing, not the sandbox's.
            late = self._config.timeout_s is not None and time.monotonic() - begun > self._config.timeout_s
            right = not late and self._passes(source, test)
            if not right and (late or self._config.score == "all"):
                break
            passed += right
        return float(passed == len(tests)) if self._config.score == "all" else passed / len(tests)

    def _passes(self, source: str, test: UnitTest) -> bool:
        token = secrets.token_hex(16)
        outcome = self._run(source, test, token)
        if outcome.status != "exited" or outcome.code != 0:
            return False
        if test.kind == "main":
            return same_output(outcome.stdout, test.expected)
        try:
            told = json.loads(outcome.result)
        except (ValueError, RecursionError):
            return False
        if not isinstance(told, dict) or told.get("token") != token:
            return False
        return test.kind == "assert" or right_value(test, told.get("value"))

    def _run(self, source: str, test: UnitTest, token: str) -> Outcome:
        box = self._take()
        self._busy.add(box)
        files = {"solution.py": source}
        argv = ["solution.py"]
        weak = box.level == "weak"
        if weak or test.kind != "main":
            task = {"mode": test.kind, "token": token, "weak": weak, "test": test.test}
            task |= {"function": test.function, "arguments": test.arguments}
            files |= {"task.json": json.dumps(task), "harness.py": _HARNESS}
            argv = ["harness.py"]
        try:
            outcome = box.run(argv, files, test.stdin)
        except SandboxError:
            box.close()
            raise
        finally:
            self._busy.discard(box)
        self._idle.put(box)
        return outcome

    def _take(self) -> Sandbox:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return Sandbox(self.level(), self._limits)
