"""Code that has to pass unit tests, in the sandbox. What is right never enters the process that the answer is in.

Outputs and values are compared here. Lines that are more than a call and a literal run in a sandbox of their own, which
calls the answer in its.
"""

from __future__ import annotations

import json
import marshal
import math
import os
import queue
import time
from collections.abc import Mapping
from functools import cache
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import ModuleType
from typing import Any

from nemotron.config.schema.rewards import CodeRewardConfig
from nemotron.errors import NotAvailableError
from nemotron.rewards.code_tests import UnitTest, right_value, same_in_python, same_output, unit_tests
from nemotron.rewards.text import answer_part, last_fenced
from nemotron.rewards.types import VerifierError
from nemotron.sandbox import examiner, exchange, harness
from nemotron.sandbox.box import Level, Limits, Outcome, Sandbox, SandboxError, containment


def _compiled(module: ModuleType) -> bytes:
    """A module as Python keeps it: compiling it anew for every test takes longer than most tests."""
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    code = compile(source, f"{module.__name__.rpartition('.')[2]}.py", "exec", dont_inherit=True)
    return MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


@cache
def _modules() -> dict[str, bytes]:
    """What a sandbox needs of ours, by its name there."""
    return {f"{module.__name__.replace('.', '/')}.pyc": _compiled(module) for module in (exchange, harness, examiner)}


_START = "import os, sys; sys.path.append(os.getcwd()); from nemotron.sandbox.{} import main; main()"


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
        self._modules = _modules()
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
        if test.kind == "main":
            outcome = self._run(source, {"mode": "main"}, test.stdin)
            return _went_well(outcome) and same_output(outcome.stdout, test.expected)
        try:
            if test.kind == "call":
                task = {"mode": "call", "function": test.function, "arguments": test.arguments}
                return right_value(test, _told(self._run(source, task))["value"])
            if test.kind == "equal":
                arguments = exchange.encode(list(test.arguments), str)
                told = _told(self._run(source, {"mode": "plain", "function": test.function, "arguments": arguments}))
                if "not_plain" not in told:
                    return same_in_python(told["value"], test.expected)
        except exchange.NotPlainError:
            # Compared where such values may be built.
            return self._examined(source, test)
        except (ValueError, TypeError, KeyError, RecursionError):
            return False  # what was told has not the form in which the harness tells
        return self._examined(source, test)

    def _examined(self, source: str, test: UnitTest) -> bool:
        """The lines of a test in one sandbox, the answer in another; what passes between them is plain data."""
        answer, examiner = self._take(), self._take()
        to_answer, to_examiner = os.pipe(), os.pipe()
        try:
            try:
                task = {"test": test.test, "function": test.function}
                self._start(answer, source, {"mode": "serve"}, channel=(to_answer[0], to_examiner[1]))
                self._start(examiner, None, task, channel=(to_examiner[0], to_answer[1]))
            finally:
                for fd in (*to_answer, *to_examiner):
                    os.close(fd)
            verdict = examiner.finish()
            answer.finish()
        except SandboxError:
            for box in (answer, examiner):
                self._busy.discard(box)
                box.close()
            raise
        self._give_back(answer)
        self._give_back(examiner)
        if not _went_well(verdict):
            return False
        try:
            told = json.loads(verdict.result)
        except ValueError:
            return False
        if "cannot" in told:
            raise VerifierError(told["cannot"])
        return bool(told == {"passed": True})

    def _run(self, source: str, task: dict[str, Any], stdin: str = "") -> Outcome:
        box = self._take()
        try:
            self._start(box, source, task, stdin)
            outcome = box.finish()
        except SandboxError:
            self._busy.discard(box)
            box.close()
            raise
        self._give_back(box)
        return outcome

    def _start(
        self, box: Sandbox, source: str | None, task: dict[str, Any], stdin: str = "", channel: tuple[int, ...] = ()
    ) -> None:
        files: dict[str, str | bytes] = {} if source is None else {"solution.py": source}
        argv = ["solution.py"]
        weak = box.level == "weak"
        if weak or task.get("mode") != "main":
            task = {**task, "weak": weak, "most_bytes": self._limits.output_mb << 20}
            files |= {"task.json": json.dumps(task), **self._modules}
            argv = ["-c", _START.format("examiner" if source is None else "harness")]
        box.start(argv, files, stdin, channel)

    def _give_back(self, box: Sandbox) -> None:
        self._busy.discard(box)
        if box.clean:
            self._idle.put(box)
        else:
            box.close()

    def _take(self) -> Sandbox:
        try:
            box = self._idle.get_nowait()
        except queue.Empty:
            box = Sandbox(self.level(), self._limits)
        self._busy.add(box)
        return box


def _went_well(outcome: Outcome) -> bool:
    return outcome.status == "exited" and outcome.code == 0


def _told(outcome: Outcome) -> dict[str, Any]:
    told = json.loads(outcome.result) if _went_well(outcome) else None
    if not isinstance(told, dict):
        raise ValueError("nothing was told")
    return told
