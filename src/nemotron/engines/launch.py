"""From a compiled plan to a run: the run folder, its lock, the step's own code in this process, and a true status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from nemotron.artifacts.fingerprint import fingerprint, fingerprint_files
from nemotron.artifacts.kinds import recognise
from nemotron.engines.extension import plan_extension
from nemotron.errors import LimitError, NemotronError, NotAvailableError
from nemotron.manifest import find_step, step_code
from nemotron.runs.folder import RunFolder, newest_of_job

if TYPE_CHECKING:
    from nemotron.compile.describe import FileRef
    from nemotron.compile.plan import Plan, StepCode


def launch(plan: Plan, code: StepCode, *, runs_dir: Path, resume: bool, asked: Mapping[str, Any]) -> int:
    """Run a compiled job to its end, attached; returns the exit code.

    ``asked`` is what :func:`nemotron.compile.asked.asked` says of the command.

    With ``resume``, the newest run of the same step and config goes on, or is left alone when it is finished; when
    there is none a new run starts (a run can be killed before it has a folder).

    Raises:
        NotAvailableError: the engine of the plan is not part of this version.
        OutputError: the run folder cannot be written.
    """
    if plan.engine == "nemo_rl":
        raise NotAvailableError(
            f"the engine `{plan.engine}` is not available yet",
            hint="set `engine=embedded`, or wait for a later version",
        )
    run = newest_of_job(runs_dir, plan.step, plan.fingerprint) if resume else None
    if run is not None and run.state() == "finished":
        return _finished_already(run)
    if run is not None:
        found = run
        return _attached(run, code, plan.secrets(), lambda: found.add_attempt({"command": asked["command"]}))
    if resume:
        print("nothing to resume, starting a new run", file=sys.stderr)
    inputs = fingerprints(plan.inputs)
    job = {**plan.job(), "view": find_step(plan.step).view, "inputs": inputs, "asked": dict(asked)}
    run = RunFolder.create(runs_dir, step=plan.step, config_name=plan.config_name, job=job, run_id=plan.run_id)
    return _attached(run, code, plan.secrets())


def resume(run_dir: Path, *, max_steps: int | None = None, words: Sequence[str] = ()) -> int:
    """Go on with an unfinished run from its last checkpoint; returns the exit code.

    Args:
        max_steps: the run ends with this step instead of the one that it was compiled for; a finished run goes on.
        words: the command line, to be kept with the run.

    Raises:
        NotFoundError: there is no run. OutputError: another process works on it.
        UsageError, ArtifactError: it cannot go on until ``max_steps``.
    """
    run = RunFolder.open(run_dir)
    if max_steps is None and run.state() == "finished":
        return _finished_already(run)
    # job.json holds no secrets: on the way back they come from the variables it names.
    job = run.job()
    variables = job.get("secret_variables", {})
    found = {key: os.environ[name] for key, name in variables.items() if os.environ.get(name)}

    def prepare() -> None:
        if max_steps is None:
            run.add_attempt({"command": list(words)})
        else:
            _extend(run, max_steps, words)

    return _attached(run, step_code(find_step(job["step"])), found, prepare)


def _extend(run: RunFolder, max_steps: int, words: Sequence[str]) -> None:
    """Give the run its new end; what it was compiled with stays beside it."""
    # Read again: the run is held now, and no other process has changed it in between.
    job = run.job()
    extension = plan_extension(run, job, max_steps)
    change = {"key": extension.key, "was": extension.before, "now": extension.after}
    config = job["config"]
    config[extension.section]["max_num_steps"] = extension.after
    run.add_attempt({"command": list(words), **change}, config)
    # They were measured at the old end.
    run.write_status(heldout_after=None)
    print(f"run {run.id}: `{extension.key}` {extension.before} -> {extension.after}", file=sys.stderr)
    for remark in extension.remarks:
        print(f"note: {remark}", file=sys.stderr)


def _finished_already(run: RunFolder) -> int:
    print(
        f"run {run.id} is finished already; without `--resume` a new one starts, "
        f"`nemotron runs resume {run.id} --max-steps N` extends it",
        file=sys.stderr,
    )
    return 0


def _attached(
    run: RunFolder, code: StepCode, secrets: Mapping[str, str], prepare: Callable[[], None] | None = None
) -> int:
    """Hold the run, work on it, and leave a truthful status behind whatever happens.

    ``prepare`` is called first; when it raises, the run stays as it was.
    """
    with run.lock(), _terminate_like_interrupt():
        if prepare is not None:
            prepare()
        try:
            code.run(run, secrets)
        except KeyboardInterrupt:
            run.write_status(state="interrupted", exit_code=130)
            print(f"interrupted; go on with `nemotron runs resume {run.id}`", file=sys.stderr)
            raise
        except NemotronError as error:
            state: Any = "stopped" if isinstance(error, LimitError) else "failed"
            run.write_status(state=state, error=error.message, exit_code=error.exit_code)
            raise
        except BaseException as error:
            # Supervision: whatever it was, the status must not go on saying "running".
            run.write_status(state="failed", error=f"internal error: {type(error).__name__}", exit_code=1)
            raise
    return 0


def fingerprints(inputs: Iterable[FileRef]) -> list[dict[str, Any]]:
    """Key, path, artifact type and content hash of every input that is a file or folder of this machine.

    Prepared data are the manifest with its hash, and an entry with ``files`` for each split: the shards.

    Raises:
        ArtifactError: an input is no artifact, or cannot be read.
    """
    found: list[dict[str, Any]] = []
    for ref in inputs:
        path = Path(ref.path).expanduser()
        if ref.files:
            found += _prepared(ref, path, found)
        elif path.exists():
            # A file that a config names is data, whatever its name ends in.
            kind = "training_jsonl" if path.is_file() else recognise(path)
            content = fingerprint(path, kind)
            found.append({"key": ref.key or ref.role, "type": kind, "path": ref.path, "fingerprint": content})
    return found


def _prepared(ref: FileRef, manifest: Path, before: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The manifest, unless it stands in ``before``, and the shards of one of its splits."""
    file = str(manifest / "manifest.json" if manifest.is_dir() else manifest)
    if not any(entry["path"] == file for entry in before):
        content = fingerprint(Path(file), "training_jsonl")
        yield {"key": "data.manifest_path", "type": "training_jsonl", "path": file, "fingerprint": content}
    shards = [Path(name) for name in ref.files]
    entry = {"key": ref.role, "type": "training_jsonl", "path": str(shards[0]), "files": list(ref.files)}
    yield {**entry, "fingerprint": fingerprint_files(shards)}


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM (a scheduler's polite end) stops the run as Ctrl-C does: status written, judge ended."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
