"""Write safetensors one tensor at a time: the library's own writer wants all of them in memory at once.

The bytes are those of ``safetensors.torch.save_file(..., metadata={"format": "pt"})``: header, then tensors from the
widest dtype to the narrowest, by name within a dtype.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from nemotron.checkpoints.hf import INDEX, SINGLE
from nemotron.disk.stream import StreamedFile

_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}


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
    file = StreamedFile(path)
    try:
        file.write(len(text).to_bytes(8, "little") + text)
        for one in planned:
            tensor = weights[one.name].to(one.dtype).contiguous()
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)
            if progress:
                progress(one.nbytes)
    finally:
        file.close()
