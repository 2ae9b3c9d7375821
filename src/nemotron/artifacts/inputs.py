"""The inputs of a run: named when the job is compiled, read and hashed beside the work."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from nemotron.artifacts.fingerprint import fingerprint, fingerprint_files
from nemotron.artifacts.kinds import recognise
from nemotron.job import CompiledJob, Input
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


def named_inputs(files: Iterable[FileLike]) -> tuple[Input, ...]:
    """Key, path and artifact type of every input that is a file or folder of this machine; nothing is hashed.

    Prepared data are the manifest, and an entry with ``files`` for each split: the shards.

    Raises:
        ArtifactError: an input is no artifact.
    """
    found: list[Input] = []
    for file in files:
        path = Path(file.path).expanduser()
        if file.files:
            found += _prepared(file, path, found)
        elif path.exists():
            # A file that a config names is data, whatever its name ends in.
            kind = "training_jsonl" if path.is_file() else recognise(path)
            found.append(Input(key=file.key or file.role, type=kind, path=file.path))
    return tuple(found)


def _prepared(file: FileLike, manifest: Path, before: Sequence[Input]) -> Iterator[Input]:
    """The manifest, unless it stands in ``before``, and the shards of one of its splits."""
    name = str(manifest / "manifest.json" if manifest.is_dir() else manifest)
    if not any(entry.path == name for entry in before):
        yield Input(key="data.manifest_path", type="training_jsonl", path=name)
    yield Input(key=file.role, type="training_jsonl", path=file.files[0], files=file.files)


def hashed(one: Input, progress: Callable[[int], None] | None = None) -> Input:
    """``one`` with its fingerprint; ``progress`` gets the bytes of every file that was read.

    Raises:
        ArtifactError: it cannot be read, or is no artifact any more.
    """
    if one.files:
        content = fingerprint_files([Path(name) for name in one.files], progress)
    else:
        path = Path(one.path).expanduser()
        # Of a folder the kind is asked again: it says which of its files count.
        content = fingerprint(path, "training_jsonl" if path.is_file() else None, progress=progress)
    return one.model_copy(update={"fingerprint": content})


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
        size = sum(_bytes(one) for one in self._job.inputs)
        if size > WORTH_SAYING:
            print(f"hashing {size / 2**30:.1f} GiB of inputs beside the work", file=sys.stderr)
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


def _bytes(one: Input) -> int:
    paths = [Path(name) for name in one.files] or [Path(one.path).expanduser()]
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]))
    return sum(file.stat().st_size for file in files if file.is_file())
