"""Rays of the tests, several on one machine and beside any other of it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from tests.integration.slurm.lab import free_port

AGENTS = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port", "runtime-env-agent-port")

PATIENT = {"RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "300"}
"""Variables of a head: its dashboard is ten processes, and gives up where one of them needs 30 s for its imports,
as on a busy machine; then the head takes no jobs."""


def own_ports() -> dict[str, int]:
    """Options of `ray start` with which a node shares no port with another.

    The kernel gives workers theirs (0): out of Ray's usual range two Rays give the same one at the same time, and the
    agent that comes second is dead, without which a head takes no jobs.
    """
    own = (*AGENTS, "node-manager-port", "object-manager-port")
    return {**{name: free_port() for name in own}, "min-worker-port": 0, "max-worker-port": 0}


def kill_ray(home: Path) -> None:
    """All of a Ray that has this folder as its HOME: its daemons call themselves something else and have groups of
    their own, but their variables stay. `ray stop` would end every Ray of the machine."""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"HOME={home}\0".encode() in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)
