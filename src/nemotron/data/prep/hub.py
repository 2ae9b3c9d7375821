"""Data sets on the Hugging Face hub: files of one commit, through huggingface_hub and its cache.

The files themselves are read, not rows that a library made of them, so rows keep their bytes. Splits and subsets come
from the data set's card where it says so, else from the names of files and folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from nemotron.config.origins import plain
from nemotron.config.yaml import parse_yaml
from nemotron.data.manifest import SPLIT_NAMES
from nemotron.data.prep.blend import Dataset, SourceFile, choose_split, is_data_file, split_of
from nemotron.disk.documents import read_bytes
from nemotron.disk.walk import files_below
from nemotron.errors import ConfigError, DataError, NotAvailableError, Origin
from nemotron.install import install_extra
from nemotron.suggest import closest, listed


def parse_hub_path(path: str, revision: str | None) -> tuple[str, str | None, str]:
    """``(repository, revision, file or folder inside)`` of ``hf://org/name@revision/inside``.

    Raises:
        DataError: not of that form, or two different revisions.
    """
    parts = path.removeprefix("hf://").removeprefix("datasets/").split("/", 2)
    if len(parts) < 2 or not all(parts[:2]):
        raise DataError(f"`{path}` is not a hub data set", hint="write `hf://org/name@revision`")
    name, _, pinned = parts[1].partition("@")
    if pinned and revision and pinned != revision:
        raise DataError(f"`{path}` is pinned to `{pinned}` and its `revision` is `{revision}`", hint="give one of them")
    return f"{parts[0]}/{name}", pinned or revision, parts[2] if len(parts) > 2 else ""


def hub_files(dataset: Dataset) -> list[SourceFile]:
    """Download (or find in the cache) the data files of a hub data set.

    Raises:
        DataError: it cannot be reached and is not in the cache, or has no data files of that subset and split.
        NotAvailableError: `huggingface_hub` is not installed.
    """
    repo, revision, inside = parse_hub_path(dataset.path, dataset.revision)
    commit, names = _list_files(repo, revision)
    data = [name for name in names if is_data_file(name) and name.startswith(inside)]
    splits = _splits(repo, commit, names, data, dataset.subset)
    if not splits:
        hint = f"it has {listed(sorted(names)[:8])}; rows are read from JSON lines, JSON arrays and Parquet"
        raise DataError(f"`{dataset.label}` has no data files" + (f" in `{inside}`" if inside else ""), hint=hint)
    found = [
        SourceFile(Path(name), f"hf://{repo}@{commit}/{name}", dataset, split, commit) for name, split in splits.items()
    ]
    chosen = choose_split(dataset, found)
    return [
        SourceFile(_download(repo, commit, str(file.path)), file.label, dataset, file.split, commit) for file in chosen
    ]


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        hint = install_extra("data")
        raise NotAvailableError("`hf://` data sets need the package `huggingface_hub`", hint=hint) from error
    return huggingface_hub


def _errors() -> tuple[type[Exception], ...]:
    """What the library raises: OSError, ValueError, and the errors of the HTTP library that it happens to use."""
    from huggingface_hub.errors import HfHubHTTPError

    http = [kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind is not Exception]
    return (OSError, ValueError, *http)


def _list_files(repo: str, revision: str | None) -> tuple[str, list[str]]:
    """Commit and file names of a data set; without a connection, of the snapshot in the cache."""
    library = _library()
    try:
        info = library.HfApi().dataset_info(repo, revision=revision, timeout=30)
        return str(info.sha), sorted(file.rfilename for file in info.siblings or [])
    except _errors() as error:
        # Whichever it was, the cache may still have it all.
        cached = _cached(library, repo, revision)
        if cached is not None:
            return cached
        raise _unreachable(repo, revision, error) from error


def _cached(library: Any, repo: str, revision: str | None) -> tuple[str, list[str]] | None:
    try:
        folder = Path(library.snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder.name, [str(path.relative_to(folder)) for path in files_below(folder)]


def _download(repo: str, commit: str, name: str) -> Path:
    library = _library()
    try:
        return Path(library.hf_hub_download(repo, name, repo_type="dataset", revision=commit))
    except _errors() as error:
        raise _unreachable(f"{repo}/{name}", commit, error) from error


def _unreachable(what: str, revision: str | None, error: Exception) -> DataError:
    at = f" at `{revision}`" if revision else ""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = "connect to the hub, or download it beforehand with `hf download --repo-type dataset`"
    return DataError(f"cannot get `hf://{what}`{at}: {reason}", hint=hint)


def _splits(
    repo: str, commit: str, names: Sequence[str], data: Sequence[str], subset: str | None
) -> dict[str, str | None]:
    """Data file -> split, by the card's `configs`, else by names; a subset is then a folder."""
    configs = _card_configs(repo, commit) if "README.md" in names else []
    if configs:
        chosen = _chosen_config(repo, configs, subset)
        found = {}
        for split, patterns in _patterns(chosen.get("data_files")):
            for name in data:
                if any(fnmatch(name, pattern) for pattern in patterns):
                    found[name] = SPLIT_NAMES.get(split, split) if split else split_of(name)
        if found:
            return found
    inside = [name for name in data if subset is None or subset in Path(name).parts[:-1]]
    if subset is not None and not inside:
        folders = sorted({part for name in data for part in Path(name).parts[:-1]})
        raise DataError(f"`{repo}` has no subset `{subset}`", hint=f"it has {listed(folders)}" if folders else None)
    return {name: split_of(name) for name in inside}


def _card_configs(repo: str, commit: str) -> list[dict[str, Any]]:
    text = read_bytes(_download(repo, commit, "README.md")).decode("utf-8", "replace")
    if not text.startswith("---"):
        return []
    try:
        root = parse_yaml(text.split("\n---", 1)[0].removeprefix("---"), Origin("README.md"))
    except ConfigError:
        # A card that cannot be read says nothing about splits; file names still do.
        return []
    head = plain(root) if root is not None else None
    configs = head.get("configs") if isinstance(head, dict) else None
    return [config for config in configs or [] if isinstance(config, dict)]


def _chosen_config(repo: str, configs: Sequence[dict[str, Any]], subset: str | None) -> dict[str, Any]:
    names = [str(config.get("config_name", "default")) for config in configs]
    if subset is not None and subset not in names:
        guess = closest(subset, names)
        raise DataError(
            f"`{repo}` has no subset `{subset}`",
            hint=f"did you mean `{guess}`?" if guess else f"it has {listed(names)}",
        )
    if (
        subset is None
        and len(configs) > 1
        and not any(config.get("default") for config in configs)
        and "default" not in names
    ):
        raise DataError(f"`{repo}` has several subsets", hint=f"set `subset` to one of {listed(names)}")
    if subset is not None:
        return configs[names.index(subset)]
    return next(
        (config for config in configs if config.get("default")),
        configs[names.index("default")] if "default" in names else configs[0],
    )


def _patterns(data_files: Any) -> Iterable[tuple[str | None, list[str]]]:
    """``(split, patterns)`` of a card's `data_files`, in any of its spellings."""
    if isinstance(data_files, str):
        yield None, [data_files]
    for entry in data_files if isinstance(data_files, list) else []:
        if isinstance(entry, str):
            yield None, [entry]
        elif isinstance(entry, dict):
            paths = entry.get("path", [])
            yield str(entry.get("split")), [paths] if isinstance(paths, str) else [str(path) for path in paths]
