"""A folder that goes with this process, even when that is killed: ``python -m nemotron.processes.vanishing FOLDER``.

For what is large, or must not be found by anybody later. The helper removes it when its stdin closes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def vanishing_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder of this user alone, in ``parent`` or among the temporary files, until the block ends."""
    folder = tempfile.mkdtemp(prefix="nemotron-", dir=parent)
    command = [sys.executable, "-m", __name__, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        # Leaving closes its stdin and waits until it has done its work.
        yield Path(folder)


def main(folder: str) -> int:
    """Remove ``folder`` when nobody holds the other end of our stdin any more."""
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
