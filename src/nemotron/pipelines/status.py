"""How a pipeline stands, asked from outside of the command that works on it; and how it is ended."""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemotron.disk import lock
from nemotron.errors import ArtifactError, ExecutorError, NotFoundError
from nemotron.executors import elsewhere, goes_on, state_of
from nemotron.pipelines.state import LOCK, WELL, NodeState, PipelineFolder
from nemotron.runs.folder import RunFolder

_GO_ON = {"queued", "starting", "running"}
_WORST = ("stopped", "failed", "out of memory", "timeout", "node failed", "lost", "killed", "preempted", "cancelled")


def overall(folder: PipelineFolder, rows: Sequence[dict[str, Any]] | None = None) -> str:
    """One word for the whole."""
    states = [row["state"] for row in (node_rows(folder) if rows is None else rows)]
    if folder.is_held or any(state in _GO_ON for state in states):
        return "running"
    if all(state in {*WELL, "left"} for state in states):
        return "finished"
    return next((word for word in (*_WORST, "interrupted") if word in states), "killed")


def node_rows(folder: PipelineFolder) -> list[dict[str, Any]]:
    """The nodes with what their runs say."""
    state = folder.read()
    rows: dict[str, dict[str, Any]] = {}
    for node in state.nodes:
        found = node.model_dump(exclude={"fingerprint", "forced"})
        if node.state in ("running", "submitted"):
            found |= _of_run(Path(state.runs_dir) / str(node.run))
        if node.state == "submitted" and found["state"] in ("cancelled", "lost") and found["reason"] is None:
            found["reason"] = _before(node, rows)
        rows[node.name] = found
    return list(rows.values())


def _of_run(path: Path) -> dict[str, Any]:
    try:
        run = RunFolder.open(path)
        elsewhere.refresh(run)
        status = run.status()
        return {"state": state_of(run), "reason": status.error, "exit_code": status.exit_code}
    except (ArtifactError, NotFoundError):
        return {"state": "starting"}


def _before(node: NodeState, rows: dict[str, dict[str, Any]]) -> str | None:
    """The node that this one waited for in vain."""
    for name in node.needs:
        row = rows[name]
        if row["state"] not in {*WELL, *_GO_ON}:
            return f"`{name}` is {row['state']}" + (f": {row['reason']}" if row["reason"] else "")
    return None


def cancel(folder: PipelineFolder) -> None:
    """End the command that works on it as Ctrl-C does, and the jobs of its nodes, those that wait first.

    Raises:
        NotFoundError: nobody works on it, or from elsewhere. ExecutorError: it cannot be ended.
    """
    state = folder.read()
    jobs = [RunFolder(Path(state.runs_dir) / str(node.run)) for node in state.nodes if node.state == "submitted"]
    alive = [run.path.resolve() for run in jobs if (run.path / "job.json").is_file() and goes_on(run)]
    found = lock.holder_of(folder.path / LOCK) if folder.is_held else None
    if found is None and not alive:
        raise NotFoundError(f"pipeline `{folder.id}` is {overall(folder)}: there is nothing to cancel")
    if found is not None:
        _end(folder, *found)
    for path in reversed(alive):
        elsewhere.cancel(RunFolder(path))
    print(f"{folder.id}: cancelled; `nemotron pipelines resume {folder.id}` goes on with it", file=sys.stderr)


def _end(folder: PipelineFolder, process: int, host: str) -> None:
    if host != platform.node():
        raise NotFoundError(f"pipeline `{folder.id}` is worked on on `{host}`", hint="cancel it there")
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        raise NotFoundError(f"pipeline `{folder.id}` has ended: there is nothing to cancel") from None
    except PermissionError as error:
        raise ExecutorError(f"process {process} is somebody else's") from error
