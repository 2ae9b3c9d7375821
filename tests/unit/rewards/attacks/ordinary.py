"""Start a command as an ordinary user (65534), for tests that root runs: ``python ordinary.py FOLDER COMMAND ...``.

The interpreter and these sources may lie where only root may look. They are shown to that user in a mount namespace of
this process: each private folder above them gets a public, empty one over it, with what is needed at its place.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nemotron.sandbox import kernel

NOBODY = 65534


def private_ancestor(path: Path) -> Path | None:
    """The first folder above ``path`` that other users may not pass."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & 1:
            return folder
    return None


def show(needed: list[Path], staging: Path) -> None:
    """Make the folders ``needed`` reachable for everybody in this mount namespace."""
    hidden: dict[Path, list[Path]] = {}
    for path in needed:
        if folder := private_ancestor(path):
            hidden.setdefault(folder, []).append(path)
    if not hidden:
        return
    kernel.unshare(kernel.NEWNS)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    staged = {path: staging / str(number) for number, path in enumerate(p for paths in hidden.values() for p in paths)}
    for path, place in staged.items():
        place.mkdir()
        kernel.mount(str(path), str(place), "", kernel.MS_BIND | kernel.MS_REC)
    for folder, paths in hidden.items():
        kernel.mount("tmpfs", str(folder), "tmpfs", 0, "mode=755")
        for path in paths:
            path.mkdir(parents=True, exist_ok=True)  # there, where it lies in one that has been bound before
            kernel.mount(str(staged[path]), str(path), "", kernel.MS_BIND | kernel.MS_REC)


def main() -> None:
    """Become that user and the command; its temporary files go to ``FOLDER/tmp``."""
    folder, root = Path(sys.argv[1]), Path(__file__).parents[4]
    needed = {Path(os.path.realpath(sys.base_prefix)), Path(os.path.realpath(sys.prefix)), root}
    staging = folder / "staging"
    staging.mkdir()
    show(sorted(needed), staging)
    os.chdir(root)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(sys.argv[2], sys.argv[2:], {**environment, "TMPDIR": str(folder / "tmp")})


if __name__ == "__main__":
    main()
