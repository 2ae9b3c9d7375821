"""A scheduler's notice that the time of a job ends soon: the run saves a checkpoint after its step, and stops.

It comes as a file in the attempt's folder, which the batch script makes when Slurm signals it, some time before the
limit and before it preempts a job; or as SIGUSR1 to the worker itself, from a person or another scheduler. Nothing else
here uses that signal.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

FILE = "notice"
"""In the attempt's folder."""

_signalled = False
_file: Path | None = None


def given() -> bool:
    """Whether notice was given since :func:`listening` began."""
    return _signalled or (_file is not None and _file.exists())


@contextmanager
def listening() -> Iterator[None]:
    """Note SIGUSR1 while the block runs, instead of being ended by it. For the main thread."""
    global _signalled, _file

    def note(signum: int, frame: FrameType | None) -> None:
        global _signalled
        _signalled = True

    _signalled, _file = False, None
    before = signal.signal(signal.SIGUSR1, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
        _file = None


def look_in(attempt: Path) -> None:
    """Look for the file in an attempt's folder from now on; one that an earlier turn of the job left is removed."""
    global _file
    _file = attempt / FILE
    _file.unlink(missing_ok=True)
