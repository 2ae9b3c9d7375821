"""Where the artifacts of a run lie: from its job and the manifest of its step to a path, one for each type.

Of a training run it is the newest checkpoint, with which its training ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nemotron.checkpoints import hf
from nemotron.checkpoints.megatron import layout
from nemotron.checkpoints.store import CheckpointStore
from nemotron.data.manifest import FILE as MANIFEST
from nemotron.disk.home import expanded
from nemotron.errors import ArtifactError, NotFoundError
from nemotron.job import CompiledJob
from nemotron.manifest import Step, find_step, load_types
from nemotron.runs.folder import RunFolder, find_run, list_runs
from nemotron.suggest import closest, listed

CHECKPOINTS = "checkpointing.checkpoint_dir"
_OF_RUN = {"metrics_jsonl": "metrics.jsonl", "samples_jsonl": "samples.jsonl", "report_html": "report.html"}
IN_FOLDER = {"prepared_data": MANIFEST, "eval_results": "eval_results.json"}
"""What of a folder names the artifact."""


def made_by(run: RunFolder, kind: str) -> Path:
    """The artifact of type ``kind`` that a run made, absolute.

    Raises:
        NotFoundError: runs of its step make none of that type.
        ArtifactError: it is not there: the run has not come so far, or somebody took it away.
    """
    job = run.job()
    step = find_step(job.step)
    types = list(dict.fromkeys(artifact.type for artifact in step.produces))
    if kind not in types:
        guess = closest(kind, types)
        hint = f"did you mean `{guess}`?" if guess else f"it makes {listed(types)}"
        raise NotFoundError(f"`{job.step}` makes no `{kind}`", hint=hint)
    path = _place(run, job, step, kind)
    if path is None or not path.exists():
        state = run.status().state
        ended = "" if state == "finished" else f" (it is {state})"
        where = f": there is nothing at `{path}`" if path is not None else ""
        unsaved = kind == "checkpoint_hf" and path is None
        way_out = "`checkpointing.save_consolidated=true` writes it" if unsaved else None
        raise ArtifactError(f"run `{run.id}` has no `{kind}`{ended}{where}", hint=way_out)
    if _is_shards(path, kind):
        message = f"run `{run.id}` has no `{kind}` of one file: its rows lie in shards, which their manifest names"
        raise ArtifactError(message, hint="take its `prepared_data`, as `data.manifest_path` does")
    return path


def by_name(runs_dir: Path) -> Callable[[str, str], str]:
    """Finds what `${artifact:RUN:TYPE}` names: RUN as in the other commands, `last` the newest that makes that type."""

    def find(name: str, kind: str) -> str:
        if kind not in load_types():
            guess = closest(kind, load_types())
            hint = f"did you mean `{guess}`?" if guess else "`docs/reference/artifact-types.md` lists them"
            raise NotFoundError(f"there is no artifact type `{kind}`", hint=hint)
        return str(made_by(_newest(runs_dir, kind) if name == "last" else find_run(runs_dir, name), kind))

    return find


def _newest(runs_dir: Path, kind: str) -> RunFolder:
    for run in reversed(list_runs(runs_dir)):
        try:
            if any(artifact.type == kind for artifact in find_step(run.job().step).produces):
                return run
        except (ArtifactError, NotFoundError):
            continue  # a run that this version cannot read made nothing that it could use
    raise NotFoundError(f"no run in `{runs_dir}` makes a `{kind}`", hint="`nemotron runs list` shows the runs")


def all_made(run: RunFolder) -> Iterator[tuple[str, Path]]:
    """Type and path of every artifact of a run that is there."""
    job = run.job()
    step = find_step(job.step)
    for kind in dict.fromkeys(artifact.type for artifact in step.produces):
        path = _place(run, job, step, kind)
        if path is not None and path.exists() and not _is_shards(path, kind):
            yield kind, path


def _place(run: RunFolder, job: CompiledJob, step: Step, kind: str) -> Path | None:
    if kind in _OF_RUN:
        return run.path / _OF_RUN[kind]
    if (folder := _get(job.config, CHECKPOINTS)) is not None:
        newest = CheckpointStore(_path(folder), None, None, False).latest()
        return _of_checkpoint(newest, kind) if newest is not None else None
    keys = [key for artifact in step.produces if artifact.type == kind for key in artifact.bind]
    own = next((value for key in keys if isinstance(value := _get(job.config, key), str)), None)
    return _path(own) / IN_FOLDER.get(kind, "") if own is not None else None


def _is_shards(path: Path, kind: str) -> bool:
    """Whether rows lie in the files of a folder, which nobody takes who wants a file of them."""
    return kind.endswith("_jsonl") and path.is_dir()


def _of_checkpoint(step: Path, kind: str) -> Path | None:
    """What of a ``step_N`` is meant."""
    weights = step / "policy" / "weights"
    if kind == "checkpoint_run":
        return step
    if kind == "checkpoint_megatron":
        return weights if layout.find_iteration(weights) is not None else None
    if kind == "checkpoint_lora":
        return adapter if (adapter := step / "policy" / "adapter").is_dir() else None
    return weights / "hf" if kind == "checkpoint_hf" and hf.is_hf(weights / "hf") else None


def _path(text: str) -> Path:
    return expanded(text).absolute()


def _get(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config
