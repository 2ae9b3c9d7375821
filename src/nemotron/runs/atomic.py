"""Files that are either whole or not there, and write errors in the user's words."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemotron.errors import OutputError

_HINTS = {
    errno.EACCES: "choose a folder you may write to, for example with `--runs-dir`",
    errno.EPERM: "choose a folder you may write to, for example with `--runs-dir`",
    errno.EROFS: "choose a folder you may write to, for example with `--runs-dir`",
    errno.ENOTDIR: "a part of this path is a file: choose another folder with `--runs-dir`",
    errno.EEXIST: "a file of that name is in the way: choose another folder with `--runs-dir`",
    errno.ENOSPC: "free some disk space, then go on with `nemotron runs resume`",
    errno.EDQUOT: "your disk quota is used up: free some space, then go on with `nemotron runs resume`",
    errno.EFBIG: "raise the file size limit (`ulimit -f`), then go on with `nemotron runs resume`",
}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn any ``OSError`` of the block into an :class:`OutputError` that names ``path`` and the fix."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot write `{path}`: {reason}", hint=_HINTS.get(error.errno or 0)) from error


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary sibling, sync it, rename it to ``path``; a reader sees the old file or the new.

    Raises:
        OutputError: the file cannot be written; the old file, if any, is untouched.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with output_errors(path):
        try:
            # Unbuffered, so that closing after a failed write has nothing left to fail on.
            with open(draft, "xb", buffering=0) as file:
                write_all(file.fileno(), content)
                os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def remove_drafts(folder: Path) -> None:
    """Remove what a process killed inside :func:`write_atomic` left in ``folder``; nobody else may be writing there."""
    for draft in folder.glob(".*.tmp"):
        draft.unlink()


def write_all(fd: int, content: bytes) -> None:
    """Write all bytes: the kernel may take fewer than asked, most likely just before it reports a full disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
