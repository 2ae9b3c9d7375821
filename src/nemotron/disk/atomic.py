"""Files that are either whole or not there, and on the disk when a function of this module returns."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nemotron.disk.faults import RESUME, RUNS_PLACE, output_errors
from nemotron.disk.stream import StreamedFile

_WRITE_BYTES = 1 << 20
_RANDOM_BYTES = 4
_DRAFTS = f".*.{'[0-9a-f]' * 2 * _RANDOM_BYTES}.tmp"
"""Names of :func:`replacing`, and hardly ever of anybody else."""


def write_atomic(path: Path, content: bytes, *, place: str = RUNS_PLACE, after: str = RESUME) -> None:
    """Write ``content`` to a temporary sibling, sync it, rename it to ``path``; a reader sees the old file or the new.

    ``place`` and ``after`` are those of :func:`output_errors`, of a file that is none of a run's.

    Raises:
        OutputError: the file cannot be written; the old file, if any, is untouched.
    """
    with replacing(path, place=place, after=after) as file:
        file.write(content)


@contextmanager
def replacing(
    path: Path, *, durable: bool = True, place: str = RUNS_PLACE, after: str = RESUME
) -> Iterator[StreamedFile]:
    """A file to write, which takes the name ``path`` when the block ends well; as :func:`write_atomic` otherwise.

    ``durable=False`` leaves the time of writing to the system, for files whose reader checks the content.

    Raises:
        OutputError: the file cannot be written; the old file, if any, is untouched.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM_BYTES)}.tmp")
    with output_errors(path, place=place, after=after):
        file = StreamedFile(draft, durable=durable)
        try:
            with file:
                yield file
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """As :func:`write_atomic`, from lines that come one after another; returns their number.

    Raises:
        OutputError: the file cannot be written; the old file, if any, is untouched.
    """
    count, size = 0, 0
    waiting: list[bytes] = []
    with replacing(path) as file:
        for line in lines:
            waiting.append(line)
            size += len(line)
            count += 1
            if size > _WRITE_BYTES:
                file.write(b"".join(waiting))
                waiting, size = [], 0
        file.write(b"".join(waiting))
    return count


def remove_drafts(*folders: Path) -> None:
    """Remove what a killed process left in ``folders`` of :func:`replacing`; nobody else may be writing there.

    Raises:
        OutputError: one cannot be removed.
    """
    for folder in folders:
        with output_errors(folder):
            for draft in folder.glob(_DRAFTS):
                draft.unlink()


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Sync every file and folder below ``folder``, and ``folder`` itself."""
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root, name))
        sync(Path(root))
