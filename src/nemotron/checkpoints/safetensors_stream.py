"""Write safetensors one tensor at a time: the library's own writer wants all of them in memory at once.

The bytes are those of ``safetensors.torch.save_file(..., metadata={"format": "pt"})``: header, then tensors from the
widest dtype to the narrowest, by name within a dtype.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from nemotron.checkpoints.hf import INDEX, SINGLE

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
_FLUSH_EVERY = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor to come: its place in the file follows from its dtype and name."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


def write_model(
    folder: Path,
    planned: list[Planned],
    weights: Mapping[str, Tensor],
    *,
    max_file_bytes: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write ``planned`` tensors of ``weights`` as one file, or as numbered files with an index.

    Raises:
        OSError: the disk does not take them.
    """
    files = _split(sorted(planned, key=lambda p: (-p.dtype.itemsize, p.name)), max_file_bytes)
    if len(files) == 1:
        _write_file(folder / SINGLE, files[0], weights, progress)
        return
    place: dict[str, str] = {}
    for number, part in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write_file(folder / name, part, weights, progress)
        place |= {one.name: name for one in part}
    total = {"total_size": sum(one.nbytes for one in planned)}
    index = {"metadata": total, "weight_map": dict(sorted(place.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _split(planned: list[Planned], limit: int) -> list[list[Planned]]:
    files: list[list[Planned]] = [[]]
    size = 0
    for one in planned:
        if files[-1] and size + one.nbytes > limit:
            files.append([])
            size = 0
        files[-1].append(one)
        size += one.nbytes
    return files


def _write_file(
    path: Path, planned: list[Planned], weights: Mapping[str, Tensor], progress: Callable[[int], None] | None
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for one in planned:
        header[one.name] = {
            "dtype": _NAMES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [at, at + one.nbytes],
        }
        at += one.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        _write_all(file, len(text).to_bytes(8, "little") + text)
        flushed = file.tell()
        for one in planned:
            tensor = weights[one.name].to(one.dtype).contiguous()
            _write_all(file, tensor.view(-1).view(torch.uint8).numpy().data)
            if progress:
                progress(one.nbytes)
            if file.tell() - flushed >= _FLUSH_EVERY and hasattr(os, "posix_fadvise"):
                # Starts the disk on what is written, so that it does not all wait for the sync at the end.
                os.posix_fadvise(file.fileno(), flushed, file.tell() - flushed, os.POSIX_FADV_DONTNEED)
                flushed = file.tell()


def _write_all(file: IO[bytes], content: memoryview | bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
