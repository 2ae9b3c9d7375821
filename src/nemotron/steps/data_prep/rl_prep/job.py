"""What the rules know of a data preparation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron.compile.jobs.step import PlainJob
from nemotron.compile.plan import FileRef, Process
from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.manifest import FILE as MANIFEST
from nemotron.disk.home import expanded
from nemotron.errors import NemotronError
from nemotron.promises import DataPromise, Promise

if TYPE_CHECKING:
    from nemotron.data.prep.blend import Dataset, SourceFile

HUB = "hf://"
PACKAGES = ("orjson", "xxhash", "numpy")
"""Packages without which nothing of this can be imported; the functions below import the rest when they are called."""


@dataclass(frozen=True)
class PrepJob(PlainJob[DataPrepConfig]):
    """Sources to shards."""

    @property
    def ready(self) -> bool:
        """Whether the packages are here that looking needs."""
        return all(find_spec(name) for name in PACKAGES)

    @property
    def unseen_blend(self) -> str | None:
        """`blend_path`, where only the job can look whether it is a blend."""
        path = self.config.blend_path
        return None if path is None or path.startswith(HUB) or self.sees(path) else path

    def looked_at(self, dataset: Dataset) -> bool:
        """Whether the files of a data set can be looked at from here."""
        return not dataset.path.startswith(HUB) and self.sees(dataset.path)

    @property
    def key(self) -> str:
        """The key that names the sources."""
        return "blend_path" if self.config.blend_path is not None else "blend"

    def key_of(self, dataset: Dataset) -> str:
        """The key under which a data set stands in the config; its file's, where the blend is one."""
        blend = self.config.blend.model_dump() if self.config.blend is not None else {}
        return next(_leaves(blend, self.key, dataset.path), self.key)

    @property
    def unseen(self) -> list[Dataset]:
        """Data sets in folders that only the job can look at; one of them may be a file that holds a blend."""
        return [one for one in self.read[0] if not one.path.startswith(HUB) and not self.looked_at(one)]

    @cached_property
    def read(self) -> tuple[list[Dataset], NemotronError | None]:
        """The blend, or why there is none; what cannot be looked at is taken for data."""
        from nemotron.data.prep.blend import Dataset, read_blend

        config = self.config
        if (config.blend_path is None) == (config.blend is None):
            return [], None
        if self.unseen_blend is not None:
            return [Dataset(path=self.unseen_blend)], None
        if not self.ready:
            return [], None
        try:
            return read_blend(config.blend_path or (config.blend.model_dump() if config.blend else {})), None
        except NemotronError as problem:
            return [], problem

    @cached_property
    def sources(self) -> tuple[list[SourceFile], list[tuple[Dataset, NemotronError]]]:
        """The files of the blend that can be looked at, and what is wrong with the other data sets."""
        from nemotron.data.prep.blend import expand

        found: list[SourceFile] = []
        problems: list[tuple[Dataset, NemotronError]] = []
        for dataset in self.read[0]:
            try:
                # A plan opens no connection.
                found += expand(dataset) if self.looked_at(dataset) else []
            except NemotronError as problem:
                problems.append((dataset, problem))
        return found, problems

    @property
    def all_here(self) -> bool:
        """Whether every source can be looked at: none is one of the hub, or lies where only the job can look."""
        return all(map(self.looked_at, self.read[0]))

    def folders(self) -> dict[str, tuple[str, Path]]:
        """Run folder and output."""
        output = expanded(self.config.output_dir).absolute()
        return {**super().folders(), "output folder": ("output_dir", output)}

    def processes(self) -> Iterator[Process]:
        """This one, and its helpers."""
        if self.read[0]:
            from nemotron.data.prep.prepare import processes_of

            helpers = processes_of(self.config) - 1
            extra = f" and {helpers} helper{'s' if helpers > 1 else ''}" if helpers else ""
            yield Process("data", f"this process{extra}: read, check, sort, write")

    def promises(self) -> Iterator[Promise]:
        """The shards and their manifest."""
        from nemotron.data.prep.foresight import kind_of, splits_of

        sources, problems = self.sources
        known = self.ready and not problems and self.all_here
        kind = kind_of(sources) if known and sources else None
        splits = splits_of(self.config, sources) if known and sources else None
        yield DataPromise("prepared_data", kind, splits, self.config.tokenize is not None)

    def inputs(self) -> Iterator[FileRef]:
        """Every file, and what is fetched from the hub."""
        for dataset in self.read[0]:
            if not self.looked_at(dataset):
                promised = self.place.promise(dataset.path) is not None
                unseen = "made before this runs" if promised else f"on `{self.place.name}`"
                detail = "Hugging Face hub" if dataset.path.startswith(HUB) else unseen
                yield FileRef(f"{dataset.split or 'all'} rows", self.key, dataset.path, detail)
        files = self.sources[0]
        if files:
            from nemotron.data.prep.reading import size_of

            for file in files:
                yield FileRef(f"{file.split or 'all'} rows", self.key, file.label, f"{size_of(file):,} bytes")

    def outputs(self) -> Iterator[FileRef]:
        """Shards, manifest, rejects."""
        output = Path(self.config.output_dir)
        yield FileRef("shards", "output_dir", str(output), f"{self.config.num_shards_per_split} per split")
        detail = "every shard with rows, bytes, SHA-256; every source"
        yield FileRef("manifest", None, str(output / MANIFEST), detail)
        detail = "every line that is not used, with its reason"
        yield FileRef("rejects", None, str(output / "rejects.jsonl"), detail)


def _leaves(value: Any, key: str, wanted: str) -> Iterator[str]:
    """Keys of what is ``wanted`` in a value."""
    if isinstance(value, str) and value == wanted:
        yield key
    elif isinstance(value, Mapping):
        for name, child in value.items():
            yield from _leaves(child, f"{key}.{name}", wanted)
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _leaves(child, f"{key}.{number}", wanted)
