"""Write a whole folder so that it appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemotron.disk.atomic import sync, sync_tree
from nemotron.disk.faults import output_errors
from nemotron.disk.lock import alone
from nemotron.errors import OutputError


@contextmanager
def published(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary sibling to fill; when the block ends well it is synced and renamed to ``target``.

    A killed process leaves ``.<name>.tmp`` behind, which the next writer of the same target removes.

    Raises:
        OutputError: ``target`` holds something and ``overwrite`` is not set, another process is writing it, or the disk
            does not take it. ``target`` is then as it was.
    """
    temporary = target.parent / f".{target.name}.tmp"
    with output_errors(target, place="choose a folder you may write to", after=", or choose a folder on another disk"):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not overwrite and occupied(target):
            raise OutputError(f"`{target}` exists already", hint="choose another folder, or set `overwrite: true`")
        temporary.mkdir(exist_ok=True)
        with alone(
            temporary,
            busy=f"another process is writing `{target}`",
            hint="wait for it, or choose another folder",
            patience_s=0,
        ):
            try:
                _clear(temporary)
                yield temporary
                sync_tree(temporary)
                _rename(temporary, target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise


def occupied(target: Path) -> bool:
    """Whether something is there that would be replaced."""
    return target.is_file() or (target.is_dir() and any(target.iterdir()))


def _clear(folder: Path) -> None:
    """Empty a folder without replacing it: the lock hangs on it."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _rename(temporary: Path, target: Path) -> None:
    if not occupied(target):
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
