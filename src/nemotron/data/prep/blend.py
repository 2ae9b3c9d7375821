"""Blends: which data sets go in, with which weight, split and kind. One file format for ours and NeMo-Aligner's.

Accepted forms::

    {"datasets": [{"name": ..., "path": ..., "weight": 1.0, "split": ..., "subset": ..., "kind": ..., "fields": {...}}]}
    {"train": [...], "validation": [...], "test": [...]}         entries as above, or bare paths
    model.data.data_prefix: {train: ["prompts.jsonl"], validation: [0.3, "a.jsonl", 0.7, "b.jsonl"]}   (NeMo-Aligner)
"""

from __future__ import annotations

import codecs
import glob
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from nemotron.config.origins import plain
from nemotron.config.schema.base import Strict
from nemotron.config.yaml import parse_yaml
from nemotron.data.content import FOREIGN_SUFFIXES, LINE_SUFFIXES, PACKED_SUFFIXES, bare_suffix, head_of, layout_of
from nemotron.data.forms import Kind, filled, find_form
from nemotron.data.manifest import SPLIT_NAMES
from nemotron.disk.documents import MalformedError, parse_json, read_bytes, read_json
from nemotron.disk.faults import reason
from nemotron.disk.home import expanded
from nemotron.disk.walk import files_below, links_below
from nemotron.errors import ConfigError, DataError, Origin
from nemotron.suggest import closest, listed

_TEXTS = (*LINE_SUFFIXES, ".json")
SUFFIXES = (*_TEXTS, ".parquet", *(f"{end}{packed}" for end in _TEXTS for packed in PACKED_SUFFIXES))
LARGEST_BLEND = 1 << 20
"""Bytes. A blend names files; what is larger holds rows."""
_BLEND_KEYS = frozenset({"datasets", "data_prefix", "model.data.data_prefix", *SPLIT_NAMES})
_YAML = (".yaml", ".yml")
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
    """Parse a blend: a mapping, a JSON or YAML file, or the path of data themselves, told apart by what is in them.

    Raises:
        DataError: the file cannot be read, or is not a blend; the message names the entry.
    """
    if isinstance(source, Mapping):
        return _parse(source, Origin("blend"))
    if names_data(source) or expanded(source).is_dir():
        return [Dataset(path=source)]
    path = expanded(source)
    if not path.exists():
        raise DataError(f"there is no blend file `{source}`", hint="check `blend_path`")
    value = _document(path, source)
    if value is None:
        return [Dataset(path=source)]
    if not isinstance(value, Mapping):
        raise DataError("a blend must be a mapping with `datasets`, or with splits", origin=Origin(source))
    return [_relative_to(path.parent, dataset) for dataset in _parse(value, Origin(source))]


def names_data(source: str) -> bool:
    """Whether a name is one of data, whatever is in them."""
    by_name = (*LINE_SUFFIXES, ".parquet", *FOREIGN_SUFFIXES)
    packed = source.lower().endswith(PACKED_SUFFIXES)
    return source.startswith(_HUB) or packed or bare_suffix(source) in by_name or glob.has_magic(source)


def _document(path: Path, source: str) -> Any:
    """The mapping in a file that may be a blend; None where it holds rows. JSON is tried first: it is quick to refuse.

    Raises:
        DataError: it cannot be read, or is neither a blend nor rows.
    """
    origin = Origin(source)
    head = head_of(path).lstrip()
    if path.suffix.lower() not in _YAML and (head.startswith(b"[") or layout_of(path) == "parquet"):
        return None
    size = path.stat().st_size
    if head.startswith(b"{") and size > LARGEST_BLEND:
        return None
    try:
        content = read_bytes(path, LARGEST_BLEND).removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise DataError(f"cannot read the blend `{source}`: {error.strerror or error}", origin=origin) from error
    try:
        value = parse_json(content)
    except MalformedError as problem:
        if path.suffix.lower() not in _YAML and _are_rows(content):
            return None
        return _yaml(content, origin, problem)
    if isinstance(value, dict) and find_form(filled(value)) is not None and not _BLEND_KEYS & value.keys():
        # A file of one row.
        return None
    return value


def _are_rows(content: bytes) -> bool:
    """Whether a text that is not one JSON value begins with a whole object, so that others follow it."""
    try:
        value, _ = json.JSONDecoder().raw_decode(content.decode().lstrip())
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _yaml(content: bytes, origin: Origin, problem: MalformedError) -> Any:
    try:
        root = parse_yaml(content.decode("utf-8-sig"), origin)
    except UnicodeDecodeError as error:
        raise DataError(f"the blend is not UTF-8 text: {error.reason}", origin=origin) from error
    except ConfigError as error:
        told = f"it {problem.message}; {error.message}"
        raise DataError(f"the blend is neither JSON nor YAML: {told}", origin=error.origin or origin) from error
    return None if root is None else plain(root)


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
        rows = value.get(unknown[0]) if unknown else None
        if isinstance(rows, list) and rows and isinstance(rows[0], dict) and find_form(filled(rows[0])) is not None:
            hint = f"`jq -c '.{unknown[0]}[]' FILE > rows.jsonl` writes them one per line"
            raise DataError(f"this is no blend: there are rows inside `{unknown[0]}`", hint=hint, origin=origin)
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
    path = expanded(dataset.path)
    if path.is_file():
        given = _split_name(dataset.split) or split_of(path.name)
        return [SourceFile(path, dataset.path, dataset, given, None)]
    files = _files(dataset)
    if not files:
        raise _nothing(dataset, path)
    base = path if path.is_dir() else None
    return choose_split(
        dataset,
        [
            SourceFile(file, str(file), dataset, split_of(str(file.relative_to(base)) if base else file.name), None)
            for file in files
        ],
    )


def _files(dataset: Dataset) -> list[Path]:
    """The data files of a folder or glob."""
    path = expanded(dataset.path)
    if path.is_dir():
        return [file for file in _below(path) if _holds_rows(file)]
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    if "**" in path.parts and fixed.is_dir():
        # It goes everywhere below, so how much that is has to be known before.
        _below(fixed)
    return sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))


def _below(folder: Path) -> list[Path]:
    """The files below a folder that nobody hides."""
    try:
        return [file for file in files_below(folder) if not _hidden(file, folder)]
    except OSError as error:
        raise DataError(
            f"`{error.filename or folder}` cannot be looked at: {reason(error)}",
            hint=f"name the folder below `{folder}` that holds the data",
        ) from error


def _holds_rows(file: Path) -> bool:
    """Whether a file of a folder is one of its data."""
    return is_data_file(file.name) and not _is_about_data(file)


def _is_about_data(path: Path) -> bool:
    """Whether a `.json` file is one object that is no row, as libraries write them beside the rows."""
    if bare_suffix(path) != ".json" or path.stat().st_size > LARGEST_BLEND or not path.name.lower().endswith(".json"):
        return False
    try:
        value = read_json(path)
    except (OSError, MalformedError):
        # Whatever it is, reading it as rows says so.
        return False
    return isinstance(value, dict) and find_form(filled(value)) is None


def left_out(dataset: Dataset) -> list[str]:
    """What of a data set's folder or glob is not read, by its name; nothing of a single file or the hub.

    Links to folders are not followed: they may lead back, or to what is meant for another split.
    """
    path = expanded(dataset.path)
    if dataset.path.startswith(_HUB) or path.is_file():
        return []
    if not path.is_dir():
        return sorted(name for name in glob.glob(str(path), recursive=True) if not os.path.isfile(name))
    others = [file for file in _below(path) if not _holds_rows(file)]
    links = [link for link in links_below(path) if not _hidden(link, path)]
    return sorted(str(file.relative_to(path)) for file in (*others, *links))


def _nothing(dataset: Dataset, path: Path) -> DataError:
    """Why a data set has no files."""
    others = left_out(dataset)
    hint = f"data files end in {listed(SUFFIXES)}"
    if others:
        hint = f"it has {listed(others[:4])}{' ...' if len(others) > 4 else ''}; {hint}"
        foreign = next((name for name in others if bare_suffix(name) in FOREIGN_SUFFIXES), None)
        hint = f"{FOREIGN_SUFFIXES[bare_suffix(foreign)][1]}; {hint}" if foreign is not None else hint
    if path.exists() and not path.is_dir():
        return DataError(f"`{dataset.path}` is not a regular file", hint="name a file, a folder or a glob")
    what = "does not exist" if not path.exists() and not glob.has_magic(dataset.path) else "holds no data files"
    return DataError(f"`{dataset.path}` {what}", hint=hint)


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
    return name.lower().endswith(SUFFIXES)


def _hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)
