"""The inputs of a run: named when the job is compiled, read and hashed beside the work, and again before it goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from nemotron.artifacts.fingerprint import fingerprint, fingerprint_files
from nemotron.artifacts.kinds import artifact_files, recognise
from nemotron.data.manifest import manifest_file
from nemotron.disk.home import expanded
from nemotron.errors import ArtifactError
from nemotron.job import Changed, CompiledJob, Input
from nemotron.runs.folder import RunFolder

WORTH_SAYING = 1 << 30
"""Bytes whose hashing takes so long that somebody would ask what is going on."""


class FileLike(Protocol):
    """What the plan says about an input."""

    @property
    def role(self) -> str: ...
    @property
    def key(self) -> str | None: ...
    @property
    def path(self) -> str: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    @property
    def loose(self) -> bool: ...


def named_inputs(files: Iterable[FileLike]) -> tuple[Input, ...]:
    """Key, absolute path and artifact type of every input that is on this machine; nothing is hashed.

    Prepared data are the manifest, and an entry with ``files`` for each split: the shards.

    Raises:
        ArtifactError: an input is no artifact.
    """
    found: list[Input] = []
    for file in files:
        path = expanded(file.path).absolute()
        names = tuple(str(expanded(name).absolute()) for name in file.files)
        if file.loose:
            found.append(Input(key=file.key or file.role, type="files", path=str(path), files=names))
        elif names:
            found += _prepared(file, names, path, found)
        elif path.exists():
            # A file that a config names is data, whatever its name ends in.
            kind = "training_jsonl" if path.is_file() else recognise(path)
            found.append(Input(key=file.key or file.role, type=kind, path=str(path)))
    return tuple(found)


def _prepared(file: FileLike, files: tuple[str, ...], manifest: Path, before: Sequence[Input]) -> Iterator[Input]:
    """The manifest, unless it stands in ``before``, and the shards of one of its splits."""
    name = str(manifest_file(manifest))
    if not any(entry.path == name for entry in before):
        yield Input(key="data.manifest_path", type="training_jsonl", path=name)
    yield Input(key=file.role, type="training_jsonl", path=files[0], files=files)


def hashed(one: Input, progress: Callable[[int], None] | None = None) -> Input:
    """``one`` with its fingerprint; ``progress`` gets the bytes of every file that was read.

    Raises:
        ArtifactError: it cannot be read, or is no artifact any more.
    """
    if one.files:
        content = fingerprint_files([Path(name) for name in one.files], progress)
    else:
        path = expanded(one.path)
        # Of a folder the kind is asked again: it says which of its files count. Only of rows all do.
        rows = path.is_file() or one.type == "training_jsonl"
        content = fingerprint(path, "training_jsonl" if rows else None, progress=progress)
    return one.model_copy(update={"fingerprint": content})


def changed_inputs(job: CompiledJob) -> tuple[Changed, ...]:
    """The inputs that are not what the run began with: those whose content is known are read again.

    Raises:
        ArtifactError: one cannot be read any more.
    """
    known = [one for one in job.inputs if one.fingerprint]
    _say_if_much(known, "looking again at")
    seen: dict[tuple[str, tuple[str, ...]], str] = {}
    found = []
    for one in known:
        try:
            if (place := (one.path, one.files)) not in seen:
                seen[place] = hashed(one).fingerprint or ""
            now = seen[place]
        except ArtifactError as error:
            message = f"`{one.key}` was read when this run began, and cannot be now: {error.message}"
            raise ArtifactError(message, hint=f"put `{one.path}` back as it was, or start a new run") from error
        if now != one.fingerprint:
            found.append(Changed(key=one.key, path=one.path, was=one.fingerprint or "", now=now))
    return tuple(found)


def refuse_changed(run: str, changed: Sequence[Changed]) -> ArtifactError:
    """Why a run does not go on with inputs that are not its own."""
    names = ", ".join(f"`{one.key}` ({one.path})" for one in changed)
    be = "is" if len(changed) == 1 else "are"
    return ArtifactError(
        f"run `{run}` cannot go on as it began: {names} {be} not what it was then",
        hint="put it back as it was, or start a new run; `--accept-changed-inputs` goes on with what is there now, and "
        "the run keeps a note of it",
    )


class Hashing:
    """Hashes the inputs of a run in a thread of its own, and completes ``job.json`` when they are known.

    Example::

        with Hashing(run, job) as hashing:
            ...  # load models, sample, train
            hashing.wait()  # before the first checkpoint is written
    """

    def __init__(self, run: RunFolder, job: CompiledJob) -> None:
        self._run, self._job = run, job
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="inputs")
        self._hashed: Future[tuple[Input, ...]] | None = None
        self._given_up = threading.Event()

    def __enter__(self) -> Self:
        _say_if_much([one for one in self._job.inputs if not one.fingerprint], "hashing beside the work")
        self._hashed = self._pool.submit(self._complete)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        # A run that failed has no use for the rest: it ends with the file that is being read.
        self._given_up.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def wait(self) -> tuple[Input, ...]:
        """The inputs with their hashes.

        Raises:
            ArtifactError: one of them cannot be read.
            OutputError: ``job.json`` cannot be written.
        """
        if self._hashed is None:
            raise RuntimeError("the inputs are asked for outside of the `with` block")
        return self._hashed.result()

    def _complete(self) -> tuple[Input, ...]:
        inputs = tuple(one if one.fingerprint else hashed(one, self._go_on) for one in self._job.inputs)
        if inputs != self._job.inputs:
            self._run.write_job(self._job.model_copy(update={"inputs": inputs}))
        return inputs

    def _go_on(self, read: int) -> None:
        if self._given_up.is_set():
            raise CancelledError


def _say_if_much(inputs: Sequence[Input], what: str) -> None:
    size = sum(map(_bytes, inputs))
    if size > WORTH_SAYING:
        print(f"{what}: {size / 2**30:.1f} GiB of inputs", file=sys.stderr)


def _bytes(one: Input) -> int:
    paths = [Path(name) for name in one.files] or [expanded(one.path)]
    found = (file for path in paths for file in (artifact_files(path) if path.is_dir() else [path]))
    return sum(file.stat().st_size for file in found if file.is_file())
