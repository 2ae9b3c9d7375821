"""How a pipeline stands, asked from outside of the command that works on it; and how it is ended."""

from __future__ import annotations

import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

from nemotron.disk import lock
from nemotron.errors import ArtifactError, ExecutorError, NotFoundError
from nemotron.executors import state_of
from nemotron.pipelines.state import LOCK, WELL, PipelineFolder
from nemotron.runs.folder import RunFolder


def overall(folder: PipelineFolder) -> str:
    """One word for the whole."""
    state = folder.read()
    if folder.is_held:
        return "running"
    if all(node.state in {*WELL, "left"} for node in state.nodes):
        return "finished"
    for word in ("stopped", "failed", "interrupted"):
        if any(node.state == word for node in state.nodes):
            return word
    return "killed"


def node_rows(folder: PipelineFolder) -> list[dict[str, Any]]:
    """The nodes with what their runs say."""
    state = folder.read()
    rows = []
    for node in state.nodes:
        shown: str = node.state
        if node.state == "running":
            shown = _of_run(Path(state.runs_dir) / str(node.run))
        rows.append({**node.model_dump(exclude={"fingerprint", "forced"}), "state": shown})
    return rows


def _of_run(path: Path) -> str:
    try:
        return state_of(RunFolder.open(path))
    except (ArtifactError, NotFoundError):
        return "starting"


def cancel(folder: PipelineFolder) -> None:
    """SIGTERM to the command that works on it, which ends its node as Ctrl-C does.

    Raises:
        NotFoundError: nobody works on it, or from elsewhere. ExecutorError: somebody else does.
    """
    found = lock.holder_of(folder.path / LOCK) if folder.is_held else None
    if found is None:
        raise NotFoundError(f"pipeline `{folder.id}` is {overall(folder)}: there is nothing to cancel")
    if found[1] != platform.node():
        raise NotFoundError(f"pipeline `{folder.id}` is worked on on `{found[1]}`", hint="cancel it there")
    try:
        os.kill(found[0], signal.SIGTERM)
    except ProcessLookupError:
        raise NotFoundError(f"pipeline `{folder.id}` has ended: there is nothing to cancel") from None
    except PermissionError as error:
        raise ExecutorError(f"process {found[0]} is somebody else's") from error
    print(f"{folder.id}: cancelled; `nemotron pipelines resume {folder.id}` goes on with it", file=sys.stderr)
