"""What a disk or a file system may answer, in the user's words. The only table of error numbers."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemotron.errors import OutputError

RUNS_PLACE = "choose a folder you may write to, for example with `--runs-dir`"
RESUME = ", then go on with `nemotron runs resume`"

_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "your disk quota is used up: free some space",
    errno.EFBIG: "raise the file size limit (`ulimit -f`)",
}
_IN_THE_WAY = {
    errno.ENOTDIR: "a part of this path is a file",
    errno.EEXIST: "a file of that name is in the way",
    errno.EISDIR: "a folder of that name is in the way",
}
_OF_RUST = re.compile(r"\(os error (\d+)\)$")
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""What a file system says that has no locks, as some network file systems do."""


def reason(error: OSError) -> str:
    """What the system says of it, as the end of a sentence."""
    return (error.strerror or str(error)).lower()


@contextmanager
def output_errors(path: Path, *, what: str = "", place: str = RUNS_PLACE, after: str = RESUME) -> Iterator[None]:
    """Turn any ``OSError`` of the block into an :class:`OutputError` that names ``path`` and the fix.

    Args:
        path: what is being written.
        what: a word before the path, with a space behind it: ``checkpoint ``.
        place: the fix when it cannot be written there at all.
        after: how to go on when the disk is full, put behind the fix.
    """
    try:
        yield
    except OSError as error:
        raise output_error(error, path, what=what, place=place, after=after) from error


@contextmanager
def errors_of_rust() -> Iterator[None]:
    """Turn what libraries in Rust raise for an error of the system, a plain ``Exception`` that ends in its number, into
    the ``OSError`` that it is."""
    try:
        yield
    except Exception as error:
        told = _OF_RUST.search(str(error))
        if told is None or isinstance(error, OSError):
            raise
        raise OSError(int(told[1]), os.strerror(int(told[1]))) from error


def output_error(
    error: OSError, path: Path, *, what: str = "", place: str = RUNS_PLACE, after: str = RESUME
) -> OutputError:
    """The error that :func:`output_errors` raises; arguments as there."""
    number = error.errno or 0
    hint = None
    if number in _FORBIDDEN:
        hint = place
    elif number in _FULL:
        hint = _FULL[number] + after
    elif number in _IN_THE_WAY:
        hint = f"{_IN_THE_WAY[number]}: {place}"
    return OutputError(f"cannot write {what}`{path}`: {reason(error)}", hint=hint)
