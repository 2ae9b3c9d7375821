"""Write a whole folder so that it appears complete or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemotron.errors import OutputError

_HINTS = {
    errno.ENOSPC: "free some disk space, or choose a folder on another disk",
    errno.EDQUOT: "your disk quota is used up: free some space",
    errno.EFBIG: "raise the file size limit (`ulimit -f`)",
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder you may write to",
}


@contextmanager
def published(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary sibling to fill; when the block ends well it is synced and renamed to ``target``.

    A killed process leaves ``.<name>.tmp`` behind, which the next writer of the same target removes.

    Raises:
        OutputError: ``target`` holds something and ``overwrite`` is not set, another process is writing it, or the disk
            does not take it. ``target`` is then as it was.
    """
    temporary = target.parent / f".{target.name}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not overwrite and _occupied(target):
            raise OutputError(f"`{target}` exists already", hint="choose another folder, or set `overwrite: true`")
        with _alone(temporary, target):
            try:
                _clear(temporary)
                yield temporary
                sync_tree(temporary)
                _rename(temporary, target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot write `{target}`: {reason}", hint=_HINTS.get(error.errno or 0)) from error


@contextmanager
def _alone(temporary: Path, target: Path) -> Iterator[None]:
    """Hold the temporary folder for this process; the kernel lets go of it when the process dies."""
    temporary.mkdir(exist_ok=True)
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another process is writing `{target}`", hint="wait for it, or choose another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _occupied(target: Path) -> bool:
    return target.is_file() or (target.is_dir() and any(target.iterdir()))


def _clear(folder: Path) -> None:
    """Empty a folder without replacing it: the lock hangs on it."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _rename(temporary: Path, target: Path) -> None:
    if not _occupied(target):
        os.replace(temporary, target)
    else:
        # Two renames: a crash between them leaves the old content under the other name, never nothing.
        old = target.parent / f".{target.name}.old"
        if old.exists():
            shutil.rmtree(old)
        os.replace(target, old)
        os.replace(temporary, target)
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    sync(target.parent)


def sync_tree(folder: Path) -> None:
    """Sync every file and folder below ``folder`` to disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root, name))
        sync(Path(root))


def sync(path: Path) -> None:
    """Sync one file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
