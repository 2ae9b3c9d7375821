"""One ``torch.save`` record: found inside a file, described without loading it (torch-free)."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nemotron.checkpoints.megatron.pickles import DTYPES, Dtype, Inert, loads
from nemotron.errors import ArtifactError

_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and the extra field, at byte 26 of a zip local header


@dataclass(frozen=True, slots=True)
class Record:
    """Where the elements of one saved tensor lie in the buffer that was given, and how to look at them."""

    dtype: str
    start: int
    """First byte of the storage in the buffer."""
    length: int
    """Bytes of the storage."""
    crc: int
    """CRC-32 of the storage as the writer noted it."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    first: int
    """Index of the first element in the storage."""


class _Window(io.RawIOBase):
    """A part of a buffer as a seekable file, for ``zipfile``; copies only what is read."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._buffer)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._buffer) if size is None or size < 0 else self._at + size
        data = bytes(self._buffer[self._at : end])
        self._at += len(data)
        return data


def _broken(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"`{path}` is corrupt or cut short: {reason}", hint="copy the checkpoint again")


def _archive(buffer: memoryview, path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(_Window(buffer))
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise _broken(path, "a tensor record is not what `torch.save` writes") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Entries without the archive's own top folder."""
    return {info.filename.partition("/")[2]: info for info in archive.infolist()}


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise _broken(path, str(error)) from error


def read_object(content: bytes, path: Path) -> Any:
    """The object in a small ``torch.save`` file, with inert stand-ins (``common.pt``).

    Raises:
        ArtifactError: corrupt, or its pickle names something that is not on the list.
    """
    archive = _archive(memoryview(content), path)
    members = _members(archive)
    if "data.pkl" not in members:
        raise _broken(path, "no `data.pkl` in it")
    return loads(_content(archive, members["data.pkl"], path), path)


def read_record(buffer: memoryview, path: Path) -> Record:
    """Describe the tensor saved in ``buffer``.

    Raises:
        ArtifactError: corrupt, hostile, compressed, or not one plain tensor.
    """
    archive = _archive(buffer, path)
    members = _members(archive)
    if "data.pkl" not in members:
        raise _broken(path, "a tensor record has no `data.pkl`")
    saved = loads(_content(archive, members["data.pkl"], path), path)
    while isinstance(saved, Inert) and saved.global_name == "torch._utils._rebuild_parameter":
        saved = saved.arguments[0]
    dtype, key, first, shape, stride = _tensor(saved, path)
    info = members.get(f"data/{key}")
    if info is None or info.compress_type != zipfile.ZIP_STORED:
        raise _broken(path, "a tensor record has no plain data")
    header = buffer[info.header_offset : info.header_offset + 30]
    if len(header) < 30:
        raise _broken(path, "a tensor record ends early")
    name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + 30 + name_length + extra_length
    last = first + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if prod(shape) else -1
    if start + info.file_size > len(buffer) or (last + 1) * DTYPES[dtype] > info.file_size:
        raise _broken(path, "a tensor record ends early")
    return Record(dtype, start, info.file_size, info.CRC, shape, stride, first)


def _tensor(saved: Any, path: Path) -> tuple[str, str, int, tuple[int, ...], tuple[int, ...]]:
    """Dtype, storage key, first element, shape and stride of a pickled tensor."""
    known = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
    if not isinstance(saved, Inert) or saved.global_name not in known or len(saved.arguments) < 4:
        raise _broken(path, "a record that should be a tensor is something else")
    storage, first, shape, stride = saved.arguments[:4]
    if saved.global_name == known[1] and len(saved.arguments) > 6:
        dtype = saved.arguments[6]
    else:
        dtype = storage[1] if isinstance(storage, tuple) and len(storage) == 5 else None
    plain = all(isinstance(n, int) and n >= 0 for n in (first, *shape, *stride))
    if not isinstance(dtype, Dtype) or not plain or len(shape) != len(stride):
        raise _broken(path, "a tensor record has no readable shape or dtype")
    return str(dtype), str(storage[2]), first, tuple(shape), tuple(stride)
