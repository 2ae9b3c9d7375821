"""Read weights out of a Megatron-Core ``torch_dist`` checkpoint: memory-mapped, one tensor at a time."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from nemotron.checkpoints.megatron import describe
from nemotron.checkpoints.megatron.describe import Checkpoint
from nemotron.checkpoints.megatron.index import Chunk, Stored
from nemotron.checkpoints.megatron.names import Part
from nemotron.checkpoints.megatron.records import read_record
from nemotron.disk.documents import open_regular
from nemotron.errors import ArtifactError

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes of a part of a tensor."""


class MegatronWeights(Mapping[str, Tensor]):
    """The weights of a checkpoint under their Hugging Face names, read when they are asked for.

    Tensors may be views of the mapped file: valid while this object is open, and not to be written to.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._parts = checkpoint.parts
        self._maps: dict[str, mmap.mmap] = {}
        self._checked: set[tuple[str, int]] = set()

    def __enter__(self) -> MegatronWeights:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._maps.clear()  # a map closes when the last view of it goes

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, name: str) -> Tensor:
        """One weight, in the dtype of the file.

        Raises:
            KeyError: no such weight. ArtifactError: its bytes are missing or corrupt.
        """
        part = self._parts[name]
        shape = self.checkpoint.shape
        if part.weight.kind == "plain":
            return self._rows(part, 0, part.shape[0])
        if part.weight.kind == "gate_up":
            return self._rows(part, part.part * shape.ffn, shape.ffn)
        # Rows of one key-value group: its query heads, its key head, its value head.
        per_group = shape.heads // shape.kv_heads
        grouped = self._rows(part, 0, part.weight.shape[0])
        grouped = grouped.view(shape.kv_heads, per_group + 2, shape.head_dim, *grouped.shape[1:])
        heads = slice(0, per_group) if part.part == 0 else slice(per_group + part.part - 1, per_group + part.part)
        return grouped[:, heads].reshape(part.shape)

    def _rows(self, part: Part, first: int, count: int) -> Tensor:
        """``count`` rows of a tensor, the layer axis cut off."""
        stored, layer = self.checkpoint.locate(part)
        rest = part.weight.shape[1:]
        sizes: tuple[int, ...] = (count, *rest)
        offsets: tuple[int, ...] = (first, *(0 for _ in rest))
        if layer is not None:
            sizes, offsets = (1, *sizes), (layer, *offsets)
        box = self.read(stored, (offsets, sizes))
        return box[0] if layer is not None else box

    def read(self, stored: Stored, box: Box) -> Tensor:
        """A box of a stored tensor, assembled from the chunks that overlap it.

        Raises:
            ArtifactError: no chunk holds some of it, or a chunk is corrupt.
        """
        pieces = [(chunk, cut) for chunk in stored.chunks if (cut := _overlap(chunk, box)) is not None]
        if sum(prod(cut[1]) for _, cut in pieces) != prod(box[1]):
            raise ArtifactError(
                f"`{self.checkpoint.folder}`: parts of `{stored.key}` are missing or stored twice",
                hint="a shard was lost; copy the checkpoint again",
            )
        if len(pieces) == 1:
            return self._cut(stored, *pieces[0]).reshape(box[1])
        whole = torch.empty(box[1], dtype=getattr(torch, stored.dtype))
        for chunk, cut in pieces:
            place = tuple(slice(at - o, at - o + n) for at, n, o in zip(*cut, box[0], strict=True))
            whole[place] = self._cut(stored, chunk, cut)
        return whole

    def _cut(self, stored: Stored, chunk: Chunk, cut: Box) -> Tensor:
        """The part of a chunk that lies in ``cut`` (global offsets and sizes)."""
        tensor = self._chunk(stored, chunk)
        return tensor[tuple(slice(at - o, at - o + n) for at, n, o in zip(*cut, chunk.offsets, strict=True))]

    def _chunk(self, stored: Stored, chunk: Chunk) -> Tensor:
        path = self.checkpoint.folder / chunk.file
        mapped = self._map(chunk.file)
        if chunk.start + chunk.length > len(mapped):
            raise ArtifactError(
                f"`{path}` is cut short: it has {len(mapped)} bytes and `{stored.key}` lies beyond them",
                hint="copy the checkpoint again",
            )
        window = memoryview(mapped)[chunk.start : chunk.start + chunk.length]
        record = read_record(window, path)
        if record.dtype != stored.dtype or prod(record.shape) != prod(chunk.sizes):
            raise ArtifactError(
                f"`{path}`: the bytes of `{stored.key}` are {record.dtype} {list(record.shape)},"
                f" the index says {stored.dtype} {list(chunk.sizes)}",
                hint="the checkpoint mixes files of two saves; copy it again",
            )
        self._check(window[record.start : record.start + record.length], record.crc, chunk, stored.key)
        if not prod(chunk.sizes):
            return torch.empty(chunk.sizes, dtype=getattr(torch, stored.dtype))
        dtype = getattr(torch, record.dtype)
        count, start = record.length // dtype.itemsize, chunk.start + record.start
        if start % dtype.itemsize:  # other writers do not align records; a few kernels need it
            elements = torch.frombuffer(bytearray(mapped[start : start + record.length]), dtype=dtype, count=count)
        else:
            elements = torch.frombuffer(mapped, dtype=dtype, count=count, offset=start)
        return elements.as_strided(record.shape, record.stride, record.first).reshape(chunk.sizes)

    def _check(self, content: memoryview, crc: int, chunk: Chunk, key: str) -> None:
        """Compare the bytes with the checksum that ``torch.save`` left beside them, once per chunk."""
        if (chunk.file, chunk.start) in self._checked:
            return
        # A writer that was told to skip checksums leaves zero.
        if crc and zlib.crc32(content) != crc:
            raise ArtifactError(
                f"`{self.checkpoint.folder / chunk.file}` is corrupt: the checksum of `{key}` does not match",
                hint="copy the checkpoint again",
            )
        self._checked.add((chunk.file, chunk.start))

    def _map(self, file: str) -> mmap.mmap:
        if file not in self._maps:
            path = self.checkpoint.folder / file
            try:
                with open_regular(path) as opened:
                    # A private copy-on-write map: torch wants a writable buffer, the file stays as it is.
                    self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise ArtifactError(
                    f"`{path}` is missing or empty: a shard of the checkpoint is lost",
                    hint="copy the checkpoint again, with every `.distcp` file",
                ) from error
        return self._maps[file]


def _overlap(chunk: Chunk, box: Box) -> Box | None:
    starts = tuple(max(a, b) for a, b in zip(chunk.offsets, box[0], strict=True))
    ends = (min(a + n, b + m) for a, n, b, m in zip(chunk.offsets, chunk.sizes, box[0], box[1], strict=True))
    sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return (starts, sizes) if all(n > 0 for n in sizes) else None


def open_weights(path: Path, hf_config: Mapping[str, Any] | None = None) -> MegatronWeights:
    """Open the checkpoint at ``path``: an iteration folder, a root, or a NeMo-RL ``step_N``.

    ``hf_config`` describes the model where the checkpoint does not, and must agree where it does.

    Raises:
        ArtifactError: missing, corrupt, hostile, or of a kind that does not convert.
    """
    return MegatronWeights(describe.describe(path, hf_config))
