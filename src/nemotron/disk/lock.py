"""One worker at a time, said by a file that it holds.

The lock is an ``flock``. The kernel drops it when the process ends, however it ends, so "does somebody work here?" has
a true answer even after ``kill -9`` and when process ids are reused, as they are in containers.

On a file system without locks, as some network file systems are, nothing keeps a second process out: that is said on
stderr, and whether a lock is held there is not known.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemotron.disk.documents import read_bytes
from nemotron.disk.faults import NO_LOCKS, output_errors
from nemotron.disk.stream import write_all
from nemotron.errors import OutputError

# A reader that asks `is_held` owns a shared lock for some microseconds: a writer waits that out.
_PATIENCE_S = 0.5

_held: dict[Path, int] = {}
"""Locks of this process: real path of the lock file -> descriptor. ``flock`` would shut out a second open in the
same process, but a run that is created by the command and opened again by the engine is one run."""


def acquire(path: Path, *, what: str, hint: str = "wait until it ends, or stop that process") -> None:
    """Hold the lock file ``path`` until :func:`release` or the end of the process. Free if this process holds it.

    ``what`` names what is locked, as ``run `X```, and ``hint`` the way out, for the error.

    Raises:
        OutputError: another live process holds it (the message names its pid), or the lock file cannot be written.
    """
    path = path.resolve()
    if path not in _held:
        _held[path] = _taken(path, f"{what} is in use by {{holder}}", hint, _PATIENCE_S)


def moved(old: Path, new: Path) -> None:
    """The lock file ``old`` is called ``new`` now, as its folder was renamed; what holds it goes on holding it."""
    _held[new.resolve()] = _held.pop(old.parent.resolve() / old.name)


def release(path: Path) -> None:
    """Give the lock file back. Nothing happens if this process does not hold it."""
    fd = _held.pop(path.resolve(), None)
    if fd is not None:
        os.close(fd)


def is_held(path: Path) -> bool | None:
    """Whether a live process, this one included, holds ``path``; None where the file system has no locks."""
    path = path.resolve()
    if path in _held:
        return True
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    finally:
        os.close(fd)
    return False


def holder(path: Path) -> str:
    """Who wrote the lock file last, as ``process 4711 on host``; ``another process`` if that is unknown."""
    found = holder_of(path)
    return f"process {found[0]} on {found[1]}" if found else "another process"


def holder_of(path: Path) -> tuple[int, str] | None:
    """Process and machine of whoever wrote the lock file last; None where it does not say."""
    try:
        words = read_bytes(path, 1024).decode("utf-8", "replace").split()
    except OSError:
        return None
    # 0 and below are groups of processes to who sends a signal.
    if len(words) != 2 or not re.fullmatch(r"[1-9][0-9]{0,9}", words[0]):
        return None
    return int(words[0]), words[1]


@contextmanager
def alone(path: Path, *, busy: str, hint: str, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """Hold the file or folder ``path`` for a block, against other blocks of this process as well.

    ``busy`` is the message when somebody else holds it for longer than ``patience_s``; ``{holder}`` in it says who.

    Raises:
        OutputError: it is held, or cannot be written.
    """
    fd = _taken(path, busy, hint, patience_s)
    try:
        yield
    finally:
        os.close(fd)


def _taken(path: Path, busy: str, hint: str, patience_s: float) -> int:
    """A descriptor that holds the lock; a file says by whom."""
    folder = path.is_dir()
    with output_errors(path):
        fd = os.open(path, os.O_CLOEXEC | (os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT), 0o644)
        try:
            _wait_for(fd, path, busy, hint, patience_s)
            if not folder:
                os.ftruncate(fd, 0)
                write_all(fd, f"{os.getpid()} {platform.node()}\n".encode())
        except BaseException:
            os.close(fd)
            raise
    return fd


def _wait_for(fd: int, path: Path, busy: str, hint: str, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise OutputError(busy.replace("{holder}", holder(path)), hint=hint) from error
            time.sleep(0.02)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(
                f"warning: `{path.parent}` lies on a file system without locks: nothing keeps a second process out",
                file=sys.stderr,
            )
            return
