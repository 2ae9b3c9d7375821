"""A node as a job of Slurm: all are submitted at once, and the scheduler lets each wait for those that it needs.

What a node takes from one that has not run stands in its job as a promise, and its worker finds it when it starts
and is compiled against it (:mod:`nemotron.engines.settle`): nothing of ours has to stay awake between two nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from nemotron.compile.plan import Plan
from nemotron.errors import CompileError, ExecutorError
from nemotron.executors import goes_on, handle_of
from nemotron.executors.base import How
from nemotron.executors.elsewhere import launch_of
from nemotron.executors.launch import Launch, resume
from nemotron.job import Asked, Awaited
from nemotron.pipelines.chain import Binding
from nemotron.profiles.load import Profile
from nemotron.runs.folder import RunFolder


def prepared(
    plan: Plan,
    profile: Profile,
    asked: Callable[[Plan], Asked],
    awaits: Sequence[Binding],
    runs: Mapping[str, RunFolder],
    after: Sequence[str],
) -> Launch:
    """Everything that would be sent; nothing is written.

    Args:
        awaits: what the node takes from ``runs``, which have not ended.
        after: the jobs that it waits for.

    Raises:
        CompileError: the plan or the profile does not hold.
    """
    plan, launch = launch_of(plan, asked, profile, How(after=tuple(after)), rehearsal=False)
    if launch is None:
        raise CompileError(plan.findings)
    waiting = tuple(
        Awaited(key=one.key, type=one.type, path=one.promised, run=_there(runs[one.node])) for one in awaits
    )
    return replace(launch, job=launch.job.model_copy(update={"awaits": waiting}))


def go_on(run: RunFolder, after: Sequence[str], command: Sequence[str]) -> None:
    """Another attempt at a run that was cut off; one that waits, works or is finished is left alone.

    Raises:
        NemotronError: of every kind; the run says what became of it.
    """
    if run.status().state != "finished" and not goes_on(run):
        resume(run, max_steps=None, command=command, after=after)


def job_of(run: RunFolder) -> str | None:
    """The scheduler's name for the newest attempt at a run; None where that has ended well.

    Raises:
        ExecutorError: it was never submitted.
    """
    if run.status().state == "finished":
        return None
    handle = handle_of(run)
    job = (handle.model_extra or {}).get("job_id") if handle is not None else None
    if not job:
        raise ExecutorError(f"run `{run.id}` was not submitted, so nothing can wait for it")
    return str(job)


def _there(run: RunFolder) -> str:
    """A run by the name that its job knows."""
    handle = handle_of(run)
    return str((handle.model_extra or {}).get("run_dir", run.path)) if handle is not None else str(run.path)
