"""The files below a folder that somebody named, who may have meant another one: ``/`` has millions, and not for us."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

MOST = 200_000
"""Names below a folder of data, of a model or of steps."""


def files_below(folder: Path, most: int = MOST) -> list[Path]:
    """All regular files below a folder, in order of name. Links to files count, links to folders are not followed.

    Raises:
        OSError: a part of it cannot be looked at, or it holds more than ``most`` names.
    """
    return sorted(_below(folder, most))


def links_below(folder: Path) -> list[Path]:
    """Links below a folder that `files_below` leaves out: to folders, and to what is not there."""
    found = []
    for root, folders, files in os.walk(folder):
        found += [path for name in folders if (path := Path(root, name)).is_symlink()]
        found += [path for name in files if (path := Path(root, name)).is_symlink() and not path.exists()]
    return sorted(found)


def _below(folder: Path, most: int) -> Iterator[Path]:
    left = most
    for root, folders, files in os.walk(folder, onerror=_refuse):
        left -= len(folders) + len(files)
        if left < 0:
            raise OSError(errno.EFBIG, f"it holds more than {most:,} files and folders", str(folder))
        for name in files:
            path = Path(root, name)
            if _is_regular(path):
                yield path


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        # A link that leads nowhere, or to itself; a file that went just now.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise


def _refuse(error: OSError) -> None:
    raise error
