"""Where the program `vllm` is. It lives in an environment of its own: its torch is seldom ours."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

NAME = "vllm"
_PROC, _DEV = Path("/proc/driver/nvidia/gpus"), Path("/dev")


def program_at(path: str) -> Path | None:
    """The program at ``path``, which is the program itself, or the folder of an environment that has it."""
    place = Path(path).expanduser()
    for found in (place, place / "bin" / NAME, place / NAME):
        if found.is_file() and os.access(found, os.X_OK):
            return found
    return None


def program_here(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The program on ``PATH``, or beside this Python, whose environment need not be activated."""
    folders = (environ.get("PATH", os.defpath), str(Path(sys.executable).parent))
    found = next((one for folder in folders if (one := shutil.which(NAME, path=folder))), None)
    return Path(found) if found else None


def visible_gpus(environ: Mapping[str, str] = os.environ, *, proc: Path = _PROC, dev: Path = _DEV) -> list[str]:
    """The GPUs that a process started here would see, as ``CUDA_VISIBLE_DEVICES`` calls them."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        # As CUDA reads it: what comes after the first name that is none is not there.
        ends = next((index for index, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:ends]
    count = len(list(proc.glob("*"))) or len(list(dev.glob("nvidia[0-9]*")))
    return [str(index) for index in range(count)]
