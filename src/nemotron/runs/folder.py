"""A run on disk: ``<runs_dir>/<run id>/`` with everything that is known about it.

========================  =====================================================================================
``job.json``              the compiled job (config, engine, fingerprint), provenance, and the attempts to go on
``status.json``           state and headline numbers (:mod:`nemotron.runs.status`); replaced atomically
``metrics.jsonl``         one flat object per step, NeMo-RL metric names
``samples.jsonl``         prompts, responses, rewards
``checkpoints/step_N/``   written by the engine
``logs/``                 the judge server's log and the like
``report.html``           see :mod:`nemotron.runs.report`
``run.lock``              held while a process works on the run
========================  =====================================================================================
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack

from nemotron.errors import ArtifactError, NotFoundError, Origin
from nemotron.runs import lock
from nemotron.runs.atomic import output_errors, remove_drafts, sync_folder, write_atomic
from nemotron.runs.jsonl import JsonLines, Row, to_json
from nemotron.runs.provenance import provenance
from nemotron.runs.status import ENDED, ReportedState, Status, StatusFields
from nemotron.suggest import closest, listed

_JOB, _STATUS = "job.json", "status.json"


def new_run_id(step: str, config_name: str) -> str:
    """An id for a run that starts now, e.g. ``20250131-154501-rlhf-tiny-9f3a``; sorts by time.

    Needed before :meth:`RunFolder.create` because a config may refer to its own run folder (``${run_dir:}``).
    """
    words = [step.rstrip("/").rsplit("/", 1)[-1], Path(config_name).stem]
    slugs = [re.sub(r"[^A-Za-z0-9_.]+", "-", word).strip("-.") or "run" for word in words]
    return "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *slugs, secrets.token_hex(2)])


class RunFolder:
    """One run. Reading needs no lock; the writing methods are for the one process that holds the lock."""

    def __init__(self, path: Path) -> None:
        """Wrap an existing folder; use :meth:`create` or :meth:`open`."""
        self.path = path
        self.id = path.name
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.report = path / "report.html"
        self._metrics = JsonLines(self.metrics)
        self._samples = JsonLines(self.samples)

    @classmethod
    def create(
        cls, runs_dir: Path, *, step: str, config_name: str, job: Mapping[str, Any], run_id: str | None = None
    ) -> RunFolder:
        """Make a new run folder that this process holds, in state ``starting``.

        It is built under a temporary name and renamed, so a run folder that exists is complete. ``job`` (already
        redacted) should have ``config``, ``engine`` and ``fingerprint``; id, step, config name, time and provenance
        are added to it.

        Raises:
            OutputError: the folder cannot be written, or a run of that id exists.
        """
        run_id = run_id or new_run_id(step, config_name)
        path = runs_dir.resolve() / run_id
        draft = path.with_name(f".{run_id}.{secrets.token_hex(4)}.tmp")
        now = _now()
        content = {
            "id": run_id,
            "step": step,
            "config_name": config_name,
            "created_at": now,
            **job,
            "provenance": provenance(),
        }
        with output_errors(path):
            draft.mkdir(parents=True)
            try:
                lock.acquire(draft)
                write_atomic(draft / _JOB, to_json(content, indent=2) + b"\n")
                status = Status(state="starting", pid=os.getpid(), started_at=now, updated_at=now)
                write_atomic(draft / _STATUS, to_json(status, indent=2) + b"\n")
                (draft / "checkpoints").mkdir()
                (draft / "logs").mkdir()
                draft.rename(path)
            except BaseException:
                lock.release(draft)
                shutil.rmtree(draft, ignore_errors=True)
                raise
            lock.moved(draft, path)
            sync_folder(path.parent)
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
        lock.acquire(self.path)
        try:
            remove_drafts(self.path)
            yield self
        finally:
            lock.release(self.path)

    def is_live(self) -> bool:
        """Whether a live process works on this run."""
        return lock.is_held(self.path)

    def job(self) -> dict[str, Any]:
        """The compiled job as written by :meth:`create`.

        Raises:
            ArtifactError: ``job.json`` is missing or damaged.
        """
        return _read_object(self.path / _JOB)

    def add_attempt(self, attempt: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> None:
        """Note in ``job.json`` that the run goes on, now, with the config it goes on with where that has changed.

        Raises:
            OutputError: it cannot be written; the old job stays.
        """
        job = self.job()
        asked = job.setdefault("asked", {})
        status = self.status()
        # This process holds the run, so one that says it is running has none.
        state = status.state if status.state in ENDED else "killed"
        entry = {"at": _now(), "state": state, "checkpoint": status.checkpoint, **attempt}
        asked["resumed"] = [*asked.get("resumed", []), entry]
        if config is not None:
            job["config"] = config
        write_atomic(self.path / _JOB, to_json(job, indent=2) + b"\n")

    def status(self) -> Status:
        """The status as written; see :meth:`state` for what to tell a user.

        Raises:
            ArtifactError: ``status.json`` is missing or damaged.
        """
        return Status.from_json(_read_object(self.path / _STATUS))

    def state(self) -> ReportedState:
        """The state to report: the written one, or ``killed`` if it says running and no process is there."""
        state = self.status().state
        return state if state in ENDED or self.is_live() else "killed"

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


def list_runs(runs_dir: Path) -> list[RunFolder]:
    """All runs, oldest first; a folder that does not exist has none."""
    if not runs_dir.is_dir():
        return []
    jobs = [job for job in runs_dir.glob(f"*/{_JOB}") if not job.parent.name.startswith(".")]
    # Ids sort by the second of their start; the time of job.json orders runs of the same second.
    jobs.sort(key=lambda job: (job.parent.name[:15], job.stat().st_mtime_ns))
    return [RunFolder(job.parent.resolve()) for job in jobs]


def find_run(runs_dir: Path, name: str) -> RunFolder:
    """The run called ``name``: ``last``, an id, a unique beginning or end of an id, or the path of a run folder.

    Raises:
        NotFoundError: no run, or more than one, goes by that name.
    """
    if "/" in name:
        return RunFolder.open(Path(name))
    runs = list_runs(runs_dir)
    if not runs:
        raise NotFoundError(
            f"there are no runs in `{runs_dir}`",
            hint="start one with `nemotron steps run`, or name their folder with `--runs-dir`",
        )
    if name == "last":
        return runs[-1]
    exact = [run for run in runs if run.id == name]
    found = exact or [run for run in runs if name and (run.id.startswith(name) or run.id.endswith(name))]
    if len(found) == 1:
        return found[0]
    ids = [run.id for run in reversed(found or runs)]
    if found:
        raise NotFoundError(f"`{name}` fits {len(found)} runs", hint=f"say which: {_some(ids)}")
    guess = closest(name, ids)
    hint = f"did you mean `{guess}`?" if guess else f"there are: {_some(ids)}"
    raise NotFoundError(f"no run `{name}` in `{runs_dir}`", hint=hint)


def newest_of_job(runs_dir: Path, step: str, fingerprint: str) -> RunFolder | None:
    """The newest run of this step and config that no process works on; what ``--resume`` looks at."""
    for run in reversed(list_runs(runs_dir)):
        job = run.job()
        if job.get("step") == step and job.get("fingerprint") == fingerprint and not run.is_live():
            return run
    return None


def _some(ids: list[str]) -> str:
    shown = listed(ids[:5])
    return shown if len(ids) <= 5 else f"{shown} and {len(ids) - 5} more"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"cannot read this run: {error}", hint="the run folder is damaged: delete it", origin=Origin(str(path))
        ) from error
    if not isinstance(content, dict):
        raise ArtifactError("this file is not a JSON object", origin=Origin(str(path)))
    return content


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
