"""Runs elsewhere: from a compiled plan and a profile to a job that an executor has, and on from where a run stands."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron import snapshot
from nemotron.disk.atomic import write_atomic
from nemotron.disk.documents import read_object
from nemotron.disk.faults import output_errors
from nemotron.errors import ArtifactError, ExecutorError, NemotronError, Origin, UnreachableError, UsageError
from nemotron.executors.base import Executor, How, Submission, Target
from nemotron.executors.ending import give_back
from nemotron.executors.environment import job_environment
from nemotron.executors.registry import executor, executor_of, gathering
from nemotron.job import CompiledJob
from nemotron.profiles.load import Profile, from_snapshot
from nemotron.runs.attempts import AttemptFolder, Handle, attempts_of, begin_attempt
from nemotron.runs.folder import RunFolder

if TYPE_CHECKING:
    from nemotron.compile.plan import Plan
    from nemotron.job import Asked

PROFILE = "profile.json"
"""The profile as it was when the run was made; values from the environment are not in it."""


def kind_of(profile: Profile) -> str:
    """The name of the executor of a profile."""
    return "detached" if profile.settings.kind == "local" else profile.settings.kind


@dataclass(frozen=True)
class Launch:
    """A compiled job on its way to an executor; nothing is written before :meth:`submit`."""

    profile: Profile
    job: CompiledJob
    target: Target
    submission: Submission
    secrets: Mapping[str, str]

    def submit(self, runs_dir: Path) -> RunFolder:
        """Make the run folder and hand the job over; the run's id is known to Slurm and the like before this returns.

        Raises:
            ExecutorError: the cluster refuses it or cannot be reached; the run says so.
            OutputError: the run folder cannot be written.
        """
        run = self.make_run(runs_dir)
        _hand_over(run, self.profile, self.job, self.target, self.submission, self.secrets)
        return run

    def make_run(self, runs_dir: Path) -> RunFolder:
        """The run folder, found among the runs. Raises OutputError: it cannot be written."""
        run = RunFolder.create(self.target.here.parent, self.job)
        with run.lock():
            if self.target.here.parent.resolve() != runs_dir.resolve():
                _link(runs_dir, run)
            content = {"name": self.profile.name, "values": self.profile.snapshot}
            write_atomic(run.path / PROFILE, json.dumps(content, indent=2).encode() + b"\n")
        return run

    def values(self) -> dict[str, str]:
        """The environment of the job, with its secrets."""
        code_dir = executor(self.submission.executor).code_dir(self.profile, self.target)
        return job_environment(self.profile, self.job, code_dir, self.secrets, os.environ)


def prepare(plan: Plan, asked: Asked, profile: Profile, *, runs_dir: Path, how: How) -> Launch:
    """Everything that would be sent; nothing is written.

    Raises:
        ArtifactError: an input is no artifact.
    """
    by = executor(kind_of(profile))
    target = by.target(profile, runs_dir, plan.run_id)
    job = plan.job(asked, run_dir=target.there)
    if by.ships_assets and (code_dir := by.code_dir(profile, target)) is not None:
        # Files that are shipped with the product lie beside the code that goes along.
        job = job.relocated(snapshot.ASSETS, Path(code_dir) / "nemotron" / "assets")
    return Launch(profile, job, target, by.plan(profile, job, target, 1, how), plan.secrets())


def batches(launches: Sequence[Launch]) -> list[list[Launch]]:
    """Those that one call can submit, together; in the order of the first of each. Pure."""
    found: dict[object, list[Launch]] = {}
    for number, launch in enumerate(launches):
        shared = launch.submission.shared
        # Values that are only known here may differ where what is shown of them does not.
        alike = (shared, tuple(sorted(launch.values().items())))
        found.setdefault(number if shared is None else alike, []).append(launch)
    return list(found.values())


def shown_together(launches: Sequence[Launch]) -> list[Submission]:
    """What would be sent for each batch of several. Pure."""
    several = [[one.submission for one in batch] for batch in batches(launches) if len(batch) > 1]
    return [gathering(batch[0].executor).together(batch) for batch in several]


def submit_together(launches: Sequence[Launch], runs_dir: Path) -> list[RunFolder]:
    """Make the run folders of a batch and hand the jobs over by one call.

    Raises:
        ExecutorError: the cluster refuses them or cannot be reached; every run says so.
        OutputError: a run folder cannot be written.
    """
    by = gathering(launches[0].submission.executor)
    runs = [launch.make_run(runs_dir) for launch in launches]
    try:
        attempts = [
            _begin(run, launch.profile, launch.job, launch.target, launch.submission)
            for run, launch in zip(runs, launches, strict=True)
        ]
        handles = [attempt.handle() for attempt in attempts]
        submissions = [launch.submission for launch in launches]
        sent = by.submit_together(runs, submissions, launches[0].values(), handles)
    except NemotronError as error:
        _not_sent(runs, error)
        raise
    for attempt, handle in zip(attempts, sent, strict=True):
        attempt.write_handle(handle)
    return runs


def resume(
    run: RunFolder,
    *,
    max_steps: int | None,
    command: Sequence[str],
    accept_changed: bool = False,
    after: Sequence[str] = (),
) -> RunFolder | None:
    """Another attempt at a run that is not worked on, by the executor of its last one; None where it is finished.

    Raises:
        UsageError: it goes on already. ExecutorError, OutputError, ArtifactError: as for a new one.
    """
    from nemotron.engines.extension import extend
    from nemotron.engines.worker import secrets_of
    from nemotron.executors import goes_on, handle_of
    from nemotron.runs.status import ENDED

    handle = handle_of(run)
    if handle is None:
        raise ArtifactError("the run has no attempt to go on from", origin=Origin(str(run.path)))
    by = executor_of(handle)
    by.fetch(run, handle)
    if goes_on(run):
        raise UsageError(f"run `{run.id}` goes on already", hint=f"`nemotron runs logs -f {run.id}` shows its output")
    if by.costs(handle) is not None:
        if not (state := by.state(handle)).is_over:
            raise ExecutorError(
                f"it cannot be told whether the job of run `{run.id}` goes on: {state.reason}",
                hint=f"try again later, or end it with `nemotron runs cancel {run.id}`",
            )
        give_back(run, by, handle, state)
    if max_steps is None and run.status().state == "finished":
        return None
    details = handle.model_extra or {}
    target = Target(run.path, str(details["run_dir"]), bool(details.get("mirrored")))
    profile = _kept_profile(run)
    number = attempts_of(run.path)[-1].number + 1
    how = How(accept_changed=accept_changed, after=tuple(after))
    # What the executor refuses, it refuses before anything is written.
    by.plan(profile, run.job(), target, number, how)
    with run.lock():
        if max_steps is None:
            run.write_job(run.note_resumed(command))
        else:
            extend(run, max_steps, command)
        if run.status().state in ENDED:
            run.write_status(state="starting", error=None, exit_code=None)
    job = run.job()
    submission = by.plan(profile, job, target, number, how)
    _hand_over(run, profile, job, target, submission, secrets_of(job))
    return run


def _hand_over(
    run: RunFolder,
    profile: Profile,
    job: CompiledJob,
    target: Target,
    submission: Submission,
    secrets: Mapping[str, str],
) -> None:
    by = executor(submission.executor)
    attempt = _begin(run, profile, job, target, submission)
    handle = attempt.handle()
    code_dir = by.code_dir(profile, target)
    values = job_environment(profile, job, code_dir, secrets, os.environ)
    try:
        attempt.write_handle(by.submit(run, submission, values, handle))
    except NemotronError as error:
        _not_sent([run], error)
        raise


def _not_sent(runs: Sequence[RunFolder], error: NemotronError) -> None:
    """What runs whose jobs nobody took say of themselves, and how they go on where asking again may help."""
    for run in runs:
        run.write_status(state="failed", error=error.message, exit_code=error.exit_code)
    if isinstance(error, UnreachableError):
        others = f", as for each of the {len(runs)}" if len(runs) > 1 else ""
        again = f"`nemotron runs resume {runs[0].id}` sends it again{others}"
        error.hint = f"{error.hint}; then {again}" if error.hint else again


def _begin(run: RunFolder, profile: Profile, job: CompiledJob, target: Target, submission: Submission) -> AttemptFolder:
    """The attempt, with the files that its job reads."""
    by = executor(submission.executor)
    # The number may have been taken meanwhile: two who resume at once are told apart by the lock.
    with run.lock():
        attempt = begin_attempt(run.path, _handle(by, profile, target, run, job))
        with output_errors(attempt.path):
            for name, text in submission.files.items():
                write_atomic(attempt.path / name, text.encode())
    return attempt


def _handle(by: Executor, profile: Profile, target: Target, run: RunFolder, job: CompiledJob) -> Handle:
    before = attempts_of(run.path)
    number = before[-1].number + 1 if before else 1
    facts: dict[str, Any] = {
        "executor": by.name,
        "started_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "host": platform.node(),
        "run_dir": target.there,
        "mirrored": target.mirrored,
        "number": number,
        "profile": profile.name,
    }
    return Handle.model_validate({**facts, **by.details(profile, target, number, job)})


def _link(runs_dir: Path, run: RunFolder) -> None:
    """The run is found where runs are looked for, wherever the cluster wants it to lie."""
    with output_errors(runs_dir):
        runs_dir.mkdir(parents=True, exist_ok=True)
        (runs_dir / run.id).symlink_to(run.path)


def _kept_profile(run: RunFolder) -> Profile:
    path = run.path / PROFILE
    try:
        content = read_object(path)
        name, values = str(content["name"]), dict(content["values"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"cannot read the profile of this run: {error}", origin=Origin(str(path))) from error
    return from_snapshot(name, values, path)
