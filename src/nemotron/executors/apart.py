"""A run in a process of its own on this machine: its memory, threads and crashes are none of the next one's.

What the process is told goes through a pipe: secrets stand in no list of processes. It ends when its parent does, and
saves what it has as on Ctrl-C.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import TextIO

from nemotron.errors import OutputError
from nemotron.job import CompiledJob
from nemotron.outcome import exit_code_of
from nemotron.processes import garbage
from nemotron.processes.cores import share_environment
from nemotron.processes.termination import held_back
from nemotron.runs.folder import RunFolder

SIGNALLED = 128
"""Added to the number of the signal that ended a process, as shells do."""
_LAST_WORDS_S = 2.0
"""Seconds for what a process that has ended wrote last; what it started may still hold the pipe."""


@dataclass(frozen=True, slots=True)
class Beside:
    """How a run shares this machine with others that work at the same time."""

    name: str
    """Stands in front of each of its lines."""
    cores: int
    """Those that are left to it."""


class Working:
    """A run at work in a process of its own. Used by one thread."""

    def __init__(self, told: _Told, beside: Beside | None = None) -> None:
        """Nothing is started yet: whoever has to end it knows it first."""
        self._told, self._beside = told, beside
        self._process: SpawnProcess | None = None
        self._readers: list[threading.Thread] = []

    def start(self) -> None:
        """Start the process; returns at once.

        Raises:
            KeyboardInterrupt: it came meanwhile, and was held back until the process was known here.
        """
        beside, context = self._beside, multiprocessing.get_context("spawn")
        with held_back():
            pipes = [context.Pipe(duplex=False) for _ in range(2)] if beside is not None else []
            process = context.Process(target=_work, args=(self._told, beside, *(ours for _, ours in pipes)))
            with _no_script():
                process.start()
            self._process = process
            for (theirs, ours), stream in zip(pipes, (sys.stdout, sys.stderr), strict=False):
                ours.close()
                assert beside is not None
                words = (theirs, beside.name, stream)
                self._readers.append(threading.Thread(target=_repeat, args=words, daemon=True, name="lines"))
                self._readers[-1].start()

    @property
    def sentinel(self) -> int:
        """What `multiprocessing.connection.wait` waits on until it has ended."""
        assert self._process is not None
        return self._process.sentinel

    def end(self) -> None:
        """Tell it to save its state and end."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()

    def code(self) -> int:
        """Wait for its end; its exit code, as a shell says it. One that was never started was interrupted."""
        if self._process is None:
            return SIGNALLED + signal.SIGINT
        self._process.join()
        for reader in self._readers:
            reader.join(_LAST_WORDS_S)
        code = self._process.exitcode
        assert code is not None
        return code if code >= 0 else SIGNALLED - code


def start(job: CompiledJob, runs_dir: Path, secrets: Mapping[str, str]) -> int:
    """Make the folder of a new run and work on it to its end; returns the exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run has saved its state.
    """
    return _to_its_end(begin(job, runs_dir, secrets))


def go_on(run: RunFolder, secrets: Mapping[str, str], command: Sequence[str], *, accept_changed: bool = False) -> int:
    """Go on with a run from where it stands to its end, as :func:`start` does."""
    return _to_its_end(begin_again(run, secrets, command, accept_changed=accept_changed))


def begin(job: CompiledJob, runs_dir: Path, secrets: Mapping[str, str], *, beside: Beside | None = None) -> Working:
    """What makes the folder of a new run and works on it, once it is started."""
    return Working(_Told(job.to_bytes(), None, runs_dir, dict(secrets), job.asked.command, False), beside)


def begin_again(
    run: RunFolder,
    secrets: Mapping[str, str],
    command: Sequence[str],
    *,
    accept_changed: bool = False,
    beside: Beside | None = None,
) -> Working:
    """What goes on with a run from where it stands, once it is started."""
    told = _Told(None, run.path, run.path.parent, dict(secrets), tuple(command), accept_changed)
    return Working(told, beside)


def end_all(working: Collection[Working]) -> None:
    """End runs, each with its state saved; at once when the user asks for it again."""
    try:
        for one in working:
            one.end()
        for one in working:
            one.code()
    except KeyboardInterrupt:
        for one in working:
            one.kill()
        for one in working:
            one.code()


@contextmanager
def _no_script() -> Iterator[None]:
    """A process that is started here imports no script first.

    ``multiprocessing`` would have it import the user's, for what is defined there; a run needs nothing of it, and a
    script without ``if __name__ == "__main__":`` would start everything again in each process.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _to_its_end(working: Working) -> int:
    try:
        working.start()
        return working.code()
    except KeyboardInterrupt:
        end_all([working])
        raise


@dataclass(frozen=True, slots=True)
class _Told:
    """What the process of a run is told."""

    job: bytes | None
    """Of a new run."""
    earlier: Path | None
    """The folder of one that goes on."""
    runs_dir: Path
    secrets: Mapping[str, str]
    command: Sequence[str]
    accept_changed: bool


def _work(told: _Told, beside: Beside | None, *streams: Connection) -> None:
    """In the process of the run."""
    # Ctrl-C reaches every process of a terminal. It is for the command, which then tells this one once.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()
    for number, stream in enumerate(streams, 1):
        # For whatever it starts, too.
        os.dup2(stream.fileno(), number)
        stream.close()
    if beside is not None:
        os.environ.update(share_environment(beside.cores))

    def start() -> int:
        from nemotron.engines.worker import work
        from nemotron.executors.local import announce, preparing

        if told.earlier is not None:
            run = RunFolder.open(told.earlier)
            announce(f"{run.job().step}: going on in {run.path}")
            return work(run, told.secrets, preparing(run, told.command), accept_changed=told.accept_changed)
        assert told.job is not None
        run = RunFolder.create(told.runs_dir, CompiledJob.model_validate_json(told.job))
        announce(f"{run.job().step}: starting in {run.path}")
        return work(run, told.secrets)

    garbage.starting()
    code = exit_code_of(start, tuple(told.command))
    garbage.ending()
    sys.exit(code)


def _repeat(theirs: Connection, name: str, stream: TextIO) -> None:
    """Write what a run says, with its name in front of each line."""
    with TextIOWrapper(os.fdopen(os.dup(theirs.fileno()), "rb"), "utf-8", "backslashreplace") as lines:
        theirs.close()
        for line in lines:
            try:
                # In one piece: others write there, too.
                stream.write(f"{name}: {line.rstrip()}\n")
                stream.flush()
            except (OSError, OutputError):
                # Nobody takes it any more. The run learns that when it writes, as if there were no pipe between.
                return


def _end_with_parent() -> None:
    """A command that is killed takes the run along: nobody would begin the next one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
