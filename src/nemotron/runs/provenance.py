"""Where and with what a run was made: facts, no secrets."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from nemotron import __version__, snapshot
from nemotron.job import Commit, Provenance

_PACKAGES = ("torch", "transformers", "safetensors", "numpy", "aiohttp")


def provenance(cwd: Path | None = None, *, own_code: Path | None = None) -> Provenance:
    """Versions, platform and the git commit of ``cwd`` (none outside a repository).

    ``own_code`` is the folder of a step that is not shipped: its hash is part of the code's.
    """
    own = f"+{snapshot.digest_of(own_code)}" if own_code is not None else ""
    return Provenance(
        nemotron=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        host=platform.node(),
        packages={name: version for name in _PACKAGES if (version := _version(name)) is not None},
        git=_git(cwd or Path()),
        code=f"{snapshot.digest()}{own}",
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(cwd: Path) -> Commit | None:
    sha = _git_output(cwd, "rev-parse", "HEAD")
    if sha is None:
        return None
    changes = _git_output(cwd, "status", "--porcelain", "--untracked-files=no")
    return Commit(sha=sha, dirty=bool(changes))


def _git_output(cwd: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        # No git, no repository, or a repository too slow to ask: a run must not depend on it.
        return None
    return done.stdout.strip()
