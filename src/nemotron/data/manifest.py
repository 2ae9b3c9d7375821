"""``manifest.json``: every shard of every split with its hash, every source with its counts. RL steps read it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.disk.documents import open_regular, read_json
from nemotron.disk.faults import reason
from nemotron.errors import DataError, Origin
from nemotron.suggest import closest, listed

FILE = "manifest.json"
SPLIT_NAMES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "validation" for name in ("validation", "val", "valid", "dev", "eval")},
    **{name: "test" for name in ("test", "testing")},
}
"""How files and blends name the splits -> how we do."""
VERSION = 1
CHEAP_BYTES = 64 << 20
"""Shards up to this size in all are hashed wherever they are looked at; that takes a tenth of a second."""
PASS_THROUGH = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""The chat template that `null` means in NeMo-RL: contents one after another."""
_FORCE = "make the data again with `nemotron steps run data_prep/rl_prep`"


def manifest_file(path: Path) -> Path:
    """The manifest that ``path`` means, which is the file or its folder."""
    return path / FILE if path.is_dir() else path


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard as the manifest names it."""

    path: Path
    rows: int
    bytes: int
    sha256: str

    def check(self, manifest: Path, *, verify: bool) -> None:
        """Compare the file with the entry; with ``verify`` its SHA-256 too, else its size alone.

        Raises:
            DataError: the file is not there, or was changed.
        """
        origin = Origin(str(manifest))
        try:
            size = self.path.stat().st_size
            digest = file_sha256(self.path) if verify and size == self.bytes else self.sha256
        except OSError as error:
            message = f"the shard `{self.path}` cannot be read: {reason(error)}"
            raise DataError(message, hint=_FORCE, origin=origin) from error
        if size != self.bytes or digest != self.sha256:
            what = f"has {size} bytes instead of {self.bytes}" if size != self.bytes else "has another SHA-256"
            raise DataError(f"the shard `{self.path}` was changed: it {what}", hint=_FORCE, origin=origin)


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read, with its shards as files."""

    path: Path
    kind: str
    """Kind of all rows: ``prompt``, ``preference``, ``verifier``, ``nemo_gym`` or ``mixed``."""
    splits: Mapping[str, tuple[ShardFile, ...]]
    tokens: Mapping[str, tuple[ShardFile, ...]]
    """Shards of token ids by split; none where the data were not tokenised."""
    value: dict[str, Any]
    """The whole of it as written."""

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest; ``path`` is the file or its folder. No shard is looked at.

        Raises:
            DataError: there is none, or it is not one.
        """
        path = manifest_file(path)
        try:
            value = read_json(path)
        except FileNotFoundError as error:
            raise DataError(f"there is no manifest `{path}`", hint=_FORCE) from error
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the manifest: {error}", hint=_FORCE, origin=Origin(str(path))) from error
        try:
            splits = {name: _shards(path, split["shards"]) for name, split in value["splits"].items()}
            tokens = {
                name: _shards(path, split["token_shards"])
                for name, split in value["splits"].items()
                if split.get("token_shards")
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problem = "this file is not a manifest of `data_prep/rl_prep`"
            raise DataError(problem, hint=_FORCE, origin=Origin(str(path))) from error
        for name, shards in splits.items():
            rows, said = sum(shard.rows for shard in shards), value["splits"][name].get("rows")
            if rows != said:
                message = f"the shards of `{name}` have {rows} rows, the manifest says {said}"
                raise DataError(message, hint=_FORCE, origin=Origin(str(path)))
        return cls(path, str(value.get("kind", "mixed")), splits, tokens, value)

    def split(self, name: str) -> str:
        """The split that ``name`` means: ``val`` and the like mean ``validation``.

        Raises:
            DataError: the manifest has no rows of it.
        """
        found = name if name in self.splits else SPLIT_NAMES.get(name, name)
        if not self.splits.get(found):
            guess = closest(name, list(self.splits))
            have = listed(sorted(split for split, shards in self.splits.items() if shards))
            hint = f"did you mean `{guess}`?" if guess and self.splits[guess] else f"it has {have}"
            raise DataError(f"the manifest `{self.path}` has no rows of the split `{name}`", hint=hint)
        return found

    def shards(self, *, tokens: bool = True) -> list[ShardFile]:
        """Those of all splits; with ``tokens`` those of token ids too."""
        return [
            shard for split in (*self.splits.values(), *(self.tokens.values() if tokens else ())) for shard in split
        ]

    def problems(self, *, verify: bool | None = None, tokens: bool = False) -> Iterator[DataError]:
        """What is wrong with the shards, one error each. ``verify`` None hashes them where that is cheap; ``tokens``
        looks at the shards of token ids too."""
        shards = self.shards(tokens=tokens)
        hashed = sum(shard.bytes for shard in shards) <= CHEAP_BYTES if verify is None else verify
        for shard in shards:
            try:
                shard.check(self.path, verify=hashed)
            except DataError as error:
                yield error


def _shards(manifest: Path, shards: Any) -> tuple[ShardFile, ...]:
    folder = manifest.parent
    for named in (shard["path"] for shard in shards):
        # As it is written: links inside are the owner's business.
        if not (folder / named).is_relative_to(folder) or ".." in Path(named).parts:
            message = f"the shard `{named}` lies outside of the manifest's folder"
            raise DataError(message, hint=_FORCE, origin=Origin(str(manifest)))
    found = tuple(ShardFile(folder / s["path"], s["rows"], s["bytes"], s["sha256"]) for s in shards)
    if not all(isinstance(number, int) for shard in found for number in (shard.rows, shard.bytes)):
        raise TypeError("rows and bytes are whole numbers")
    return found


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest as written; ``path`` is the file or its folder.

    Raises:
        DataError: there is none, or it is not one.
    """
    return Manifest.read(path).value


def resolve_manifest(path: Path, *, verify: bool = True) -> dict[str, list[Path]]:
    """Split name -> its shards in order, after a check of every shard against the manifest.

    With ``verify`` the SHA-256 of each shard is computed (about 1 GB/s); without it only sizes are compared.

    Raises:
        DataError: no manifest, a shard that is missing or was changed, or row counts that do not add up.
    """
    manifest = Manifest.read(path)
    for problem in manifest.problems(verify=verify):
        raise problem
    return {name: [shard.path for shard in shards] for name, shards in manifest.splits.items()}


def split_paths(path: Path, split: str, *, verify: bool = True) -> list[Path]:
    """The shards of one split; ``val`` and the like mean ``validation``. Other splits are not looked at.

    Raises:
        DataError: the manifest has no rows of that split, or does not hold.
    """
    manifest = Manifest.read(path)
    shards = manifest.splits[manifest.split(split)]
    for shard in shards:
        shard.check(manifest.path, verify=verify)
    return [shard.path for shard in shards]


def text_sha256(text: str) -> str:
    """SHA-256 of a text as hex: how the manifest names a chat template."""
    return hashlib.sha256(text.encode()).hexdigest()


def vocabulary_sha256(vocabulary: Mapping[str, int]) -> str:
    """How the manifest names what a tokenizer calls its tokens: SHA-256 of tokens and ids in order, as hex."""
    return text_sha256(json.dumps(sorted(vocabulary.items(), key=lambda entry: (entry[1], entry[0]))))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
