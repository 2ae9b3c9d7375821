"""A run on disk: ``<runs_dir>/<run id>/`` with everything that is known about it.

========================  =====================================================================================
``job.json``              the compiled job (:mod:`nemotron.job`): what every process of the run starts from
``status.json``           state and headline numbers (:mod:`nemotron.runs.status`); replaced atomically
``metrics.jsonl``         one flat object per step, NeMo-RL metric names
``samples.jsonl``         prompts, responses, rewards
``checkpoints/step_N/``   written by the engine
``attempts/N/``           how attempt N was started, and its logs (:mod:`nemotron.runs.attempts`)
``report.html``           see :mod:`nemotron.reports.report`
``run.lock``              held while a process works on the run
========================  =====================================================================================
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack

from pydantic import ValidationError

from nemotron.disk import lock
from nemotron.disk.atomic import remove_drafts, sync, write_atomic
from nemotron.disk.documents import read_json
from nemotron.disk.faults import output_errors
from nemotron.errors import ArtifactError, NotFoundError, Origin
from nemotron.job import FILE as _JOB
from nemotron.job import Changed, CompiledJob, Resumed, damaged_hint, read_job
from nemotron.manifest import short_name
from nemotron.runs.attempts import ATTEMPTS
from nemotron.runs.jsonl import JsonLines, Row, to_json
from nemotron.runs.naming import by_part, by_time, dated_id
from nemotron.runs.status import ENDED, Status, StatusFields
from nemotron.suggest import closest, listed

_STATUS = "status.json"
LOCK = "run.lock"
"""Held while a process works on the run."""


def new_run_id(step: str, config_name: str) -> str:
    """An id for a run that starts now, e.g. ``20250131-154501-rlhf-tiny-9f3a``; sorts by time.

    Needed before :meth:`RunFolder.create` because a config may refer to its own run folder (``${run_dir:}``).
    """
    return dated_id([short_name(step), Path(config_name).stem], "run")


class RunFolder:
    """One run. Reading needs no lock; the writing methods are for the one process that holds the lock."""

    def __init__(self, path: Path) -> None:
        """Wrap an existing folder; use :meth:`create` or :meth:`open`."""
        self.path = path
        self.id = path.name
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.report = path / "report.html"
        self._metrics = JsonLines(self.metrics)
        self._samples = JsonLines(self.samples)

    @classmethod
    def create(cls, runs_dir: Path, job: CompiledJob) -> RunFolder:
        """Make a new run folder that this process holds, in state ``starting``.

        It is built under a temporary name and renamed, so a run folder that exists is complete. Nobody else may look
        into it; where ``runs_dir`` hands its group on (``chmod g+s``), that group may read.

        Raises:
            OutputError: the folder cannot be written, or a run of that id exists.
        """
        path = runs_dir.resolve() / job.id
        draft = path.with_name(f".{job.id}.{secrets.token_hex(4)}.tmp")
        now = _now()
        with output_errors(path):
            runs_dir.mkdir(parents=True, exist_ok=True)
            shared = runs_dir.stat().st_mode & stat.S_ISGID
            draft.mkdir()
            # Not as an argument of the line above: there the umask would take the group's rights away.
            draft.chmod(0o2750 if shared else 0o700)
            try:
                lock.acquire(draft / LOCK, what=f"run `{job.id}`")
                write_atomic(draft / _JOB, job.to_bytes())
                status = Status(state="starting", pid=os.getpid(), started_at=now, updated_at=now)
                write_atomic(draft / _STATUS, to_json(status, indent=2) + b"\n")
                (draft / "checkpoints").mkdir()
                draft.rename(path)
            except BaseException:
                lock.release(draft / LOCK)
                shutil.rmtree(draft, ignore_errors=True)
                raise
            lock.moved(draft / LOCK, path / LOCK)
            sync(path.parent)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder.

        Raises:
            NotFoundError: there is no run in ``path``.
        """
        if not (path / _JOB).is_file():
            raise NotFoundError(f"no run in `{path}`", hint="`nemotron runs list` shows the runs")
        return cls(path.resolve())

    @contextmanager
    def lock(self) -> Iterator[RunFolder]:
        """Hold the run while the block runs. A run that this process created is held already.

        Raises:
            OutputError: another live process holds it; the message names its pid.
        """
        lock.acquire(self.path / LOCK, what=f"run `{self.id}`")
        try:
            # In those of its attempts a command may be writing how to find it.
            own = (one for one in self.path.iterdir() if one.is_dir() and one.name != ATTEMPTS)
            remove_drafts(self.path, *own)
            yield self
        finally:
            lock.release(self.path / LOCK)

    def job(self) -> CompiledJob:
        """The compiled job, with the run's own paths where the run lies now.

        Raises:
            ArtifactError: ``job.json`` is missing, damaged, or of a version that this one does not read.
        """
        return read_job(self.path / _JOB).at(self.path)

    def write_job(self, job: CompiledJob) -> None:
        """Replace the compiled job by itself with more known about it: the hashes of its inputs. Raises OutputError."""
        write_atomic(self.path / _JOB, job.to_bytes())

    def note_resumed(self, command: Sequence[str], changed: tuple[Changed, ...] = (), **change: Any) -> CompiledJob:
        """Note that ``command`` goes on with the run, and the key that it changes (``key``, ``was``, ``now``).

        ``changed`` are inputs that it goes on with although they are not what they were.

        Returns:
            The job as it is to be written, with the new entry; for the one process that holds the run.
        """
        job, status = self.job(), self.status()
        # This process holds the run, so one that says it is running has none.
        state = status.state if status.state in ENDED else "killed"
        entry = Resumed(
            at=_now(), state=state, checkpoint=status.checkpoint, command=tuple(command), changed=changed, **change
        )
        asked = job.asked.model_copy(update={"resumed": (*job.asked.resumed, entry)})
        now = {one.key: one.now for one in changed}
        inputs = tuple(one.model_copy(update={"fingerprint": now.get(one.key, one.fingerprint)}) for one in job.inputs)
        return job.model_copy(update={"asked": asked, "inputs": inputs})

    def status(self) -> Status:
        """The status as the worker wrote it; ``nemotron.executors.state_of`` says what to tell a user.

        Raises:
            ArtifactError: ``status.json`` is missing or damaged.
        """
        path = self.path / _STATUS
        try:
            return Status.from_json(_read_object(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            message = f"`{path.name}` is damaged: `{key}`: {first['msg'][0].lower()}{first['msg'][1:]}"
            raise ArtifactError(message, hint=damaged_hint(path), origin=Origin(str(path))) from None

    def write_status(self, **fields: Unpack[StatusFields]) -> None:
        """Change the given fields of ``status.json``, atomically; pid and times are kept up by themselves.

        Example: ``run.write_status(state="running", steps_total=40)``.

        Raises:
            OutputError: it cannot be written; the old status stays.
        """
        now = _now()
        status = replace(self.status(), **fields, pid=os.getpid(), updated_at=now)
        if status.state not in ENDED:
            status = replace(status, finished_at=None)
        elif status.finished_at is None:
            status = replace(status, finished_at=now)
        write_atomic(self.path / _STATUS, to_json(status, indent=2) + b"\n")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one flat row ``{"step": int, "wall_s": float, "train/reward": float, ...}``; NaN is stored as null.

        Raises:
            OutputError: it cannot be written; no part of the row stays.
        """
        self._metrics.append([row])

    def append_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append sample rows, all or none.

        Raises:
            OutputError: they cannot be written; no part of them stays.
        """
        self._samples.append(rows)

    def truncate_metrics(self, last_step: int) -> None:
        """Drop rows of steps after ``last_step`` and a torn last line; the resumed run writes them again.

        ``-1`` drops every row: right when there is no checkpoint and the run starts over.
        """
        self._metrics.keep(lambda row: int(row.get("step", 0)) <= last_step)

    def truncate_samples(self, last_step: int) -> None:
        """Like :meth:`truncate_metrics`; ``heldout_after`` rows go too, as every attempt ends by writing them."""
        self._samples.keep(lambda row: int(row.get("step", 0)) <= last_step and row.get("phase") != "heldout_after")

    def sync_rows(self) -> None:
        """Put metrics and samples on the disk: a checkpoint that counts on them is about to appear.

        Raises:
            OutputError: the disk does not take them.
        """
        self._metrics.sync()
        self._samples.sync()
        with output_errors(self.path):
            sync(self.path)

    def read_metrics(self) -> list[Row]:
        """All metric rows in file order; none before the first step.

        Raises:
            DataError: a line other than the last is damaged.
        """
        return list(self._metrics.read())

    def read_samples(self) -> Iterator[Row]:
        """Sample rows in file order, one at a time.

        Raises:
            DataError: a line other than the last is damaged.
        """
        return self._samples.read()


_HERE = "for the run folder of that name here, write `./{}`"


def list_runs(runs_dir: Path) -> list[RunFolder]:
    """All runs, oldest first; a folder that does not exist has none."""
    if not runs_dir.is_dir():
        return []
    jobs = [job for job in runs_dir.glob(f"*/{_JOB}") if not job.parent.name.startswith(".")]
    return [RunFolder(job.parent.resolve()) for job in sorted(jobs, key=lambda job: by_time(job.parent.name))]


def find_run(runs_dir: Path, name: str) -> RunFolder:
    """The run called ``name``: ``last`` (of any step), ``last:STEP`` (a step id or the end of one, such as ``rlhf``),
    an id, a unique beginning or end of an id, or the path of a run folder.

    Raises:
        NotFoundError: no run, or more than one, goes by that name.
    """
    word, of_step, step = name.partition(":")
    if "/" in name and not (word == "last" and of_step):
        return RunFolder.open(Path(name))
    runs = list_runs(runs_dir)
    if not runs:
        start = "start one with `nemotron steps run`, or name their folder with `--runs-dir`"
        hint = _HERE.format(name) if (Path(name) / _JOB).is_file() else start
        raise NotFoundError(f"there are no runs in `{runs_dir}`", hint=hint)
    if word == "last":
        return _last_of(runs, step) if of_step else runs[-1]
    try:
        return by_part(runs, name, kind="run", where=f" in `{runs_dir}`")
    except NotFoundError as error:
        if (Path(name) / _JOB).is_file():
            raise NotFoundError(error.message, hint=_HERE.format(name)) from None
        raise


def _last_of(runs: Sequence[RunFolder], step: str) -> RunFolder:
    """The newest run of a step, which is called by its id or the end of it."""
    known = [(run, its_step) for run in reversed(runs) if (its_step := _step_of(run)) is not None]
    for run, its_step in known:
        if f"/{its_step}".endswith(f"/{step.strip('/')}") or short_name(its_step) == step:
            return run
    tails = dict.fromkeys(short_name(its_step) for _, its_step in known)
    guess = closest(step, tails)
    hint = f"did you mean `last:{guess}`?" if guess else f"there are: {listed(f'last:{tail}' for tail in tails)}"
    raise NotFoundError(f"no run of a step `{step}`", hint=hint)


def _step_of(run: RunFolder) -> str | None:
    """The step of a run; None for one that this version cannot read."""
    try:
        return run.job().step
    except ArtifactError:
        return None


def newest_of_job(runs_dir: Path, step: str, fingerprint: str) -> RunFolder | None:
    """The newest run of this step and config, whoever works on it; what ``--resume`` looks at. Runs that this version
    cannot read are none of this config."""
    for run in reversed(list_runs(runs_dir)):
        try:
            job = run.job()
        except ArtifactError:
            continue
        if job.step == step and job.fingerprint == fingerprint:
            return run
    return None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"cannot read this run: {error}", hint=damaged_hint(path), origin=Origin(str(path))
        ) from error
    if not isinstance(content, dict):
        raise ArtifactError("this file is not a JSON object", origin=Origin(str(path)))
    return content


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
