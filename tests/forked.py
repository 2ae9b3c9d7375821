"""`nemotron` in a fork of the tests' process, which has imported everything: that is most of what a short run costs.

What hangs or eats memory ends alone, and what it took is known; what is to be killed is killed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import pytest

from nemotron.cli.main import main
from nemotron.processes import child
from tests.in_process import nemotron

SOUND = os.environ.get("OMP_NUM_THREADS") == "1"
"""Whether a fork can do all that a new process can: OpenMP's threads are not in it, and waiting for them never ends."""
_SPAWNED = multiprocessing.get_context("spawn").Process


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """-9 when it was killed for the time."""
    said: str
    """Both streams."""
    seconds: float
    """Of the processor, or of the clock where it did not end."""
    megabytes: float
    """That it took at the most, beyond what the fork began with."""


def forked(words: tuple[str, ...], folder: Path, longest_s: float, most_bytes: int, env: Mapping[str, str]) -> Ended:
    """One command line in ``folder``, where its reports of bugs go, too."""
    note = folder / "ended.json"
    child = os.fork()
    if child == 0:
        _run(words, folder, note, most_bytes, env)
    started = time.monotonic()
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() - started > longest_s:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Ended(-9, f"it did not end within {longest_s} s", longest_s, 0.0)
        time.sleep(0.005)
    _, status, used = os.wait4(child, 0)
    told = json.loads(note.read_text()) if note.exists() else {"said": "it wrote nothing", "took": 0.0}
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, told["said"], used.ru_utime + used.ru_stime, told["took"])


class Fork:
    """Some work in a fork, with what `subprocess.Popen` offers to those who wait for it or end it."""

    def __init__(self, work: Callable[[], int], log: Path | None = None) -> None:
        """Start it. ``log`` is where it writes what it says; without one nobody hears it."""
        self.returncode: int | None = None
        self._asking = threading.Lock()
        if log is not None:
            log.touch()  # as whoever starts a process opens its log
        self.pid = os.fork()
        if self.pid == 0:
            _alone(work, log or Path(os.devnull))

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it works."""
        with self._asking:  # several threads of a run watch its judge, and an end is told once
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        """Wait for its end."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a fork of the tests", timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def command(words: Sequence[str]) -> Callable[[], int]:
    """The work of a command line."""

    def work() -> int:
        sys.argv = ["nemotron", *words]
        return main(words)

    return work


def _alone(work: Callable[[], int], log: Path) -> NoReturn:
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        like_a_new_process()
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)  # nothing of the tests may go on in the fork


def like_a_new_process() -> None:
    """In a fork: streams, signals and threads as a process has them that has just been started."""
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


class _Process(multiprocessing.get_context("fork").Process):  # type: ignore[misc,name-defined]
    def run(self) -> None:
        like_a_new_process()
        super().run()


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Runs that the command or the API puts into processes of their own are forks, where a fork can do all they do."""
    with pytest.MonkeyPatch.context() as patch:
        if SOUND:
            _import_all()
            patch.setattr(multiprocessing.get_context("spawn"), "Process", _Process)
        yield


@contextlib.contextmanager
def nowhere() -> Iterator[None]:
    """No fork at all, for runs with threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "SOUND", False)
        patch.setattr(child, "subprocess", subprocess)
        patch.setattr(multiprocessing.get_context("spawn"), "Process", _SPAWNED)
        yield


@cache
def _import_all() -> None:
    """What a run imports, some of it only as it loads a model and makes an optimizer."""
    import torch
    from transformers import AutoTokenizer

    from nemotron.config.resolvers import ASSETS
    from nemotron.rl.policy import Policy

    for name in ("dpo", "grpo", "rm"):
        import_module(f"nemotron.engines.embedded.{name}")
    policy = Policy.load(ASSETS / "tiny_world" / "policy", device="cpu")
    AutoTokenizer.from_pretrained(ASSETS / "tiny_world" / "policy")
    torch.optim.AdamW(policy.model.parameters())


HELPERS = ("nemotron.judge.server", "nemotron.rl.critic")
"""Servers of ours that a run starts beside itself, and that would import torch once more."""


class _Helper(Fork):
    """What `nemotron.processes.child` starts, as a fork: pipes, a session, variables and open files of its own."""

    def __init__(self, words: Sequence[str], log: IO[bytes] | None, variables: Mapping[str, str]) -> None:
        given, self._given = os.pipe()
        self._said, said = os.pipe()
        self._ends = {0: given, 1: said, **({} if log is None else {2: log.fileno()})}
        _, _, module, *self._words = words
        self._module, self._variables = module, dict(variables)
        super().__init__(self._work, None)
        os.close(given)
        os.close(said)
        self.stdin, self.stdout = os.fdopen(self._given, "wb"), os.fdopen(self._said, "rb")

    def _work(self) -> int:
        gc.freeze()  # what belongs to the tests is never taken apart here
        os.setsid()
        for number, end in self._ends.items():
            os.dup2(end, number)
        _let_go_of_files()
        like_a_new_process()
        root = logging.getLogger()
        root.handlers[:], root.manager.disable = [], 0
        os.environ.clear()
        os.environ.update(self._variables)
        try:
            code: int = import_module(f"{self._module}.__main__").main(self._words)
        except BaseException:  # noqa: BLE001  Python would say it and end
            traceback.print_exc()
            code = 1
        return code


def _let_go_of_files() -> None:
    """Close what the parent has open, but keep the numbers taken: objects of the parent's may still close them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != nothing:
            os.dup2(nothing, number, inheritable=False)


@contextlib.contextmanager
def helpers_are_forks() -> Iterator[None]:
    """Judges and critics that runs start are forks, where a fork can do all they do."""

    def start(command: Sequence[str], **how: Any) -> subprocess.Popen[bytes] | _Helper:
        if [*command[:2]] != [sys.executable, "-m"] or command[2] not in HELPERS:
            return subprocess.Popen(command, **how)
        return _Helper(command, how["stderr"], how["env"])

    with pytest.MonkeyPatch.context() as patch:
        if SOUND:
            _import_helpers()
            patch.setattr(child, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))
        yield


@cache
def _import_helpers() -> None:
    for name in ("judge.server.app", "judge.server.model", "judge.server.worker", "judge.server.reading"):
        import_module(f"nemotron.{name}")
    for name in ("rl.critic.models", "rl.critic.server"):
        import_module(f"nemotron.{name}")


def _run(words: tuple[str, ...], folder: Path, note: Path, most_bytes: int, env: Mapping[str, str]) -> None:
    code, before = 99, _megabytes("VmRSS")
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        tempfile.tempdir = str(folder)
        # The threads of the tests' own process are not in the fork; a second one would wait for them for ever.
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        done = nemotron(*words, cwd=folder, env={"OMP_NUM_THREADS": "1", **env})
        code, said = done.code, done.stdout[-3000:] + done.stderr[-3000:]
    except BaseException as error:  # noqa: BLE001  nothing of the tests may go on in the fork
        said = f"Traceback: {error!r}"
    try:
        note.write_text(json.dumps({"said": said, "took": _megabytes("VmHWM") - before}))
    finally:
        os._exit(code)


def _megabytes(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
