"""Run all attacks at one level and print what came of them: ``python -m tests.unit.rewards.attacks LEVEL ABI [EACH]``.

In a process of its own, so that it can become the parent of whatever an attack leaves behind, and another user.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from nemotron.config.schema.rewards import CodeRewardConfig
from nemotron.rewards import code as code_module
from nemotron.rewards.code import Code
from nemotron.rewards.types import VerifierError
from nemotron.sandbox import kernel
from nemotron.sandbox.box import Level, Limits, Sandbox
from tests.unit.rewards.attacks.forgeries import EQUAL, LINES, STDIN, forgeries
from tests.unit.rewards.attacks.leftovers import leftovers

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.shmat.restype = ctypes.c_void_p
RIGHT = "def add(a, b):\n    return a + b\nif __name__ == '__main__': print(sum(map(int, input().split())))"


class Victims:
    """Things of this user that no answer may touch."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "victim"
        self.file.write_text("precious")
        os.utime(self.file, (1000, 1000))
        self.process = os.fork()
        if self.process == 0:
            while True:
                time.sleep(600)
        self.shm = LIBC.shmget(0, 4096, 0o1600)
        self.memory = LIBC.shmat(self.shm, None, 0)
        ctypes.memset(self.memory, 7, 8)
        self.sem = LIBC.semget(0, 1, 0o1600)
        self.queue = LIBC.msgget(0, 0o1600)
        LIBC.msgsnd(self.queue, (1).to_bytes(8, "little") + b"mine", 4, 0)

    def places(self) -> dict[str, str]:
        named = {"VICTIM": self.file, "PID": self.process, "SHM": self.shm, "SEM": self.sem, "QUEUE": self.queue}
        return {word: str(place) for word, place in named.items()}

    def harm(self) -> list[str]:
        """What has been done to them."""
        stat, ended = self.file.stat(), os.waitpid(self.process, os.WNOHANG | os.WUNTRACED)[0]
        message = ctypes.create_string_buffer(64)
        taken = LIBC.msgrcv(self.queue, message, 32, 0, 0o4000)
        return [
            name
            for name, intact in {
                "file": self.file.read_text() == "precious" and stat.st_mtime == 1000 and not os.listxattr(self.file),
                "process": not ended,
                "memory": ctypes.string_at(self.memory, 8) == b"\7" * 8,
                "segment": LIBC.shmget(0, 0, 0) != -2 and LIBC.shmat(self.shm, None, 0o10000) not in (None, 2**64 - 1),
                "semaphore": LIBC.semctl(self.sem, 0, 12) == 0,
                "message": taken == 4 and message.raw[8:12] == b"mine",
                "messages": LIBC.msgrcv(self.queue, message, 32, 0, 0o4000) == -1,
            }.items()
            if not intact
        ]

    def end(self) -> None:
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)
        LIBC.shmctl(self.shm, 0, None)
        LIBC.semctl(self.sem, 0, 0)
        LIBC.msgctl(self.queue, 0, None)


def descendants() -> list[str]:
    """Processes whose parent this one is, or has become."""
    me, found = str(os.getpid()), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if parent == me and state != "Z":
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


class AtLevel(Code):
    """The code reward at a level that is not the strongest."""

    def __init__(self, level: Level) -> None:
        super().__init__(CodeRewardConfig.model_validate({"name": "code", "test_timeout_s": 1.0, "memory_mb": 256}))
        # On a busy machine a second of CPU may take many of wall clock.
        self._limits = Limits(cpu_s=1, wall_s=8.0, memory_mb=256, file_mb=8, output_mb=1, max_processes=16)
        self._level = level

    def level(self) -> Level:
        return self._level


def try_one(function: Code, row: dict[str, Any], code: str) -> str:
    """What is wrong with how a wrong answer was taken, or how a right one was after it."""
    try:
        value = function(row, code, ended=True)
    except VerifierError as error:
        return f"missing: {error}"
    if value != 0.0:
        return f"passed: {value}"
    for right in (STDIN, EQUAL, LINES):
        try:
            if function(right, RIGHT, ended=True) != 1.0:
                return "the next answer failed"
        except VerifierError as error:
            return f"the next answer is missing: {error}"
    return ""


def main() -> None:
    """See above; ``EACH`` tries every so many-th only."""
    level, abi, each = cast(Level, sys.argv[1]), int(sys.argv[2]), int((*sys.argv[3:], "1")[0])
    kernel.adopt_orphans()
    with tempfile.TemporaryDirectory() as name:
        # A sandbox's folders are made beside the victim, so that what stays of them is found.
        tempfile.tempdir = name
        victims = Victims(Path(name))
        code_module.Sandbox = lambda level, limits: Sandbox(level, limits, landlock=abi)  # type: ignore[assignment,misc]
        function = AtLevel(level)
        # The weak level promises nothing but that passes are not forged; harm is not tried where it would be done.
        attacks = (forgeries() + ([] if level == "weak" else leftovers(victims.places())))[::each]
        findings = []
        function._config.__dict__["extract"] = "whole"
        for title, row, code in attacks:
            begun = time.monotonic()
            if finding := try_one(function, row, code):
                findings.append(f"{title}: {finding}")
            if os.environ.get("ATTACKS_TIMED"):
                print(f"{time.monotonic() - begun:6.2f} {title}", file=sys.stderr, flush=True)
        function.close()
        findings += [f"harmed: {what}" for what in victims.harm()]
        victims.end()
        findings += [f"left running: {command}" for command in descendants()]
        findings += [f"left: {entry}" for entry in sorted(os.listdir(name)) if entry != "victim"]
    print(json.dumps({"user": os.getuid(), "attacks": len(attacks), "findings": findings}))


if __name__ == "__main__":
    main()
