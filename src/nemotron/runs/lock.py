"""One live process per run folder.

The lock is an ``flock`` on ``run.lock``. The kernel drops it when the process ends, however it ends, so "is this run
alive?" has a true answer even after ``kill -9`` and when process ids are reused, as they are in containers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import sys
import time
from pathlib import Path

from nemotron.errors import OutputError
from nemotron.runs.atomic import output_errors, write_all

LOCK_FILE = "run.lock"
# A reader that asks `is_held` owns a shared lock for some microseconds: a writer waits that out.
_PATIENCE_S = 0.5

_held: dict[Path, int] = {}
"""Locks of this process: real path of the lock file -> descriptor. ``flock`` would shut out a second open in the
same process, but a run that is created by the command and opened again by the engine is one run."""


NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""What a file system says that has no locks, as some network file systems do."""


def acquire(folder: Path) -> None:
    """Hold the folder until :func:`release` or the end of the process. Free if this process holds it already.

    On a file system without locks nothing keeps a second process out, which is said on stderr.

    Raises:
        OutputError: another live process holds it (the message names its pid), or the lock file cannot be written.
    """
    path = (folder / LOCK_FILE).resolve()
    if path in _held:
        return
    with output_errors(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _wait_for(fd, folder)
            os.ftruncate(fd, 0)
            write_all(fd, f"{os.getpid()} {platform.node()}\n".encode())
        except BaseException:
            os.close(fd)
            raise
    _held[path] = fd


def moved(old: Path, new: Path) -> None:
    """The folder of a held lock was renamed from ``old`` to ``new``; the lock goes with it."""
    _held[(new / LOCK_FILE).resolve()] = _held.pop(old.resolve() / LOCK_FILE)


def release(folder: Path) -> None:
    """Give the folder back. Nothing happens if this process does not hold it."""
    fd = _held.pop((folder / LOCK_FILE).resolve(), None)
    if fd is not None:
        os.close(fd)


def is_held(folder: Path) -> bool | None:
    """Whether a live process, this one included, holds the folder; None where the file system has no locks."""
    path = (folder / LOCK_FILE).resolve()
    if path in _held:
        return True
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
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


def holder(folder: Path) -> str:
    """Who wrote the lock file last, as ``process 4711 on host``; ``another process`` if that is unknown."""
    try:
        words = (folder / LOCK_FILE).read_text(encoding="utf-8").split()
    except OSError:
        return "another process"
    return f"process {words[0]} on {words[1]}" if len(words) == 2 else "another process"


def _wait_for(fd: int, folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise OutputError(
                    f"run `{folder.name}` is in use by {holder(folder)}",
                    hint="wait until it ends, or stop that process",
                ) from error
            time.sleep(0.02)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(
                f"warning: `{folder}` lies on a file system without locks: nothing keeps a second process out",
                file=sys.stderr,
            )
            return
