"""What runs a compiled job, wherever that is: ``python -m nemotron.engines.worker RUN_DIR``.

Every executor ends in this line. The worker needs the run folder and the environment variables that ``job.json`` names
for secrets; it holds the run, begins an attempt, lets the engine work, and leaves a truthful status behind whatever
happens.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nemotron.artifacts.inputs import Hashing, changed_inputs, refuse_changed
from nemotron.compile.secrets import redact
from nemotron.engines.base import ENGINES, Attempt
from nemotron.engines.settle import settled
from nemotron.errors import LimitError, NemotronError, NotAvailableError
from nemotron.job import Changed, CompiledJob
from nemotron.manifest import declaration, find_step
from nemotron.out_of_memory import out_of_memory
from nemotron.outcome import exit_code_of, interrupts_first
from nemotron.own_code import raised_by_own_code
from nemotron.processes import garbage, notice
from nemotron.processes.termination import held_back, terminated_like_interrupted
from nemotron.runs.attempts import Handle, begin_attempt, given_attempt
from nemotron.runs.folder import RunFolder
from nemotron.runs.status import ENDED
from nemotron.snapshot import VARIABLE as CODE_VARIABLE
from nemotron.snapshot import check_this_is


def work(
    run: RunFolder,
    secrets: Mapping[str, str],
    prepare: Callable[[tuple[Changed, ...]], bool] | None = None,
    *,
    accept_changed: bool = False,
    attempt: int | None = None,
) -> int:
    """Work on ``run`` from where it stands to its end, in this process; returns the exit code.

    ``prepare`` is called first, when the run is held, with the inputs that have changed since the run read them; they
    are an error unless ``accept_changed``. When it raises, the run stays as it was; when it says no, nothing is left to
    do. ``attempt`` is the one that an executor has prepared; without it a new one begins.

    Raises:
        OutputError: another live process holds the run.
        ArtifactError: an input has changed.
        NemotronError: of every kind; the status of the run says it, too.
    """
    with run.lock(), terminated_like_interrupted(), notice.listening():
        if run.job().awaits:
            _settle(run)
        changed = changed_inputs(run.job())
        if changed and not accept_changed:
            raise refuse_changed(run.id, changed)
        if prepare is not None and not prepare(changed):
            return 0
        job = run.job()
        try:
            with interrupts_first():
                entry = _entry(job)
                folder = (
                    begin_attempt(run.path, Handle.of_this_process())
                    if attempt is None
                    else given_attempt(run.path, attempt)
                )
                notice.look_in(folder.path)
                with ExitStack() as closing, Hashing(run, job) as hashing:
                    ENGINES[job.engine].run(entry, Attempt(run, job, folder, secrets, hashing, closing))
                _ended(run, job)
        except KeyboardInterrupt:
            # Whoever asks for the end once more must not keep it from being written down.
            with held_back():
                run.write_status(state="interrupted", exit_code=130)
                print(f"interrupted; go on with `nemotron runs resume {run.id}`", file=sys.stderr)
            raise
        except NemotronError as error:
            state: Any = "stopped" if isinstance(error, LimitError) else "failed"
            run.write_status(state=state, error=error.message, exit_code=error.exit_code)
            raise
        except BaseException as error:
            # Supervision: whatever it was, the status must not go on saying "running".
            if (known := out_of_memory(error, job.config)) is not None:
                run.write_status(state="failed", error=known.message, exit_code=known.exit_code)
                raise known from error
            own = raised_by_own_code(error)
            # A text that is not ours may hold anything, and the status stays.
            said = redact(own.message, secrets) if own is not None else f"internal error: {type(error).__name__}"
            run.write_status(state="failed", error=said, exit_code=1)
            raise
    return 0


def _ended(run: RunFolder, job: CompiledJob) -> None:
    """A step that returned has ended, also where it forgot to say so: otherwise its run would count as killed."""
    if run.status().state not in ENDED:
        run.write_status(state="finished", exit_code=0)
        print(
            f"warning: `{job.step}` ended without a last `write_status`, so its run counts as finished\n"
            'hint: end its function with `attempt.run.write_status(state="finished", exit_code=0)`',
            file=sys.stderr,
        )


def _settle(run: RunFolder) -> None:
    """Find what the job waited for; the status says where that is not there. Raises ArtifactError."""
    try:
        run.write_job(settled(run.job(), run.path.parent))
    except NemotronError as error:
        run.write_status(state="failed", error=error.message, exit_code=error.exit_code)
        raise


def secrets_of(job: CompiledJob) -> dict[str, str]:
    """Secrets of a job from the variables that it names: config key -> value. ``job.json`` itself holds none."""
    return {key: os.environ[name] for key, name in job.secret_variables.items() if os.environ.get(name)}


def _entry(job: CompiledJob) -> str:
    """What the step declares for the engine of the job."""
    entry = declaration(find_step(job.step)).engines.get(job.engine)
    if entry is None or job.engine not in ENGINES:
        raise NotAvailableError(
            f"this version of nemotron cannot run `{job.step}` on the engine `{job.engine}`",
            hint="compile it again with `engine=embedded`, or go on with the version that compiled it",
        )
    return entry


def _say_why(folder: Path, error: NemotronError) -> None:
    """An executor's attempt that was refused before it began has nobody else who says so: it would count as killed."""
    try:
        run = RunFolder.open(folder)
        # Of a run that another process holds, that one says how it is.
        with run.lock():
            if run.status().error != error.message:
                run.write_status(state="failed", error=error.message, exit_code=error.exit_code)
    except NemotronError as other:
        print(f"warning: the status of the run does not say what follows: {other.message}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of the worker; messages and exit codes are those of ``nemotron``."""
    parser = argparse.ArgumentParser(prog="python -m nemotron.engines.worker", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="the run folder")
    parser.add_argument("--attempt", metavar="N", type=int, help="the attempt that the executor has prepared")
    parser.add_argument("--accept-changed-inputs", action="store_true", help="go on although inputs have changed")
    options = parser.parse_args(argv)
    garbage.starting()

    def start() -> int:
        try:
            check_this_is(os.environ.get(CODE_VARIABLE))
            run = RunFolder.open(options.run_dir)
            accept = options.accept_changed_inputs
            return work(run, secrets_of(run.job()), attempt=options.attempt, accept_changed=accept)
        except NemotronError as error:
            if options.attempt is not None:
                _say_why(options.run_dir, error)
            raise

    try:
        return exit_code_of(start, ("worker", str(options.run_dir)))
    finally:
        if argv is None:
            garbage.ending()


if __name__ == "__main__":
    sys.exit(main())
