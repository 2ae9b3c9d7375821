"""What the kernel says of processes that may end while it is asked."""

from __future__ import annotations

from pathlib import Path


def state_of(pid: int) -> tuple[str, int] | None:
    """State (``Z``: ended, and nobody has taken notice) and parent of a process; None when there is none."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return state, int(parent)


def is_alive(pid: int) -> bool:
    """Whether it still works."""
    found = state_of(pid)
    return found is not None and found[0] != "Z"
