"""Where the program `vllm` is. It lives in an environment of its own: its torch is seldom ours."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from nemotron.disk.home import expanded
from nemotron.place import Place

NAME = "vllm"
TESTED = "0.32"
"""The version that this was tried with."""
_PROC, _DEV = Path("/proc/driver/nvidia/gpus"), Path("/dev")


def program_at(path: str) -> Path | None:
    """The program at ``path``, which is the program itself, or the folder of an environment that has it."""
    place = expanded(path)
    for found in (place, place / "bin" / NAME, place / NAME):
        if found.is_file() and os.access(found, os.X_OK):
            return found
    return None


def program_here(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The program on ``PATH``, or beside this Python, whose environment need not be activated."""
    folders = (environ.get("PATH", os.defpath), str(Path(sys.executable).parent))
    found = next((one for folder in folders if (one := shutil.which(NAME, path=folder))), None)
    return Path(found) if found else None


def program_of(command: str | None, place: Place) -> Path | None:
    """The program of a config, where it can be looked for in a place; None where it is not there, or not to be seen."""
    if unseen(command, place):
        return None
    return program_here() if command is None else program_at(command)


def unseen(command: str | None, place: Place) -> bool:
    """Whether the program cannot be looked for from here."""
    return not (place.is_here if command is None else place.sees(Path(command)))


def missing(command: str | None, place: Place) -> str | None:
    """What is wrong where there is no program, although it could be seen; else None."""
    if unseen(command, place) or program_of(command, place) is not None:
        return None
    if command is None:
        return "`vllm` is neither on PATH nor beside this Python"
    return f"there is no program `vllm` at `{command}`, nor in its folder `bin`"


def get(key: str) -> str:
    """How to get vLLM, and the config key that names it."""
    return (
        f"install vLLM {TESTED} into an environment of its own, as its documentation says, and name that: "
        f"`{key}=DIR`, or RL_VLLM in the environment; or set `{key.rpartition('.')[0]}.server=embedded`"
    )


def gpus_for(environ: Mapping[str, str], taken: int, *, behind: int = 0) -> str | None:
    """``CUDA_VISIBLE_DEVICES`` of a server beside a policy, which is on the first GPU; None where it has to share.

    Args:
        taken: how many it takes.
        behind: how many, at the end, are for another server.
    """
    shown = visible_gpus(environ)
    free = shown[1 : len(shown) - behind]
    return ",".join(free[-taken:]) if len(free) >= taken else None


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
