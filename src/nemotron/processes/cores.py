"""How many cores this process may use, for everybody who starts threads or processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "NEMOTRON_CORES"
"""The share of the cores that whoever started this process left it, where several work side by side."""
_CGROUP = Path("/sys/fs/cgroup")


def usable_cores(environ: Mapping[str, str] = os.environ) -> int:
    """Cores this process may use: the affinity mask, cut by the cgroup's CPU quota and by :func:`share`; at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows know no affinity
        cores = os.cpu_count() or 1
    limits = [cores, *(int(limit) for limit in (_cgroup_quota(_CGROUP), share(environ)) if limit is not None)]
    return max(1, min(limits))


def share(environ: Mapping[str, str] = os.environ) -> int | None:
    """The cores that were left to this process; None where it need not share them."""
    said = environ.get(VARIABLE, "").strip()
    return int(said) if said.isdecimal() and int(said) else None


def share_environment(cores: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment of a process, and of those that it starts, to which so many cores are left.

    OMP_THREAD_LIMIT binds the libraries that never ask us, and is a bound alone: how many threads a training process
    computes with is still decided beside its helpers (:mod:`nemotron.rl.threads`). A user who has said how many threads
    there are is not bound.
    """
    said = environ.get("OMP_NUM_THREADS", "").strip()
    return {VARIABLE: str(cores)} | ({} if said else {"OMP_THREAD_LIMIT": str(cores)})


def _cgroup_quota(root: Path) -> float | None:
    """CPUs' worth of time the control group grants (v2 ``cpu.max``, else v1), None when it grants all."""
    quota, period = "max", "100000"
    if (root / "cpu.max").is_file():
        quota, period = (root / "cpu.max").read_text().split()
    elif (root / "cpu" / "cpu.cfs_quota_us").is_file():
        quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
        period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
