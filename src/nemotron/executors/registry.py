"""Executors by name; the module of each is imported when it is asked for."""

from __future__ import annotations

from pydantic import ValidationError

from nemotron.errors import ArtifactError, NotAvailableError
from nemotron.executors.base import Executor, Gathering, Kept
from nemotron.install import install_extra
from nemotron.runs.attempts import Handle

NAMES = ("detached", "slurm", "lepton", "ray")
"""Those that start a run elsewhere than in the command's own process."""


def executor_of(handle: Handle) -> Executor:
    """The executor that started an attempt, which can be asked by what the handle keeps.

    Raises:
        ArtifactError: this version has none of that name, or the handle is not one that it wrote.
    """
    by = executor(handle.executor)
    try:
        Kept.model_validate(handle.model_extra or {})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "it"
        raise ArtifactError(
            f"cannot ask `{handle.executor}` about this attempt: `{key}` in its `handle.json` is damaged: "
            f"{first['msg'][0].lower()}{first['msg'][1:]}",
            hint="only the command that started a run writes that file",
        ) from error
    return by


def executor(name: str) -> Executor:
    """The executor called ``name``.

    Raises:
        ArtifactError: this version has none of that name.
        NotAvailableError: a package that it needs is not installed.
    """
    if name in NAMES:
        try:
            return _imported(name)
        except ModuleNotFoundError as error:
            if (error.name or "nemotron").partition(".")[0] == "nemotron":
                raise
            raise NotAvailableError(
                f"jobs on `{name}` need the package `{error.name}`", hint=install_extra("cluster")
            ) from error
    raise ArtifactError(
        f"the run was started by the executor `{name}`, which this version does not have",
        hint="look at it with the version that started it",
    )


def gathering(name: str) -> Gathering:
    """The executor that sends many jobs by one call: only one says of its submissions what they share."""
    assert name == "slurm", name
    from nemotron.executors.slurm.executor import Slurm

    return Slurm()


def _imported(name: str) -> Executor:
    if name == "slurm":
        from nemotron.executors.slurm.executor import Slurm

        return Slurm()
    if name == "lepton":
        from nemotron.executors.lepton.executor import Lepton

        return Lepton()
    if name == "ray":
        from nemotron.executors.ray_jobs import RayJobs

        return RayJobs()
    from nemotron.executors.detached import Detached

    return Detached()
