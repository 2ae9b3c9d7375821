"""The runs of a sweep: here one after the other, or as a job each of a profile's cluster.

Every run is a whole one, with a folder of its own; that they belong together stands in each ``job.json``. So a sweep
that was cut off needs nothing else to go on: runs of its name that are finished are left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nemotron.compile.sweep import Member
from nemotron.disk import lock
from nemotron.disk.faults import output_errors
from nemotron.errors import ArtifactError, ExecutorError, NemotronError, OutputError
from nemotron.executors import apart, goes_on
from nemotron.executors.launch import Launch
from nemotron.job import Asked, CompiledJob
from nemotron.outcome import interrupts_first, print_error
from nemotron.processes.termination import terminated_like_interrupted
from nemotron.runs.folder import RunFolder, list_runs, new_run_id


@dataclass(frozen=True, slots=True)
class SweepRun:
    """A run on its way."""

    member: Member
    asked: Asked
    launch: Launch | None
    """What would be sent; None on this machine."""

    def __str__(self) -> str:
        part = self.asked.sweep
        assert part is not None
        return f"run {part.number} of {part.count} ({self.member.combination})"


def name_of(runs_dir: Path, members: Sequence[Member], *, resume: bool) -> str:
    """A new name; with ``resume`` that of the newest sweep which has one of these runs."""
    step, config = members[0].plan.step, members[0].plan.config_name
    if resume:
        known = {member.plan.fingerprint for member in members}
        for job in map(_job_of, reversed(list_runs(runs_dir))):
            if job is not None and job.asked.sweep and job.step == step and job.fingerprint in known:
                return job.asked.sweep.id
        print("nothing to resume, starting a new sweep", file=sys.stderr)
    return new_run_id(step, f"{config}-sweep")


def run_here(runs: Sequence[SweepRun], sweep: str, runs_dir: Path, *, resume: bool, accept_changed: bool) -> int:
    """One after the other, each in a process of its own: memory, threads and crashes of one are none of the next's.

    Returns 0, or the exit code of the first that failed; the others run all the same.

    Raises:
        NotAvailableError: the step has no entry for the engine of the plans.
        OutputError: another command works on this sweep.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run that was at work has saved its state.
    """
    for one in runs:
        one.member.plan.require_entry()
    with output_errors(runs_dir):
        runs_dir.mkdir(parents=True, exist_ok=True)
    ends: list[tuple[SweepRun, int]] = []
    busy = f"{{holder}} works on the sweep `{sweep}`"
    with lock.alone(runs_dir / f".{sweep}.lock", busy=busy, hint="wait until it ends, or stop that process"):
        with terminated_like_interrupted():
            for one in runs:
                earlier = _earlier(runs_dir, sweep, one) if resume else None
                code = _left_alone(one, earlier) if earlier else None
                if code is None:
                    print(f"{one}", file=sys.stderr, flush=True)
                    try:
                        code = _to_its_end(one, earlier, runs_dir, accept_changed=accept_changed)
                    except KeyboardInterrupt:
                        print("the sweep goes on with the same command and `--resume`", file=sys.stderr)
                        raise
                ends.append((one, code))
        (runs_dir / f".{sweep}.lock").unlink(missing_ok=True)
    return _told(ends, sweep)


def submit_all(
    runs: Sequence[SweepRun], sweep: str, runs_dir: Path, *, attached: bool, resume: bool, accept_changed: bool
) -> int:
    """A job for each run, or arrays of them; what is refused does not stop the others. Prints the runs' ids, or follows
    job after job.

    Returns 0, or the exit code of the first that was refused or, attached, failed.
    """
    from nemotron.executors.elsewhere import say_submitted
    from nemotron.executors.follow import follow

    ends: list[tuple[SweepRun, int]] = []
    sent: list[tuple[SweepRun, RunFolder]] = []
    new: list[SweepRun] = []
    going_on: list[tuple[SweepRun, RunFolder]] = []
    for one in runs:
        earlier = _earlier(runs_dir, sweep, one) if resume else None
        if earlier is None:
            new.append(one)
        elif (code := _left_alone(one, earlier, busy=0)) is not None:
            ends.append((one, code))
        else:
            going_on.append((one, earlier))
    waiting = [*(([one], earlier) for one, earlier in going_on), *((batch, None) for batch in _batches(new))]
    for batch, earlier in sorted(waiting, key=lambda some: some[0][0].member.number):
        try:
            with interrupts_first():
                made = _submitted(batch, earlier, runs_dir, accept_changed=accept_changed)
        except NemotronError as error:
            print(f"{batch[0]}" + (f" and {len(batch) - 1} more:" if len(batch) > 1 else ":"), file=sys.stderr)
            print_error(error)
            ends += [(one, error.exit_code) for one in batch]
            continue
        for one, run in zip(batch, made, strict=True):
            say_submitted(run)
            if not attached:
                print(run.id, flush=True)
            sent.append((one, run))
    for one, run in sorted(sent, key=lambda some: some[0].member.number):
        code = 0
        if attached:
            print(f"{one}: {run.id}", file=sys.stderr, flush=True)
            code = follow(run, may_cancel=True)
            if code and goes_on(run):
                # Whoever leaves one of the jobs to itself leaves them all.
                return code
        ends.append((one, code))
    return _told(sorted(ends, key=lambda end: end[0].member.number), sweep, finished=attached)


def _batches(runs: Sequence[SweepRun]) -> list[list[SweepRun]]:
    """Runs whose jobs one call can submit."""
    from nemotron.executors.launch import batches

    of_launch = {id(one.launch): one for one in runs}
    launches = [one.launch for one in runs if one.launch is not None]
    together = [[of_launch[id(launch)] for launch in batch] for batch in batches(launches)]
    return [*together, *([one] for one in runs if one.launch is None)]


def _submitted(
    batch: Sequence[SweepRun], earlier: RunFolder | None, runs_dir: Path, *, accept_changed: bool
) -> list[RunFolder]:
    from nemotron.executors.launch import resume as resume_run
    from nemotron.executors.launch import submit_together

    if earlier is not None:
        command = batch[0].asked.command
        again = resume_run(earlier, max_steps=None, command=command, accept_changed=accept_changed)
        return [again or earlier]
    launches = [one.launch for one in batch if one.launch is not None]
    if len(launches) < len(batch):
        raise ExecutorError("there is nothing to submit")
    return submit_together(launches, runs_dir) if len(launches) > 1 else [launches[0].submit(runs_dir)]


def _left_alone(one: SweepRun, run: RunFolder, *, busy: int = OutputError.exit_code) -> int | None:
    """The exit code of a run that needs nothing: it is finished, or somebody works on it; None where it goes on."""
    if run.status().state == "finished":
        print(f"{one}: {run.id} is finished", file=sys.stderr)
        return 0
    if goes_on(run):
        print(f"{one}: {run.id} goes on already", file=sys.stderr)
        return busy
    return None


def _earlier(runs_dir: Path, sweep: str, one: SweepRun) -> RunFolder | None:
    """The run of this sweep with that config."""
    for run in reversed(list_runs(runs_dir)):
        job = _job_of(run)
        if job and job.asked.sweep and job.asked.sweep.id == sweep and job.fingerprint == one.member.plan.fingerprint:
            return run
    return None


def _job_of(run: RunFolder) -> CompiledJob | None:
    """None for a run that this version cannot read: it is none of this sweep."""
    try:
        return run.job()
    except ArtifactError:
        return None


def _told(ends: Sequence[tuple[SweepRun, int]], sweep: str, *, finished: bool = True) -> int:
    """Say how the sweep ended; its exit code."""
    failed = [(one, code) for one, code in ends if code]
    done = "finished" if finished else "submitted"
    print(f"{sweep}: {len(ends) - len(failed)} of {len(ends)} runs {done}", file=sys.stderr)
    for one, code in failed:
        print(f"{one}: exit code {code}", file=sys.stderr)
    print(f"compare them with `nemotron runs compare --sweep {sweep}`", file=sys.stderr)
    return failed[0][1] if failed else 0


def _to_its_end(one: SweepRun, earlier: RunFolder | None, runs_dir: Path, *, accept_changed: bool) -> int:
    """Work on a run in a process of its own, and wait; a new run is called after the moment in which it starts."""
    plan, command = one.member.plan, one.asked.command
    if earlier is not None:
        return apart.go_on(earlier, plan.secrets(), command, accept_changed=accept_changed)
    plan = replace(plan, run_id=new_run_id(plan.step, plan.config_name))
    return apart.start(plan.job(one.asked), runs_dir, plan.secrets())
