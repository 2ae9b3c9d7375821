"""What every executor can do, and what they say to each other's callers.

An executor is asked by what an attempt's ``handle.json`` says, so that any process can ask about a run, also after a
reboot. ``plan`` is pure: what it returns is all that would be sent, and what a dry run prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from nemotron.disk.documents import open_regular
from nemotron.errors import ArtifactError, ExecutorError
from nemotron.job import CompiledJob
from nemotron.profiles.load import Profile
from nemotron.profiles.values import Dashboard, Destination, Folder, Line, Variable
from nemotron.runs.attempts import Handle
from nemotron.runs.folder import RunFolder

StateName = Literal[
    "queued",
    "running",
    "finished",
    "failed",
    "cancelled",
    "timeout",
    "preempted",
    "out_of_memory",
    "node_failed",
    "lost",
    "unknown",
]
"""``preempted``: ended for another job. ``node_failed``: the machine went away. ``lost``: the executor has never heard
of the job, or forgot it. ``unknown``: the executor cannot be asked now."""

WAITING: frozenset[StateName] = frozenset({"queued", "running"})


class KeptSsh(BaseModel):
    """A login node, as a handle keeps it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    host: Destination
    user: Destination | None = None
    identity: Line | None = None
    options: list[Line] = []


class KeptCluster(BaseModel):
    """A Ray cluster, as a handle keeps it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    address: Dashboard
    token_env: Variable | None = None


class KeptEnd(BaseModel):
    """How a job ended whose cluster is gone."""

    model_config = ConfigDict(extra="forbid", strict=True)

    state: StateName
    reason: str = ""
    exit_code: int | None = None


class Kept(BaseModel):
    """What the handles of all attempts elsewhere keep, and what some do. Anybody may have written over it since."""

    model_config = ConfigDict(extra="allow", strict=True)

    run_dir: Folder
    number: Annotated[int, Field(ge=1)]
    mirrored: bool = False
    log: Folder | None = None
    job_name: Line | None = None
    job_id: Line | None = None
    code_dir: Folder | None = None
    ssh: KeptSsh | None = None
    workspace: dict[str, str] | None = None
    cluster: KeptCluster | None = None
    ray_cluster: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,35}$")] | None = None
    submitted: bool = False
    ended: KeptEnd | None = None


def log_of(handle: Handle) -> str:
    """Where the job's output lies. Raises ArtifactError: the handle does not say."""
    found = (handle.model_extra or {}).get("log")
    if not isinstance(found, str):
        raise ArtifactError("`log` is not in the `handle.json` of this attempt", hint="look into its folder `logs`")
    return found


def job_of(handle: Handle) -> str | None:
    """What the cluster calls the job; of one that was sent although nobody heard the answer, what it was to be called.

    For clusters that take the names of their jobs from us.
    """
    extra = handle.model_extra or {}
    found = extra.get("job_id") or extra.get("job_name")
    return str(found) if found else None


def from_file(path: str, offset: int) -> bytes:
    """What a log that can be read here holds from byte ``offset`` on; nothing before it is there.

    Raises:
        ExecutorError: it cannot be read, or is no regular file.
    """
    try:
        with open_regular(path) as log:
            log.seek(offset)
            return log.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ExecutorError(f"cannot read `{path}`: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class JobState:
    """What an executor says about a job."""

    state: StateName
    reason: str = ""
    """In the executor's own words, e.g. Slurm's ``QOSMaxJobsPerUserLimit``."""
    exit_code: int | None = None
    """Of the job's process, where it ended by itself."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it. What cannot be asked now is not over."""
        return self.state not in WAITING and self.state != "unknown"


@dataclass(frozen=True, slots=True)
class Shown:
    """A part of a submission as a person reads it."""

    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Everything that would be sent. Holds no secrets: :attr:`environment` names where values come from."""

    executor: str
    profile: str
    run_dir: str
    """The run folder by the name that the job knows."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files of the attempt's folder: name -> text."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """The call: ``argv`` of a command, or ``method``, ``path`` and ``body`` of a request."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variable of the job -> its value, or ``<NAME of this environment>`` for a value that is only known here."""
    shared: tuple[str, ...] | None = None
    """What the scheduler is told of the job besides its name and its log. Jobs that share it, and their environment,
    can be sent by one call; None for one that goes alone."""

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "executor": self.executor,
            "profile": self.profile,
            "run_dir": self.run_dir,
            "files": dict(self.files),
            "request": dict(self.request),
            "environment": dict(self.environment),
        }

    def shown(self) -> list[Shown]:
        """For people, in the order of reading."""
        import json
        import shlex

        parts = [Shown(name, text.rstrip()) for name, text in self.files.items()]
        variables = "\n".join(f"{name}={value}" for name, value in sorted(self.environment.items()))
        parts.append(Shown("environment of the job", variables or "(nothing)"))
        if "argv" in self.request:
            parts.append(Shown("command", shlex.join(self.request["argv"])))
        else:
            parts.append(Shown("request", json.dumps(dict(self.request), indent=2, ensure_ascii=False)))
        return parts


@dataclass(frozen=True, slots=True)
class Target:
    """Where a run lies: here, and by the name that its job knows."""

    here: Path
    """The run folder, or the mirror of it."""
    there: str
    """The same folder for the job."""
    mirrored: bool = False
    """Whether ``here`` is only a copy of the small files."""


@dataclass(frozen=True, slots=True)
class How:
    """How a job was asked for."""

    attached: bool = False
    """`-r` instead of `-b`."""
    force_squash: bool = False
    """Import the container image anew."""
    accept_changed: bool = False
    """Go on although an input is not what it was."""
    after: tuple[str, ...] = ()
    """Jobs of the same scheduler that have to end well first."""

    def worker(self, python: str, run_dir: str, number: int) -> list[str]:
        """The command line that every executor ends in."""
        words = [python, "-m", "nemotron.engines.worker", run_dir, "--attempt", str(number)]
        return [*words, "--accept-changed-inputs"] if self.accept_changed else words


class Gathering(Protocol):
    """An executor that sends many jobs by one call."""

    def together(self, submissions: Sequence[Submission]) -> Submission:
        """What would be sent for jobs that share what the scheduler is told. Pure."""

    def submit_together(
        self,
        runs: Sequence[RunFolder],
        submissions: Sequence[Submission],
        values: Mapping[str, str],
        handles: Sequence[Handle],
    ) -> list[Handle]:
        """Send them; the handles with what each job is called there.

        Raises:
            ExecutorError: they are refused, or the cluster cannot be reached.
        """


class Executor(Protocol):
    """One kind of executor."""

    name: str
    ships_assets: bool
    """Whether files that are shipped with the product go along with the code."""

    def target(self, profile: Profile, runs_dir: Path, run_id: str) -> Target:
        """Where the run will lie. Pure."""

    def plan(self, profile: Profile, job: CompiledJob, target: Target, number: int, how: How) -> Submission:
        """What would be sent for attempt ``number``. Pure."""

    def code_dir(self, profile: Profile, target: Target) -> str | None:
        """The folder there that holds the shipped code; None where it is installed, or travels otherwise. Pure."""

    def details(self, profile: Profile, target: Target, number: int, job: CompiledJob) -> dict[str, object]:
        """What the handle of the attempt keeps besides, so that the job can be asked about without the profile."""

    def submit(self, run: RunFolder, submission: Submission, values: Mapping[str, str], handle: Handle) -> Handle:
        """Send it; twice the same sends once. Returns the handle with what the job is called there.

        Args:
            values: the environment of the job, with its secrets.
            handle: what is known of the attempt; it is on disk already.

        Raises:
            ExecutorError: it is refused, or the cluster cannot be reached.
        """

    def state(self, handle: Handle) -> JobState:
        """What becomes of a job. Never raises: what cannot be asked is ``unknown``."""

    def read_log(self, handle: Handle, offset: int) -> bytes:
        """The job's output from byte ``offset`` on, as far as there is any.

        Raises:
            ExecutorError: the cluster cannot be reached.
        """

    def explain(self, handle: Handle, state: JobState) -> JobState:
        """The state of a job that ended, well or not, without a word of its own process; its output may tell it."""

    def cancel(self, handle: Handle) -> None:
        """End the job; nothing happens to one that has ended.

        Raises:
            ExecutorError: it cannot be ended, or the cluster cannot be reached.
        """

    def fetch(self, run: RunFolder, handle: Handle) -> None:
        """Bring the small files of the run here, where it is mirrored.

        Raises:
            ExecutorError: the cluster cannot be reached.
        """

    def costs(self, handle: Handle) -> str | None:
        """What was made for this job alone and goes on costing money when the job is over, in words; else None."""

    def release(self, handle: Handle, state: JobState) -> Handle:
        """Give that back; the handle with how the job ended, which nobody can be asked about any more.

        Raises:
            ExecutorError: it cannot be given back, or the cluster cannot be reached.
        """

    def check(self, profile: Profile) -> list[tuple[str, str]]:
        """What can be verified from here without submitting: (what, answer).

        Raises:
            ExecutorError: something is wrong.
        """
