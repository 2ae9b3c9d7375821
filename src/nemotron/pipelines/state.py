"""What is known of a pipeline that was started: ``pipelines/<id>/`` next to the folder of the runs.

====================  =====================================================================
``pipeline.json``     the nodes with their runs, replaced atomically after every change
``pipeline.lock``     held while a command works on it
``report.html``       links the reports of all nodes
====================  =====================================================================

What a node did stands in its run. Nothing of that is repeated here but the word that the next node waits for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemotron import __version__
from nemotron.disk import lock
from nemotron.disk.atomic import remove_drafts, write_atomic
from nemotron.disk.documents import read_json
from nemotron.disk.faults import output_errors
from nemotron.errors import ArtifactError, NotFoundError, Origin
from nemotron.runs.naming import by_part, by_time, dated_id

FILE, LOCK, REPORT = "pipeline.json", "pipeline.lock", "report.html"
StateName = Literal[
    "waiting", "submitted", "running", "finished", "reused", "failed", "stopped", "skipped", "interrupted", "left"
]
"""``submitted``: a cluster has it, and its run says the rest. ``reused``: a run that had done the same already stands
in for it. ``stopped``: a limit of its config ended it, as a gate does. ``skipped``: a node that it needs did not end
well.
``left``: the command was not asked for it."""
WELL: frozenset[StateName] = frozenset({"finished", "reused"})


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeState(_Part):
    """One node."""

    name: str
    step: str
    needs: tuple[str, ...] = ()
    inserted: bool = False
    fingerprint: str
    """Of its config against promises: the same words give the same one, wherever its inputs come to lie."""
    state: StateName = "waiting"
    run: str | None = None
    """Name of its run folder; of a reused node, that of the run which stands in."""
    forced: bool = False
    """It is done anew, whatever was done before."""
    exit_code: int | None = None
    reason: str | None = None
    """Why it did not end well."""


class PipelineState(_Part):
    """A pipeline that was started."""

    format: Literal[1] = 1
    version: str = __version__
    id: str
    name: str
    title: str
    file: str
    """Absolute path of the YAML; a pipeline goes on only while it says the same."""
    runs_dir: str
    folder: str | None = None
    """Where it was started: relative paths in its file and words mean those below it."""
    created_at: str
    """ISO 8601, UTC."""
    words: tuple[str, ...] = ()
    """Overrides of the command line; secrets are not in them."""
    side_by_side: Annotated[int, Field(ge=1)] = 1
    """Nodes that work at once on this machine; kept, so that a pipeline goes on as it began."""
    profile: str | None = None
    named: dict[str, str] = {}
    """What `${artifact:RUN:TYPE}` meant when it started."""
    nodes: tuple[NodeState, ...]

    def node(self, name: str) -> NodeState:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def with_node(self, name: str, **changes: Any) -> PipelineState:
        """The same with one node changed."""
        nodes = tuple(one.model_copy(update=changes) if one.name == name else one for one in self.nodes)
        return self.model_copy(update={"nodes": nodes})


class PipelineFolder:
    """One pipeline on disk."""

    def __init__(self, path: Path) -> None:
        """Wrap a folder; use :func:`create` or :func:`find`."""
        self.path, self.id = path, path.name
        self.report = path / REPORT

    def read(self) -> PipelineState:
        """The state as it was written last.

        Raises:
            ArtifactError: it is missing, damaged, or of a version that this one does not read.
        """
        origin = Origin(str(self.path / FILE))
        try:
            return PipelineState.model_validate(read_json(self.path / FILE))
        except (OSError, ValidationError, ValueError) as error:
            reason = "it is damaged, or another version wrote it" if not isinstance(error, OSError) else error.strerror
            hint = "`nemotron pipelines run` starts a new one, which takes over what was done"
            raise ArtifactError(f"cannot read this pipeline: {reason}", hint=hint, origin=origin) from error

    def write(self, state: PipelineState) -> None:
        """Replace the state. Raises OutputError."""
        write_atomic(self.path / FILE, state.model_dump_json(indent=2).encode() + b"\n")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the pipeline while a block runs.

        Raises:
            OutputError: another command works on it.
        """
        busy = f"{{holder}} works on the pipeline `{self.id}`"
        hint = "wait until it ends, or `nemotron pipelines cancel` it"
        with lock.alone(self.path / LOCK, busy=busy, hint=hint):
            remove_drafts(self.path)
            yield

    @property
    def is_held(self) -> bool:
        """Whether a command works on it."""
        return lock.is_held(self.path / LOCK) is True


def folder_for(runs_dir: Path) -> Path:
    """Where the pipelines lie whose runs are in ``runs_dir``."""
    return runs_dir.resolve().parent / "pipelines"


def new_id(name: str) -> str:
    """An id for a pipeline that starts now; sorts by time."""
    return dated_id([name], "pipeline")


def create(runs_dir: Path, state: PipelineState) -> PipelineFolder:
    """Make the folder of a new pipeline; nobody else may look into it. Raises OutputError."""
    folder = PipelineFolder(folder_for(runs_dir) / state.id)
    with output_errors(folder.path):
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        folder.path.mkdir(mode=0o700)
    folder.write(state)
    return folder


def started(runs_dir: Path) -> list[PipelineFolder]:
    """All pipelines, the oldest first."""
    folders = (path.parent for path in folder_for(runs_dir).glob(f"*/{FILE}"))
    return [PipelineFolder(folder) for folder in sorted(folders, key=lambda folder: by_time(folder.name))]


def find(runs_dir: Path, name: str) -> PipelineFolder:
    """The pipeline called ``name``: ``last``, an id, or a unique part of one's beginning or end.

    Raises:
        NotFoundError: none, or more than one, goes by that name.
    """
    known = started(runs_dir)
    if not known:
        where = folder_for(runs_dir)
        raise NotFoundError(f"there are no pipelines in `{where}`", hint="start one with `nemotron pipelines run`")
    if name == "last":
        return known[-1]
    return by_part(known, name, kind="pipeline")
