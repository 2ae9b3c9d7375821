"""Whether what a node would do was done already: same step, config, code and inputs, wherever those lie.

Paths of inputs say nothing: what counts is what is in them. So a run is compared by its job with every input under the
name of its content, and its own folder under one name for all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nemotron.artifacts.inputs import hashed
from nemotron.artifacts.made import made_by
from nemotron.errors import ArtifactError, NotFoundError
from nemotron.job import CompiledJob, Input
from nemotron.runs.folder import RunFolder, list_runs

_ASSETS = re.compile(r"^/.*/nemotron/assets/")
"""Files of the product, wherever its code was brought to; the code is compared by its hash."""
_RUN = Path("/run")
_INPUTS = Path("/inputs")


def same_work(job: CompiledJob, runs_dir: Path, needed: Iterable[str]) -> RunFolder | None:
    """The newest finished run that did what ``job`` would do, and whose artifacts of the ``needed`` types are there.

    Inputs are read and hashed only where a run is the same but for them.

    Raises:
        ArtifactError: an input cannot be read.
    """
    wanted, needed = _outline(job), list(needed)
    known: str | None = None
    read = False
    for run in reversed(list_runs(runs_dir)):
        try:
            earlier = run.job()
            mixed = any(entry.changed for entry in earlier.asked.resumed)
            if mixed or run.status().state != "finished" or _outline(earlier) != wanted:
                continue  # unfinished, another work, or done with one input first and another later
            for kind in needed:
                made_by(run, kind)
        except (ArtifactError, NotFoundError):
            continue  # it cannot be read, or somebody took away what it made
        if not read:
            read, known = True, _by_content(job.model_copy(update={"inputs": tuple(map(hashed, job.inputs))}))
        if known is None:
            return (
                None  # an input without a content of its own, such as a name on a hub: no run is known to be the same
            )
        if _by_content(earlier) == known:
            return run
    return None


def _outline(job: CompiledJob) -> str:
    """Everything but the content of the inputs."""
    return _digest(job, lambda one: f"{one.key} {one.type}")


def _by_content(job: CompiledJob) -> str | None:
    """Everything, with the inputs by their content; None where that of one is not known."""
    return _digest(job, lambda one: one.fingerprint or "") if all(one.fingerprint for one in job.inputs) else None


def _shipped(value: Any) -> Any:
    """The config with files of the product under one name for all places."""
    if isinstance(value, dict):
        return {name: _shipped(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_shipped(child) for child in value]
    return _ASSETS.sub("/assets/", value) if isinstance(value, str) else value


def _digest(job: CompiledJob, name: Callable[[Input], str]) -> str:
    moved = job.relocated(Path(job.folder), _RUN) if job.folder is not None else job
    # The longest path first: one input may lie inside another.
    for one in sorted(moved.inputs, key=lambda one: (-len(one.path), one.path, one.key)):
        moved = moved.relocated(Path(one.path), _INPUTS / name(one).replace("/", ":"))
    content = {
        "step": job.step,
        "engine": job.engine,
        "code": job.provenance.code or job.id,
        "config": _shipped(moved.config),
        "inputs": sorted([one.key, one.type, name(one)] for one in job.inputs),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
