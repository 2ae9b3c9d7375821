"""The compiled job: what every process of a run starts from. The only reader and the only writer of ``job.json``.

A job is data, without code and without secrets: the worker finds the code by the step's id and the secrets in the
variables that ``secret_variables`` names. Its format has a number; a file of another format, or with keys that this
version does not know, is one clear error and never half a job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from nemotron import __version__
from nemotron.disk.documents import read_json
from nemotron.errors import ArtifactError, Origin
from nemotron.manifest import EngineName, ViewName
from nemotron.place import Place

FILE = "job.json"
FORMAT = 1
"""The one that this version reads and writes."""

C = TypeVar("C", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Input(_Part):
    """A file or folder that the run reads."""

    key: str
    """The config key that names it, or what it is for where no key does."""
    type: str
    """Artifact type."""
    path: str
    fingerprint: str | None = None
    """SHA-256 of the content; None until the worker has read it."""
    files: tuple[str, ...] = ()
    """The files that are read, where ``path`` only names the first."""

    @model_serializer(mode="wrap")
    def _without_gaps(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Checkpoints keep a copy of this: what is not there takes no line."""
        return {name: value for name, value in write(self).items() if value}


class Awaited(_Part):
    """An input that another run makes, which has not ended when this job is written."""

    key: str
    type: str
    path: str
    """What stands for it in the config until it is there; no file has this path."""
    run: str
    """The folder of the run that makes it, by the name that the job knows."""


class Commit(_Part):
    """The git commit of the folder that the command was given in."""

    sha: str
    dirty: bool


class Provenance(_Part):
    """With what a job was compiled."""

    nemotron: str | None
    python: str
    platform: str
    host: str
    packages: dict[str, str]
    git: Commit | None
    code: str | None = None
    """Hash of our own source; None of a job that is older than this."""


class Changed(_Part):
    """An input that is not what the run began with."""

    key: str
    path: str
    was: str
    now: str
    """SHA-256 of the content."""


class Resumed(_Part):
    """A command that went on with the run."""

    at: str
    """ISO 8601, UTC."""
    state: str
    """State of the run before."""
    checkpoint: str | None = None
    """Where it went on from; None: the start."""
    command: tuple[str, ...] = ()
    key: str | None = None
    """The key that the command changed, with what it was and is."""
    was: int | None = None
    now: int | None = None
    changed: tuple[Changed, ...] = ()
    """Inputs that had changed, which the command accepted."""


class SweepMember(_Part):
    """A run's place in the sweep that made it."""

    id: str
    """Name of the sweep; all its runs have the same."""
    number: int
    count: int
    """Which one of how many it is."""
    values: tuple[tuple[str, str], ...]
    """(key, value) of what differs between its runs."""


class PipelineMember(_Part):
    """A run's place in the pipeline that started it."""

    id: str
    node: str


class Asked(_Part):
    """What was asked for, in the words of who asked; no secrets. Empty for a run that no command made."""

    command: tuple[str, ...] = ()
    """The words after ``nemotron``."""
    differences: tuple[tuple[str, str, str, str], ...] = ()
    """(key, default, value, origin) of what was written otherwise than in the step's ``default``."""
    inputs: tuple[tuple[str, str, str, str], ...] = ()
    """(role, key, name, size) of data and models."""
    schedules: tuple[str, ...] = ()
    """Keys of learning-rate schedules that were computed from the number of steps."""
    data_steps: int | None = None
    """Steps after which the epochs end; None where that is not known."""
    resumed: tuple[Resumed, ...] = ()
    sweep: SweepMember | None = None
    """None for a run that was started alone."""
    pipeline: PipelineMember | None = None
    """None for a run that no pipeline started."""


class CompiledJob(_Part):
    """Everything about a run that was decided before it started."""

    format: Literal[1] = 1
    version: str = __version__
    """The nemotron that wrote it."""
    id: str
    """Name of the run."""
    folder: str | None = None
    """Where the run lay when this was written, absolute; paths below it are the run's own, and move with it."""
    step: str
    config_name: str
    created_at: str
    """ISO 8601, UTC."""
    engine: EngineName
    engine_reason: str = ""
    place: Place = Place()
    view: ViewName | None = None
    """None for a step that measures nothing while it works."""
    fingerprint: str
    """SHA-256 of the config without secrets and without paths of the run folder."""
    config_files: tuple[str, ...] = ()
    secret_variables: dict[str, str] = {}
    """Config key -> environment variable that holds the secret."""
    inputs: tuple[Input, ...] = ()
    awaits: tuple[Awaited, ...] = ()
    """Inputs that are found when the run starts; none after that."""
    asked: Asked = Asked()
    provenance: Provenance
    config: dict[str, Any]
    """The resolved config: absolute, without references, without secrets."""

    def at(self, folder: Path) -> CompiledJob:
        """The same job for a run that lies in ``folder`` now: its own paths follow it, all others stay."""
        if self.folder is None or self.folder == str(folder):
            return self
        return self.relocated(Path(self.folder), folder).model_copy(update={"folder": str(folder)})

    def relocated(self, old: Path, new: Path) -> CompiledJob:
        """The same job with every path at or below ``old`` at or below ``new``: in its config and of its inputs."""
        prefix = str(old)

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: moved(child) for name, child in value.items()}
            if isinstance(value, list | tuple):
                return type(value)(moved(child) for child in value)
            inside = isinstance(value, str) and value.startswith(prefix) and Path(value).is_relative_to(old)
            return str(Path(new, Path(value).relative_to(old))) if inside else value

        inputs = tuple(
            one.model_copy(update={"path": moved(one.path), "files": moved(one.files)}) for one in self.inputs
        )
        return self.model_copy(update={"config": moved(self.config), "inputs": inputs})

    def settings(self, model: type[C]) -> C:
        """The config as the step's own type.

        Raises:
            ArtifactError: it was compiled for another config model.
        """
        try:
            return model.model_validate(self.config)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                f"run `{self.id}` was compiled by nemotron {self.version}, and this is {__version__}, which reads its "
                f"config otherwise: `{key}`: {first['msg'][0].lower()}{first['msg'][1:]}",
                hint=f"compile it again: `nemotron steps run {self.step}` with the same config and overrides",
            ) from None

    def to_bytes(self) -> bytes:
        """The content of ``job.json``."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def damaged_hint(path: Path) -> str:
    """What to do about a file of a run folder that is lost or damaged. Checkpoints are never to be deleted for it."""
    checkpoints = path.parent / "checkpoints"
    if not any(checkpoints.glob("step_*")):
        return f"the run folder is damaged and holds no checkpoint: put `{path.name}` back, or delete the folder"
    kept = f"the checkpoints in `{checkpoints}` are there, and a new run can begin with one"
    return f"put `{path.name}` back from a copy; {kept}"


def read_job(path: Path) -> CompiledJob:
    """Read ``job.json``.

    Raises:
        ArtifactError: it cannot be read, is damaged, or has a format that this version does not read.
    """
    origin = Origin(str(path))
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read this run: {error}", hint=damaged_hint(path), origin=origin) from error
    if not isinstance(content, dict):
        raise ArtifactError("this file is not a JSON object", origin=origin)
    if content.get("format") != FORMAT:
        raise _other_format(content, origin)
    try:
        return CompiledJob.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = f"`job.json` has the key `{key}`, which this version of nemotron ({__version__}) does not know"
        else:
            message = f"`job.json` is damaged: `{key}`: {first['msg'][0].lower()}{first['msg'][1:]}"
        hint = f"it was written by nemotron {content.get('version', 'of an unknown version')}: go on with that one"
        raise ArtifactError(message, hint=hint, origin=origin) from None


def _other_format(content: dict[str, Any], origin: Origin) -> ArtifactError:
    made = content.get("provenance")
    version = content.get("version") or (made.get("nemotron") if isinstance(made, dict) else None)
    writer = f"nemotron {version}" if isinstance(version, str) else "another version of nemotron"
    form = content.get("format")
    what = f"`job.json` has the format {form}" if "format" in content else "`job.json` has no format number"
    again = ""
    if isinstance(content.get("step"), str):
        again = (
            f"start it again with `nemotron steps run {content['step']} -c {content.get('config_name', 'CONFIG')}`, or "
        )
    return ArtifactError(
        f"{what}, this version ({__version__}) reads format {FORMAT}; {writer} wrote it",
        hint=f"{again}go on with the version that wrote it; its checkpoints can be read by any",
        origin=origin,
    )
