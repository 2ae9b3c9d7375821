"""What the commands do with runs that are not their own process: start on a profile, follow, resume, cancel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron import snapshot
from nemotron.config.layers import Resolved
from nemotron.config.origins import Node
from nemotron.config.overrides import Override
from nemotron.errors import NemotronError, NotAvailableError, NotFoundError
from nemotron.executors import alive, detached, handle_of, is_elsewhere, state_of
from nemotron.executors.base import How
from nemotron.executors.detached import end_worker
from nemotron.executors.ending import clear, costs_on, end_early
from nemotron.executors.follow import follow
from nemotron.executors.launch import Launch, kind_of, prepare
from nemotron.executors.launch import resume as resume_run
from nemotron.executors.placement import placed
from nemotron.executors.registry import executor, executor_of
from nemotron.manifest import find_step
from nemotron.outcome import print_error
from nemotron.place import Place
from nemotron.profiles.load import Profile
from nemotron.profiles.model import SlurmProfile
from nemotron.runs.folder import RunFolder, newest_of_job
from nemotron.runs.words import relative

if TYPE_CHECKING:
    from nemotron.compile.plan import Plan
    from nemotron.job import Asked


def place_of(profile: Profile) -> Place:
    """What the preflight asks about the place of a profile. Files of the product can be looked at: they go along."""
    place = profile.settings.place(profile.name)
    return place if place.is_here else replace(place, shared=(*place.shared, snapshot.ASSETS))


MUST_SAVE_BY = "checkpointing.checkpoint_must_save_by"
_START_UP_S = 600
"""What is kept of a time limit for loading models, before the time of the config begins to run."""


def with_time_limit(
    profile: Profile,
    resolved: Resolved,
    overrides: Sequence[Override],
    load: Callable[[Sequence[Override]], Resolved],
) -> Resolved:
    """The config, and where it says nothing of it, with the time by which a checkpoint has to be saved."""
    limit = of_time_limit(profile, resolved)
    return resolved if limit is None else load([*overrides, limit])


def of_time_limit(profile: Profile, resolved: Resolved) -> Override | None:
    """The word that a profile's limit adds to a config which says nothing of it: the limit less what starting takes.
    Limits too short for that are left to the signal before the end."""
    limit_s = profile.settings.limit_s if isinstance(profile.settings, SlurmProfile) else None
    section = resolved.get("checkpointing")
    has_section = isinstance(section, dict) and section.get("enabled") is True
    if limit_s is None or limit_s < 3 * _START_UP_S or not has_section or resolved.get(MUST_SAVE_BY) is not None:
        return None
    minutes, seconds = divmod(limit_s - max(_START_UP_S, limit_s // 20), 60)
    text = f"{minutes // 1440:02d}:{minutes // 60 % 24:02d}:{minutes % 60:02d}:{seconds:02d}"
    origin = profile.origin("time")
    return Override("set", tuple(MUST_SAVE_BY.split(".")), Node(text, origin), origin, f"time = {text}")


def fitted(plan: Plan, profile: Profile, *, rehearsal: bool) -> Plan:
    """The plan with what the profile finds.

    Raises:
        NotAvailableError: the step cannot run there in this version.
    """
    if profile.settings.kind != "local" and not find_step(plan.step).is_shipped:
        message = f"`{plan.step}` is a step of your own, whose code does not go along to `{profile.name}`"
        raise NotAvailableError(message, hint="run it on this machine: leave the profile out")
    return placed(plan, profile, ships_assets=executor(kind_of(profile)).ships_assets, rehearsal=rehearsal)


def launch_of(
    plan: Plan,
    asked: Callable[[Plan], Asked],
    profile: Profile,
    how: How,
    *,
    rehearsal: bool,
) -> tuple[Plan, Launch | None]:
    """The plan with what the profile finds, and what would be sent; None where the plan does not hold.

    Raises:
        NotAvailableError: the step cannot run there in this version.
    """
    plan = fitted(plan, profile, rehearsal=rehearsal)
    if not plan.ok:
        return plan, None
    plan.require_entry()
    return plan, prepare(plan, asked(plan), profile, runs_dir=plan.runs_dir, how=how)


def start(
    launch: Launch, plan: Plan, runs_dir: Path, *, attached: bool, resume: bool, accept_changed: bool = False
) -> int:
    """Submit, or go on with the newest run of this config; then follow the job (attached), or print the run's id.

    Raises:
        NemotronError: of every kind; the run says what became of it.
    """
    run = newest_of_job(runs_dir, plan.step, plan.fingerprint) if resume else None
    if run is not None:
        words = launch.job.asked.command
        if resume_run(run, max_steps=None, command=words, accept_changed=accept_changed) is None:
            print(f"run {run.id} is finished already; without `--resume` a new one starts", file=sys.stderr)
            return 0
    else:
        if resume:
            print("nothing to resume, starting a new run", file=sys.stderr)
        run = launch.submit(runs_dir)
    return submitted(run, attached=attached)


def say_submitted(run: RunFolder) -> None:
    """Where the newest attempt went."""
    details = (handle.model_extra or {}) if (handle := handle_of(run)) else {}
    job = f", job {details['job_id']}" if details.get("job_id") else ""
    print(f"{run.id}: submitted to `{details.get('profile')}`{job}", file=sys.stderr, flush=True)
    if handle is not None and is_elsewhere(run) and (costs := costs_on(run, executor_of(handle), handle)):
        print(f"{run.id}: {costs}", file=sys.stderr, flush=True)


def submitted(run: RunFolder, *, attached: bool) -> int:
    """Say what was submitted, and stay or return."""
    say_submitted(run)
    if attached:
        return follow(run, may_cancel=True)
    print(f"follow it with `nemotron runs logs -f {run.id}`", file=sys.stderr)
    print(run.id)
    return 0


def resumed(
    run: RunFolder, *, max_steps: int | None, command: Sequence[str], attached: bool, accept_changed: bool
) -> int:
    """`runs resume` of a run that a cluster has; returns the exit code.

    Raises:
        NemotronError: of every kind; the run stays as it was when it cannot go on.
    """
    again = resume_run(run, max_steps=max_steps, command=command, accept_changed=accept_changed)
    if again is None:
        print(f"run {run.id} is finished already; `--max-steps N` extends it", file=sys.stderr)
        return 0
    return submitted(again, attached=attached)


def print_logs(run: RunFolder, *, follow_on: bool) -> int:
    """Print the output of the newest attempt; with ``follow_on`` until it ends, and return its exit code.

    Raises:
        NotFoundError: a run in the foreground of a terminal, whose output is there and nowhere else.
        ExecutorError: the cluster cannot be reached.
    """
    handle = handle_of(run)
    if handle is None or not is_elsewhere(run):
        raise NotFoundError(
            f"run `{run.id}` printed to the terminal that started it, and to no file",
            hint=f"logs of its helper processes lie in `{relative(str(run.path / 'attempts'))}`",
        )
    if follow_on:
        return follow(run, may_cancel=False)
    sys.stdout.buffer.write(executor_of(handle).read_log(handle, 0))
    sys.stdout.flush()
    return 0


def cancel(run: RunFolder) -> None:
    """End the job of a run.

    Raises:
        NotFoundError: nobody works on it.
        ExecutorError: it cannot be ended.
    """
    handle, answer = handle_of(run), alive(run)
    # A cluster that cannot be asked says so when it is told to end the job, which may go on.
    here = not is_elsewhere(run) or handle is None or handle.executor == detached.NAME
    costs = handle is not None and not here and executor_of(handle).costs(handle) is not None
    if handle is None or (answer == "no" and not costs) or (answer == "unknown" and here):
        raise NotFoundError(f"run `{run.id}` is {state_of(run)}: there is nothing to cancel")
    if is_elsewhere(run):
        end_early(run, executor_of(handle), handle, goes_on=answer != "no")
    else:
        end_worker(run.path)
    print(f"{run.id}: cancelled; `nemotron runs resume {run.id}` goes on with it", file=sys.stderr)


def refresh(run: RunFolder) -> None:
    """Bring the mirror of a run up to date; where its cluster cannot be reached, that is said and the old one stays."""
    handle = handle_of(run)
    if handle is None or not is_elsewhere(run):
        return
    try:
        by = executor_of(handle)
        by.fetch(run, handle)
        clear(run, by, handle)
    except NemotronError as error:
        print_error(error, label="warning")
