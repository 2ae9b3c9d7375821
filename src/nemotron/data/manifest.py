"""``manifest.json``: every shard of every split with its hash, every source with its counts. RL steps read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron.data.blend import SPLIT_NAMES
from nemotron.errors import DataError, Origin
from nemotron.suggest import closest, listed

VERSION = 1
_FORCE = "make the data again with `nemotron steps run data_prep/rl_prep`"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as written; ``path`` is the file or its folder.

    Raises:
        DataError: there is none, or it is not one.
    """
    if path.is_dir():
        path = path / "manifest.json"
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"there is no manifest `{path}`", hint=_FORCE) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the manifest: {error}", hint=_FORCE, origin=Origin(str(path))) from error
    splits = value.get("splits") if isinstance(value, dict) else None
    if not isinstance(splits, dict) or not all(
        isinstance(split, dict) and "shards" in split for split in splits.values()
    ):
        raise DataError("this file is not a manifest of `data_prep/rl_prep`", hint=_FORCE, origin=Origin(str(path)))
    return dict(value)


def resolve_manifest(path: Path, *, verify: bool = True) -> dict[str, list[Path]]:
    """Split name -> its shards in order, after a check of every shard against the manifest.

    With ``verify`` the SHA-256 of each shard is computed (about 1 GB/s); without it only sizes are compared.

    Raises:
        DataError: no manifest, a shard that is missing or was changed, or row counts that do not add up.
    """
    path = path / "manifest.json" if path.is_dir() else path
    manifest = read_manifest(path)
    found: dict[str, list[Path]] = {}
    for name, split in manifest["splits"].items():
        for shard in split["shards"]:
            _check_shard(path, path.parent / shard["path"], shard, verify=verify)
        rows = sum(shard["rows"] for shard in split["shards"])
        if rows != split["rows"]:
            message = f"the shards of `{name}` have {rows} rows, the manifest says {split['rows']}"
            raise DataError(message, hint=_FORCE, origin=Origin(str(path)))
        found[name] = [path.parent / shard["path"] for shard in split["shards"]]
    return found


def split_paths(path: Path, split: str, *, verify: bool = True) -> list[Path]:
    """The shards of one split; ``val`` and the like mean ``validation``.

    Raises:
        DataError: the manifest has no rows of that split, or does not hold.
    """
    splits = resolve_manifest(path, verify=verify)
    name = split if split in splits else SPLIT_NAMES.get(split, split)
    if not splits.get(name):
        guess = closest(split, list(splits))
        have = listed(sorted(name for name, shards in splits.items() if shards))
        hint = f"did you mean `{guess}`?" if guess and splits[guess] else f"it has {have}"
        raise DataError(f"the manifest `{path}` has no rows of the split `{split}`", hint=hint)
    return splits[name]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_shard(manifest: Path, shard: Path, entry: Mapping[str, Any], *, verify: bool) -> None:
    try:
        size = shard.stat().st_size
        digest = file_sha256(shard) if verify and size == entry["bytes"] else entry["sha256"]
    except OSError as error:
        message = f"the shard `{shard}` cannot be read: {(error.strerror or str(error)).lower()}"
        raise DataError(message, hint=_FORCE, origin=Origin(str(manifest))) from error
    if size != entry["bytes"] or digest != entry["sha256"]:
        what = f"has {size} bytes instead of {entry['bytes']}" if size != entry["bytes"] else "has another SHA-256"
        raise DataError(f"the shard `{shard}` was changed: it {what}", hint=_FORCE, origin=Origin(str(manifest)))
