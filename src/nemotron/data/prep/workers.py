"""Run independent tasks on this process and forked helpers. Tasks leave results in files, so nothing is sent back.

The calling process works as well: two processes are this one and one more, which keeps memory and start-up small.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from nemotron.errors import NemotronError, OutputError

T = TypeVar("T")
Step = Callable[[int, int], None]
"""Called with rows and bytes done since the last call."""
Work = Callable[[T, Step], None]
Progress = Callable[[int, int], None]
"""Called with rows and bytes done so far, by all processes."""


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Shared:
    """Counters that the processes of one call see. A process that is killed, at whatever moment, keeps none from the
    others: each counts into a place of its own, and a turn is a lock that the kernel gives back for it.
    """

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("fork")
        self._next = context.RawValue("q", 0)
        self._failed = context.RawValue("b", 0)
        self._rows = context.RawArray("q", processes)
        self._bytes = context.RawArray("q", processes)
        self._lock = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the call that made it

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One process at a time."""
        # By `fcntl` and not `flock`: forked processes have the file in common, and that lock would be theirs together.
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def take(self) -> int:
        """The next number, from 0; nobody else gets it."""
        with self.turn():
            index = int(self._next.value)
            self._next.value = index + 1
        return index

    def add(self, process: int, rows: int, size: int) -> None:
        """Count what process number ``process`` has done; it alone may say so."""
        self._rows[process] += rows
        self._bytes[process] += size

    @property
    def done(self) -> tuple[int, int]:
        """Rows and bytes, of all processes."""
        return sum(self._rows), sum(self._bytes)

    @property
    def failed(self) -> bool:
        """Whether a process has met an error."""
        return bool(self._failed.value)

    def fail(self) -> None:
        """Let all stop after the task they are in."""
        self._failed.value = 1

    def close(self) -> None:
        """Let the lock's file go."""
        self._lock.close()


def keep_memory() -> None:
    """Tell glibc to keep what is freed: blocks of one size come and go, and fresh pages cost a quarter of the time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def run_tasks(tasks: Sequence[T], work: Work[T], *, processes: int, progress: Progress) -> None:
    """Do every task once, in any order.

    Raises:
        NemotronError: the first error of any task; the other processes stop after the task they are in.
    """
    processes = min(processes, len(tasks)) if hasattr(os, "fork") else 1
    if processes <= 1:
        _run_alone(tasks, work, progress)
        return
    with closing(Shared(processes)) as shared:
        _run_shared(tasks, work, shared, processes, progress)


def _run_shared(tasks: Sequence[T], work: Work[T], shared: Shared, processes: int, progress: Progress) -> None:
    context = multiprocessing.get_context("fork")
    helpers = []
    for number in range(1, processes):
        receiving, sending = context.Pipe(duplex=False)
        sys.stderr.flush()
        helper = context.Process(target=_helper, args=(tasks, work, shared, number, sending, os.getpid()), daemon=True)
        helper.start()
        sending.close()
        helpers.append((helper, receiving))
    error: BaseException | None = None
    try:
        _loop(tasks, work, shared, 0, lambda: progress(*shared.done))
    except BaseException as own:  # noqa: BLE001 - raised again once the helpers have stopped
        shared.fail()
        error = own
    for helper, receiving in helpers:
        theirs = _result(receiving)
        helper.join()
        error = error or theirs
    if error is not None:
        raise error
    progress(*shared.done)


def _run_alone(tasks: Sequence[T], work: Work[T], progress: Progress) -> None:
    done = [0, 0]

    def step(rows: int, size: int) -> None:
        done[0] += rows
        done[1] += size
        progress(done[0], done[1])

    for task in tasks:
        work(task, step)


def _loop(tasks: Sequence[T], work: Work[T], shared: Shared, process: int, tick: Callable[[], None]) -> None:
    def step(rows: int, size: int) -> None:
        shared.add(process, rows, size)
        tick()

    while not shared.failed and (index := shared.take()) < len(tasks):
        work(tasks[index], step)


def _helper(
    tasks: Sequence[Any], work: Work[Any], shared: Shared, number: int, sending: Connection, parent: int
) -> None:
    """Life of a helper process: an error is sent to the parent, whose death ends the work."""

    def alive() -> None:
        if os.getppid() != parent:
            os._exit(1)

    result: BaseException | None = None
    try:
        _loop(tasks, work, shared, number, alive)
    except KeyboardInterrupt:
        result = KeyboardInterrupt()
    except NemotronError as error:
        result = error
    except BaseException as error:  # noqa: BLE001
        # Supervision: the parent must hear of whatever ended this process.
        result = RuntimeError(f"{type(error).__name__}: {error}")
    if result is not None:
        shared.fail()
    sending.send_bytes(_packed(result))
    sending.close()
    # Without the parent's own exit handlers and buffered output.
    os._exit(0)


def _packed(error: BaseException | None) -> bytes:
    if isinstance(error, NemotronError):
        return pickle.dumps((type(error), error.message, error.hint, error.origin))
    return pickle.dumps((type(error), str(error), None, None) if error is not None else None)


def _result(receiving: Connection) -> BaseException | None:
    try:
        packed = pickle.loads(receiving.recv_bytes())
    except EOFError:
        return OutputError(
            "a helper process ended unexpectedly", hint="most likely memory ran out: set `num_processes=1`"
        )
    if packed is None:
        return None
    kind, message, hint, origin = packed
    error: BaseException = kind(message, hint=hint, origin=origin) if issubclass(kind, NemotronError) else kind(message)
    return error
