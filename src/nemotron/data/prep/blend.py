"""Blends: which data sets go in, with which weight, split and kind. One file format for ours and NeMo-Aligner's.

Accepted forms::

    {"datasets": [{"name": ..., "path": ..., "weight": 1.0, "split": ..., "subset": ..., "kind": ..., "fields": {...}}]}
    {"train": [...], "validation": [...], "test": [...]}         entries as above, or bare paths
    model.data.data_prefix: {train: ["prompts.jsonl"], validation: [0.3, "a.jsonl", 0.7, "b.jsonl"]}   (NeMo-Aligner)
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from nemotron.config.schema.base import Strict
from nemotron.data.forms import Kind
from nemotron.data.manifest import SPLIT_NAMES
from nemotron.errors import DataError, Origin
from nemotron.suggest import closest, listed

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".ndjson", ".parquet")
_HUB = "hf://"


class Dataset(Strict):
    """One data set of a blend."""

    path: str = Field(min_length=1)
    """File, folder, glob, or `hf://org/name@revision`."""
    name: str | None = None
    """Name in the manifest; the path unless given."""
    weight: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False, strict=False)
    """How often each row is taken, or its share of `max_rows`."""
    split: str | None = None
    """The split that these rows are; of a folder or hub data set: the one to take."""
    subset: str | None = None
    """Configuration of a hub data set."""
    revision: str | None = None
    """Commit, branch or tag of a hub data set."""
    kind: Literal["auto", "prompt", "preference", "verifier", "nemo_gym", "aligner_pairs"] = "auto"
    """Row kind; `auto` finds it row by row. `aligner_pairs`: NeMo-Aligner's alternating lines."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Field mapping, ours -> theirs, e.g. `{prompt: question_text}`."""
    text_field: str | None = None
    """Short for `fields: {prompt: ...}`; `text` needs no mapping."""

    @property
    def row_kind(self) -> Kind | None:
        """The declared kind of single rows; None finds it."""
        return None if self.kind == "auto" or self.kind == "aligner_pairs" else self.kind

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.name or self.path


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read."""

    path: Path
    """On this machine."""
    label: str
    """As the manifest names it: a path as given, or ``hf://org/name@commit/file``."""
    dataset: Dataset
    split: str | None
    """The split that its place or the blend gives it."""
    revision: str | None
    """Commit of a hub file."""

    @property
    def sort_key(self) -> tuple[str, ...]:
        """Orders sources whatever order they were given in."""
        return (self.label, self.dataset.name or "", self.split or "", self.dataset.model_dump_json())


def read_blend(source: str | Mapping[str, Any]) -> list[Dataset]:
    """Parse a blend: a mapping, a JSON or YAML file, or the path of data themselves.

    Raises:
        DataError: the file cannot be read, or is not a blend; the message names the entry.
    """
    if isinstance(source, Mapping):
        return _parse(source, Origin("blend"))
    if _is_data(source):
        return [Dataset(path=source)]
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    origin = Origin(source)
    path = Path(source).expanduser()
    try:
        value = YAML(typ="safe", pure=True).load(io.StringIO(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(f"there is no blend file `{source}`", hint="check `blend_path`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the blend `{source}`: {error}", origin=origin) from error
    except YAMLError as error:
        raise DataError(f"the blend is neither JSON nor YAML: {str(error).splitlines()[0]}", origin=origin) from error
    if not isinstance(value, Mapping):
        raise DataError("a blend must be a mapping with `datasets`, or with splits", origin=origin)
    return [_relative_to(path.parent, dataset) for dataset in _parse(value, origin)]


def _is_data(source: str) -> bool:
    data = (".jsonl", ".gz", ".zst", ".ndjson", ".parquet")
    return (
        source.startswith(_HUB) or source.endswith(data) or glob.has_magic(source) or Path(source).expanduser().is_dir()
    )


def _relative_to(folder: Path, dataset: Dataset) -> Dataset:
    """Paths in a blend file are looked up beside it, and then in the working folder."""
    if dataset.path.startswith((_HUB, "~", "/")) or not (folder / dataset.path).exists():
        return dataset
    return dataset.model_copy(update={"path": os.path.normpath(folder / dataset.path)})


def _parse(value: Mapping[str, Any], origin: Origin) -> list[Dataset]:
    value = _aligner_prefix(value)
    splits = {name: SPLIT_NAMES.get(name, name) for name in value if name != "datasets"}
    if "datasets" in value:
        if splits:
            extra = listed(sorted(splits))
            raise DataError(f"a blend has either `datasets` or splits, this one also has {extra}", origin=origin)
        return [_dataset(entry, f"datasets.{i}", origin) for i, entry in enumerate(_list(value, "datasets", origin))]
    # Splits may have names of their own; a lone word that is nearly a known key is a slip.
    unknown = [
        name for name in splits if name not in SPLIT_NAMES and (len(splits) == 1 or not isinstance(value[name], list))
    ]
    if unknown or not splits:
        guess = closest(unknown[0], ["datasets", *SPLIT_NAMES]) if unknown else None
        what = f"unknown key `{unknown[0]}` in the blend" if unknown else "the blend is empty"
        hint = (
            f"did you mean `{guess}`?" if guess else "give `datasets: [...]`, or `train: [...]` and `validation: [...]`"
        )
        raise DataError(what, hint=hint, origin=origin)
    found = []
    for name, split in splits.items():
        for where, weight, entry in _weighted(_list(value, name, origin), name, origin):
            dataset = _dataset(entry, where, origin)
            found.append(dataset.model_copy(update={"split": dataset.split or split, **weight}))
    return found


def _aligner_prefix(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping below NeMo-Aligner's key, written in one piece or nested; other mappings as they are."""
    for path in (
        ("model.data.data_prefix",),
        ("model", "data", "data_prefix"),
        ("data", "data_prefix"),
        ("data_prefix",),
    ):
        at: Any = value
        for name in path:
            at = at.get(name) if isinstance(at, Mapping) else None
        if isinstance(at, Mapping):
            return at
    return value


def _list(value: Mapping[str, Any], name: str, origin: Origin) -> list[Any]:
    entries = value[name]
    if isinstance(entries, str | Mapping):
        return [entries]
    if not isinstance(entries, list) or not entries:
        raise DataError(f"`{name}` of the blend must be a list of data sets", origin=origin)
    return entries


def _weighted(entries: list[Any], name: str, origin: Origin) -> Iterator[tuple[str, dict[str, float], Any]]:
    """Entries with the weight that NeMo-Aligner writes before a path: ``[0.3, "a", 0.7, "b"]``."""
    weight: dict[str, float] = {}
    for i, entry in enumerate(entries):
        number = _number(entry)
        if number is not None:
            if weight:
                raise DataError(f"`{name}.{i}` is a weight that follows a weight", origin=origin)
            weight = {"weight": number}
            continue
        yield f"{name}.{i}", weight, entry
        weight = {}
    if weight:
        raise DataError(f"the last weight of `{name}` has no path", origin=origin)


def _number(entry: Any) -> float | None:
    if isinstance(entry, bool) or not isinstance(entry, str | int | float):
        return None
    try:
        return float(entry)
    except ValueError:
        return None


def _dataset(entry: Any, where: str, origin: Origin) -> Dataset:
    try:
        found = Dataset.model_validate({"path": entry} if isinstance(entry, str) else entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        guess = closest(key, list(Dataset.model_fields)) if first["type"] == "extra_forbidden" else None
        message = (
            f"unknown key `{where}.{key}`"
            if guess or first["type"] == "extra_forbidden"
            else f"`{where}.{key}`: {first['msg']}"
        )
        raise DataError(message, hint=f"did you mean `{guess}`?" if guess else None, origin=origin) from error
    if found.text_field not in (None, "text"):
        found = found.model_copy(update={"fields": {"prompt": found.text_field, **found.fields}})
    return found


def expand(dataset: Dataset) -> list[SourceFile]:
    """The files of a data set. Splits of files in a folder or glob are read from their names.

    Raises:
        DataError: nothing is there, or nothing of the split that is asked for.
    """
    if dataset.path.startswith(_HUB):
        from nemotron.data.prep.hub import hub_files

        return hub_files(dataset)
    path = Path(dataset.path).expanduser()
    if path.is_file():
        given = _split_name(dataset.split) or split_of(path.name)
        return [SourceFile(path, dataset.path, dataset, given, None)]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and is_data_file(p.name) and not _hidden(p, path))
    else:
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
    if not files:
        what = "does not exist" if not path.exists() and not glob.has_magic(dataset.path) else "holds no data files"
        raise DataError(f"`{dataset.path}` {what}", hint=f"data files end in {listed(SUFFIXES)}")
    base = path if path.is_dir() else None
    return choose_split(
        dataset,
        [
            SourceFile(file, str(file), dataset, split_of(str(file.relative_to(base)) if base else file.name), None)
            for file in files
        ],
    )


def choose_split(dataset: Dataset, files: list[SourceFile]) -> list[SourceFile]:
    """The files of the split that the blend asks for; all of them where it asks for none.

    Raises:
        DataError: the split is not among those the files have.
    """
    wanted = _split_name(dataset.split)
    if wanted is None:
        return files
    names = {file.split for file in files}
    if names == {None}:
        return [SourceFile(f.path, f.label, dataset, wanted, f.revision) for f in files]
    chosen = [file for file in files if file.split == wanted]
    if not chosen:
        have = listed(sorted(name for name in names if name))
        raise DataError(f"`{dataset.label}` has no split `{dataset.split}`", hint=f"it has {have}")
    return chosen


def _split_name(name: str | None) -> str | None:
    return SPLIT_NAMES.get(name, name) if name else None


def split_of(name: str) -> str | None:
    """The split that a file name or a folder in its path says, e.g. ``data/train-00000-of-00002.parquet``."""
    parts = Path(name).parts
    for part in (parts[-1].split(".")[0], *reversed(parts[:-1])):
        words = part.lower().replace("_", "-").split("-")
        for word in (words[0], words[-1]):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    return None


def is_data_file(name: str) -> bool:
    """Whether a name ends like a data file."""
    return name.endswith(SUFFIXES)


def _hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)
