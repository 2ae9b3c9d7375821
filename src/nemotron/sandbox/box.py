"""The parent's side of the sandbox: choose the strongest level that works here, start it, run programs in it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import nemotron
from nemotron.sandbox.removal import remove

Level = Literal["namespaces", "landlock", "weak"]
LEVELS: tuple[Level, ...] = ("namespaces", "landlock", "weak")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
_NEWEST_LANDLOCK = 99
_NO_PROCESS = (1 << 22) - 1
_START_S = 30.0
"""Seconds for the walls to be built, and beyond a program's own time for its result to come."""

_CLEAN_S = 60.0
"""Seconds for a launcher to remove what a program left; a sandbox that takes longer is not used again."""
_END_S = 20.0
"""Seconds for a launcher to clear up after what it has been told to end."""


class SandboxError(Exception):
    """The sandbox itself failed; says nothing about the program."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use."""

    cpu_s: int = 5
    """CPU seconds of each process."""
    wall_s: float = 11.0
    """Seconds from start to end."""
    memory_mb: int = 512
    """Address space of each process, MiB."""
    file_mb: int = 16
    """Size of a file, and of the whole folder at level ``namespaces``, MiB."""
    output_mb: int = 4
    """What may be printed, MiB."""
    max_processes: int = 16
    """Processes and threads at once (level ``namespaces``; at ``landlock`` there is one process)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended."""

    status: Literal["exited", "timeout", "output"]
    """``timeout``: killed after ``wall_s``; ``output``: it printed too much."""
    code: int
    """Exit code, or minus the number of the signal."""
    stdout: str
    """Standard output; standard error goes nowhere."""
    result: str
    """What it wrote to file descriptor 3."""


class Sandbox:
    """A place for Python programs. Used by one thread at a time; close it when done."""

    def __init__(self, level: Level, limits: Limits, *, landlock: int = _NEWEST_LANDLOCK) -> None:
        """``landlock``: the newest ABI version of it that is used, to try what older kernels give."""
        self.level, self.limits = level, limits
        self.clean = True
        """False: a program left something that could not be removed; close it rather than use it again."""
        self._folder = tempfile.mkdtemp(prefix="nemotron-box-")
        self._rest = b""
        source = str(Path(nemotron.__file__).resolve().parents[1])
        python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
        start = f"import sys; sys.path.append({source!r}); from nemotron.sandbox.launcher import main; main()"
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [python, "-I", "-S", "-B", "-c", start],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"LANG": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        prefix = os.path.realpath(sys.base_prefix)
        setting = {
            "level": level,
            "limits": asdict(limits),
            "box": self._folder,
            "landlock": landlock,
            "parent": os.getpid(),
            "python": [python, "-I", "-S", "-B", "-X", "utf8"],
            "readable": [*_SYSTEM, *([] if prefix.startswith("/usr") else [prefix])],
        }
        try:
            self._send(setting)
            answer = self._answer(_START_S)
            if "ready" not in answer:
                raise SandboxError(answer["error"])
        except SandboxError:
            self.close()
            raise

    def run(self, argv: list[str], files: Mapping[str, str | bytes], stdin: str = "") -> Outcome:
        """Run ``python argv`` in a fresh folder that holds ``files``.

        Raises:
            SandboxError: the sandbox failed; close it.
        """
        self.start(argv, files, stdin)
        return self.finish()

    def start(
        self, argv: list[str], files: Mapping[str, str | bytes], stdin: str = "", channel: Sequence[int] = ()
    ) -> None:
        """Begin what `run` does; `finish` has to follow.

        ``channel``: the ends of two pipes, to read from and to write to a program in another sandbox; they become its
        descriptors 4 and 5. When the other one has ended, this one is ended too. Close them here afterwards.

        Raises:
            SandboxError: the sandbox failed; close it.
        """
        texts = {name: text for name, text in files.items() if isinstance(text, str)}
        binary = {name: b64encode(data).decode() for name, data in files.items() if isinstance(data, bytes)}
        self._send({"argv": argv, "files": texts, "binary": binary, "stdin": stdin}, channel)

    def finish(self) -> Outcome:
        """Wait for the program that `start` began.

        Raises:
            SandboxError: the sandbox failed; close it.
        """
        answer = self._answer(self.limits.wall_s + _START_S)
        if answer["status"] == "sandbox":
            raise SandboxError(answer["reason"])
        try:
            self.clean = self._answer(_CLEAN_S)["clean"]
        except SandboxError:
            self.clean = False
        return Outcome(**answer)

    def kill(self) -> None:
        """Make a run that is waiting in another thread fail at once."""
        # The launcher ends what runs, removes the folder and itself. It may have ended already.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all processes and remove the folder."""
        self.kill()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            # The group has the program in it where there is no namespace that ends with its first process.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._control.close()
        remove(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()

    def _send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        if self._control.fileno() < 0:
            raise SandboxError("the sandbox is closed")
        line = memoryview(json.dumps(message).encode() + b"\n")
        try:
            sent = socket.send_fds(self._control, [line], fds) if fds else 0
            self._control.sendall(line[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise SandboxError("the sandbox ended") from error

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            poll = select.poll()
            poll.register(self._control, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise SandboxError("the sandbox does not answer")
            try:
                block = self._control.recv(1 << 20)
            except ConnectionResetError:
                block = b""
            if not block:
                raise SandboxError("the sandbox ended")
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


_PROBE = """
import ctypes, os, socket
found = []
def attempt(name, do):
    try:
        if do() != -1:
            found.append(name)
    except OSError:
        found.append("")
def signal_by_pipe():
    fcntl = libc.fcntl
    ends = os.pipe()
    return fcntl(ends[0], 8, {parent})
libc = ctypes.CDLL(None)
attempt("network", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(("127.0.0.1", {port})))
attempt("files", lambda: open({outside!r}, "w").write("x"))
attempt("files", lambda: os.truncate({outside!r}, 0))
attempt("signals", lambda: os.kill({parent}, 0))
attempt("signals", signal_by_pipe)
attempt("System V memory", lambda: libc.shmctl({memory}, 2, bytes(256)))
os.write(3, (",".join(filter(None, found)) or "nothing").encode())
"""


@cache
def containment() -> tuple[Level, dict[Level, str]]:
    """The strongest level that holds on this machine, tried out, and why each stronger one does not."""
    why: dict[Level, str] = {}
    libc = ctypes.CDLL(None)
    memory = libc.shmget(0, 4096, 0o1600)
    try:
        with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
            outside = Path(folder) / "written"
            outside.write_text("x")
            places = {"port": server.getsockname()[1], "outside": str(outside), "memory": memory}
            for level in LEVELS[:-1]:
                # Where processes have numbers of their own, ours may be another one's.
                places["parent"] = _NO_PROCESS if level == "namespaces" else os.getpid()
                if (reason := _reached(level, _PROBE.format(**places))) is None:
                    return level, why
                why[level] = reason
    finally:
        libc.shmctl(memory, 0, None)
    return "weak", why


def _reached(level: Level, code: str) -> str | None:
    """Why a level does not hold, None when it does."""
    try:
        with Sandbox(level, replace(Limits(), wall_s=20.0)) as box:
            outcome = box.run(["probe.py"], {"probe.py": code})
    except SandboxError as error:
        return str(error)
    if outcome.code != 0 or not outcome.result:
        return "the trial program failed in it"
    return None if outcome.result == "nothing" else f"code in it reaches {outcome.result.replace(',', ' and ')}"
