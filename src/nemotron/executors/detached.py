"""Runs on this machine that outlive the terminal: the worker in a session of its own, its output in a file."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from nemotron import __version__
from nemotron.disk import lock
from nemotron.errors import ArtifactError, ConfigError, ExecutorError, NotFoundError
from nemotron.executors.base import How, JobState, Submission, Target, from_file, log_of
from nemotron.executors.environment import shown_environment
from nemotron.executors.shells import last_line
from nemotron.job import CompiledJob
from nemotron.profiles.load import Profile
from nemotron.runs.attempts import Handle
from nemotron.runs.folder import LOCK, RunFolder
from nemotron.runs.status import ENDED

NAME = "detached"
LOG = "worker.log"
START_TIMEOUT_S = 60.0
"""For the worker to take hold of the run."""
_POLL_S = 0.05
_SHOWN = 300
"""Letters of what another Python printed."""


class Detached:
    """A background process."""

    name = NAME
    ships_assets = False

    def target(self, profile: Profile, runs_dir: Path, run_id: str) -> Target:
        """The usual place."""
        here = runs_dir.resolve() / run_id
        return Target(here, str(here))

    def plan(self, profile: Profile, job: CompiledJob, target: Target, number: int, how: How) -> Submission:
        """The worker's command line."""
        python = _python(profile)
        argv = how.worker(python, target.there, number)
        return Submission(
            executor=NAME,
            profile=profile.name,
            run_dir=target.there,
            request={"argv": argv},
            environment=shown_environment(profile, job, None),
        )

    def code_dir(self, profile: Profile, target: Target) -> str | None:
        """This command's own code."""
        return None

    def details(self, profile: Profile, target: Target, number: int, job: CompiledJob) -> dict[str, object]:
        """The log."""
        return {"log": f"{target.there}/attempts/{number}/logs/{LOG}"}

    def submit(self, run: RunFolder, submission: Submission, values: Mapping[str, str], handle: Handle) -> Handle:
        """Start the worker and wait until it holds the run, so that nobody takes it for dead before it began."""
        details = handle.model_extra or {}
        with open(details["log"], "ab") as log:
            process = subprocess.Popen(
                submission.request["argv"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **values},
                start_new_session=True,
            )
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end and process.poll() is None and lock.is_held(run.path / LOCK) is False:
            time.sleep(_POLL_S)
        if (process.poll() or 0) > 0 and run.status().state not in ENDED:
            # It ended by itself, without a word in the run, which would count as killed.
            said = from_file(details["log"], 0).decode(errors="replace")
            own = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
            message = f"the worker ended before it began, with exit code {process.returncode}"
            why = own[-1] if own else last_line(said)[:_SHOWN]
            hint = f"`nemotron runs logs {run.id}` shows all that it printed"
            raise ExecutorError(f"{message}: {why}" if why else message, hint=hint)
        return handle.model_copy(update={"pid": process.pid})

    def state(self, handle: Handle) -> JobState:
        """The kernel's lock on the run says whether somebody works on it, its status how it ended."""
        return _state(Path((handle.model_extra or {})["run_dir"]))

    def read_log(self, handle: Handle, offset: int) -> bytes:
        """From the file."""
        return from_file(log_of(handle), offset)

    def explain(self, handle: Handle, state: JobState) -> JobState:
        """The kernel tells nothing more."""
        return state

    def cancel(self, handle: Handle) -> None:
        """SIGTERM to the worker, which leaves a truthful status behind."""
        end_worker(Path((handle.model_extra or {})["run_dir"]))

    def fetch(self, run: RunFolder, handle: Handle) -> None:
        """Everything is here."""

    def costs(self, handle: Handle) -> str | None:
        """A process costs nothing when it has ended."""
        return None

    def release(self, handle: Handle, state: JobState) -> Handle:
        """Nothing was made for it alone."""
        return handle

    def check(self, profile: Profile) -> list[tuple[str, str]]:
        """The interpreter."""
        return [("python", _python(profile))]


def _python(profile: Profile) -> str:
    """The interpreter. Raises ConfigError: the profile names one that is not there, or cannot be the worker."""
    named = profile.settings.python
    if named is None:
        return sys.executable
    if shutil.which(named) is None:
        why: str | None = f"there is no program `{named}` on this machine"
    else:
        why = _why_no_worker(named, tuple(sorted(profile.settings.env_vars.items())))
    if why is not None:
        hint = "name a Python that has this nemotron, or leave `python` out for the one of this command"
        raise ConfigError(f"profile `{profile.name}`: {why}", hint=hint, origin=profile.origin("python"))
    return named


@lru_cache(maxsize=8)
def _why_no_worker(python: str, env_vars: tuple[tuple[str, str], ...]) -> str | None:
    """Why that interpreter cannot be the worker: it would end before it could say so in the run. None where it can."""
    words = [python, "-c", "import nemotron.engines.worker as _, nemotron; print(nemotron.__version__)"]
    environment = {**os.environ, **dict(env_vars)}
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=START_TIMEOUT_S,
        )
    except OSError as error:
        return f"`{python}` cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"`{python}` did not import nemotron within {START_TIMEOUT_S:.0f} s"
    if done.returncode:
        return f"`{python}` cannot import nemotron: {last_line(done.stderr)[:_SHOWN] or f'exit code {done.returncode}'}"
    if (version := done.stdout.strip()) != __version__:
        return f"`{python}` has nemotron {version[:40]}, and this command is {__version__}"
    return None


def end_worker(run: Path) -> None:
    """SIGTERM to the process of this machine that holds a run; nothing happens to a run that nobody holds.

    The lock says who that is: a handle may be older than the worker, and its number have another process by now.

    Raises:
        NotFoundError: it is held from elsewhere. ExecutorError: by somebody else.
    """
    if lock.is_held(run / LOCK) is False:
        return
    found = lock.holder_of(run / LOCK)
    if found is None or found[1] != platform.node():
        where = f"on `{found[1]}`" if found else "elsewhere"
        raise NotFoundError(f"run `{run.name}` is worked on {where}", hint="cancel it there")
    try:
        os.kill(found[0], signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise ExecutorError(f"process {found[0]} is somebody else's") from error


def _state(path: Path) -> JobState:
    held = lock.is_held(path / LOCK)
    if held is None:
        return JobState("unknown", "the file system has no locks")
    if held:
        return JobState("running")
    try:
        status = RunFolder.open(path).status()
    except ArtifactError as error:
        return JobState("lost", error.message)
    if status.state == "finished":
        return JobState("finished", exit_code=0)
    if status.state in ENDED:
        return JobState("failed", status.error or "", status.exit_code)
    return JobState("failed", "the worker was killed", 137)
