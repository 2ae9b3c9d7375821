"""The chain of data, judge, models, configs and code that made an artifact: from its run, or the record beside it, to
those of its inputs, and on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemotron.artifacts.kinds import recognise
from nemotron.artifacts.record import read_record
from nemotron.disk.home import expanded
from nemotron.errors import ArtifactError
from nemotron.job import FILE, CompiledJob, Provenance, read_job


@dataclass(frozen=True, slots=True)
class Making:
    """How something was made."""

    step: str
    run: str | None
    config: str | None
    """SHA-256 of the config."""
    nemotron: str | None
    code: str | None
    """Hash of our source."""
    commit: str | None
    """Of the folder in which the command was given, with a mark where it had changes."""


@dataclass(frozen=True, slots=True)
class Link:
    """One artifact of a chain."""

    key: str | None
    """The config key that took it; None of the artifact that was asked about."""
    type: str
    path: str
    fingerprint: str | None
    """As it was when it was read or made."""
    made: Making | None
    """None for what came from outside."""
    inputs: tuple[Link, ...] = ()
    again: bool = False
    """Its inputs stand with the first mention of it."""

    def to_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self)


def lineage(path: Path) -> Link:
    """The chain that ends in the artifact at ``path``.

    Raises:
        ArtifactError: there is nothing, or nothing known.
    """
    path = expanded(path).absolute()
    if not path.exists():
        raise ArtifactError(f"there is nothing at `{path}`", hint="check the path")
    return _link(path, recognise(path), None, None, set())


def origins(job: CompiledJob) -> tuple[Link, ...]:
    """The chains that end in the inputs of a job, of those that something of ours has made."""
    seen: set[str] = set()
    links = (_link(Path(one.path), one.type, one.key, one.fingerprint, seen) for one in job.inputs)
    return tuple(link for link in links if link.made is not None)


def lines(link: Link, depth: int = 0) -> Iterator[str]:
    """The chain as indented text, what was made first and its inputs below it."""
    pad = "  " * depth
    name = f"{link.key}: " if link.key else ""
    digest = f"  {link.fingerprint[:19]}" if link.fingerprint else ""
    yield f"{pad}{name}{link.path} ({link.type}){digest}"
    if (made := link.made) is not None:
        facts = [f"run {made.run}" if made.run else None, f"config {made.config[:12]}" if made.config else None]
        facts += [f"nemotron {made.nemotron}" if made.nemotron else None, f"code {made.code}" if made.code else None]
        facts += [f"commit {made.commit}" if made.commit else None]
        again = ", see above" if link.again else ""
        yield f"{pad}  made by {', '.join([made.step, *filter(None, facts)])}{again}"
    for one in link.inputs:
        yield from lines(one, depth + 2)


def _link(path: Path, kind: str, key: str | None, fingerprint: str | None, seen: set[str]) -> Link:
    found = _run_of(path)
    record = None if found is not None else read_record(path if path.is_dir() else path.parent)
    if found is not None:
        job = found
        made = _making(job.step, job.id, job.fingerprint, job.provenance)
        given = [(one.key, one.type, one.path, one.fingerprint) for one in job.inputs]
    elif record is not None:
        made, given = _of_record(record)
        fingerprint = fingerprint or record.get("fingerprint")
    else:
        return Link(key, kind, str(path), fingerprint, None)
    mark = made.run or str(path)
    if mark in seen:
        return Link(key, kind, str(path), fingerprint, made, again=True)
    seen.add(mark)
    inputs = tuple(_link(Path(one), type_, name, digest, seen) for name, type_, one, digest in given)
    return Link(key, kind, str(path), fingerprint, made, inputs)


def _run_of(path: Path) -> CompiledJob | None:
    """The job of the run that an artifact lies in."""
    for folder in (path.resolve(), *path.resolve().parents):
        if (folder / FILE).is_file() and (folder / "status.json").is_file():
            try:
                return read_job(folder / FILE).at(folder)
            except ArtifactError:
                return None  # another version's: the record beside the artifact says what is known
    return None


def _of_record(record: Mapping[str, Any]) -> tuple[Making, list[tuple[str, str, str, str | None]]]:
    made = record.get("provenance")
    made = made if isinstance(made, dict) else {}
    git = made.get("git") if isinstance(made.get("git"), dict) else {}
    making = Making(
        step=str(record.get("step", "?")),
        run=record.get("run"),
        config=record.get("config_fingerprint"),
        nemotron=made.get("nemotron"),
        code=made.get("code"),
        commit=_commit(git.get("sha"), dirty=bool(git.get("dirty"))) if git else None,
    )
    inputs = [one for one in record.get("inputs", ()) if isinstance(one, dict) and "path" in one]
    given = [
        (str(one.get("key", "source")), str(one.get("type", "?")), str(one["path"]), one.get("fingerprint"))
        for one in inputs
    ]
    return making, given


def _making(step: str, run: str, config: str, made: Provenance) -> Making:
    commit = _commit(made.git.sha, dirty=made.git.dirty) if made.git is not None else None
    return Making(step, run, config, made.nemotron, made.code, commit)


def _commit(sha: str | None, *, dirty: bool) -> str | None:
    return f"{sha[:12]}{' with local changes' if dirty else ''}" if sha else None
