"""Executors by name; the module of each is imported when it is asked for."""

from __future__ import annotations

from nemotron.errors import ArtifactError
from nemotron.executors.base import Executor

NAMES = ("detached", "slurm", "lepton", "ray")
"""Those that start a run elsewhere than in the command's own process."""


def executor(name: str) -> Executor:
    """The executor called ``name``.

    Raises:
        ArtifactError: this version has none of that name.
    """
    if name == "slurm":
        from nemotron.executors.slurm.executor import Slurm

        return Slurm()
    if name == "detached":
        from nemotron.executors.detached import Detached

        return Detached()
    if name == "lepton":
        from nemotron.executors.lepton.executor import Lepton

        return Lepton()
    if name == "ray":
        from nemotron.executors.ray_jobs import RayJobs

        return RayJobs()
    raise ArtifactError(
        f"the run was started by the executor `{name}`, which this version does not have",
        hint="look at it with the version that started it",
    )
