"""``.metadata``: which tensors a ``torch_dist`` checkpoint holds, in which chunks, at which bytes (torch-free).

A tensor is stored as boxes of its global shape, so the file does not depend on how many ranks wrote it: tensor,
pipeline and data parallel shards are boxes like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nemotron.checkpoints.megatron.pickles import Dtype, Inert, loads
from nemotron.disk.documents import read_bytes
from nemotron.errors import ArtifactError

METADATA = ".metadata"


MOST_BYTES = 256 << 20
"""Of an index, which has an entry for every piece of every tensor."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One box of a tensor and the bytes of a file that hold it (a ``torch.save`` record)."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of the checkpoint: dtype by name, global shape, chunks that tile it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Index:
    """What ``.metadata`` says."""

    folder: Path
    tensors: dict[str, Stored]
    objects: dict[str, tuple[str, int, int]]
    """Byte objects (``_extra_state``, random states): file, start, length. Never opened by the weight reader."""

    def files(self) -> set[str]:
        """Names of the data files that the tensors and objects lie in."""
        return {chunk.file for t in self.tensors.values() for chunk in t.chunks} | {o[0] for o in self.objects.values()}


def read_index(folder: Path) -> Index:
    """Read ``folder/.metadata``.

    Raises:
        ArtifactError: missing, corrupt, hostile, or it describes chunks in a form that is not supported.
    """
    path = folder / METADATA
    try:
        content = read_bytes(path, MOST_BYTES)
    except OSError as error:
        raise ArtifactError(
            f"`{folder}` is not a whole Megatron-Core checkpoint: no readable `.metadata`",
            hint="if it was being written when the job was killed, use an earlier one",
        ) from error
    try:
        return _index(folder, path, loads(content, path))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # A pickle can be whole and still hold anything in place of what belongs there.
        raise _unreadable(path, f"it is not what Megatron-Core writes ({error})") from error


def _index(folder: Path, path: Path, root: Any) -> Index:
    if not isinstance(root, Inert):
        raise _unreadable(path, "it holds no checkpoint metadata")
    places = _places(root.field("storage_data"), path)
    entries = root.field("state_dict_metadata")
    if not isinstance(entries, dict):
        raise _unreadable(path, "it lists no tensors")
    tensors: dict[str, Stored] = {}
    objects: dict[str, tuple[str, int, int]] = {}
    for key, entry in entries.items():
        if entry.global_name.endswith(".BytesStorageMetadata"):
            if (key, None) in places:
                objects[key] = places[key, None]
        else:
            tensors[key] = _stored(str(key), entry, places, path)
    return Index(folder, tensors, objects)


def _unreadable(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"`{path}` cannot be read: {reason}", hint="copy the checkpoint again")


def _places(storage: Any, path: Path) -> dict[tuple[str, tuple[int, ...] | None], tuple[str, int, int]]:
    if not isinstance(storage, dict):
        raise _unreadable(path, "it does not say where the data lies")
    places = {}
    for where, info in storage.items():
        file, start, length = info.field("relative_path"), info.field("offset"), info.field("length")
        if info.field("transform_descriptors"):
            raise ArtifactError(
                f"`{path}` stores compressed chunks ({info.field('transform_descriptors')}), which are not supported",
                hint="save the checkpoint without storage transforms",
            )
        if not isinstance(file, str) or Path(file).name != file or not isinstance(start, int) or start < 0:
            raise _unreadable(path, f"it points to `{file}`, which is no file of this folder")
        if not isinstance(length, int) or length < 0:
            raise _unreadable(path, "a chunk has no length")
        places[where.field("fqn"), where.field("offset")] = (file, start, length)
    return places


def _stored(key: str, entry: Inert, places: dict[Any, tuple[str, int, int]], path: Path) -> Stored:
    shape, chunks, properties = entry.field("size"), entry.field("chunks"), entry.field("properties")
    dtype = properties.state[0] if isinstance(properties, Inert) and isinstance(properties.state, tuple) else None
    if not isinstance(shape, tuple) or not isinstance(chunks, list) or not isinstance(dtype, Dtype):
        raise _unreadable(path, f"tensor `{key}` has no shape or dtype")
    boxes = []
    for chunk in chunks:
        offsets, sizes = chunk.field("offsets"), chunk.field("sizes")
        if (key, offsets) not in places:
            raise _unreadable(path, f"it does not say where the part of `{key}` at {offsets} lies")
        boxes.append(Chunk(offsets, sizes, *places[key, offsets]))
    if sum(prod(box.sizes) for box in boxes) != prod(shape):
        raise ArtifactError(
            f"`{path}`: the parts of `{key}` do not add up to its shape {list(shape)}; a shard is missing",
            hint="the checkpoint was saved incompletely; use an earlier one",
        )
    return Stored(key, str(dtype), shape, tuple(boxes))
