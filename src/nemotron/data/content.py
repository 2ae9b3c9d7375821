"""What a data file is by its first bytes, and what to do with one that holds no rows. A name may say anything."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemotron.disk.documents import open_regular
from nemotron.disk.faults import reason
from nemotron.errors import DataError, NotAvailableError, Origin
from nemotron.install import install_extra

Packing = Literal["gzip", "zstd"]
Layout = Literal["lines", "values", "parquet"]
"""One row per line; JSON values one after another or in an array; Parquet."""

LINE_SUFFIXES = (".jsonl", ".ndjson")
"""Names of files that promise one value a line: a broken line there is one bad row, wherever it stands."""
PACKED_SUFFIXES = (".gz", ".zst")
_HEAD = 1 << 16
_PACKED: tuple[tuple[bytes, Packing], ...] = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"))
_PARQUET = b"PAR1"
_CSV = "`pandas.read_csv(FILE).to_json(OUT, orient='records', lines=True)` makes JSON lines of it"
_ARROW = "`datasets.Dataset.from_file(FILE).to_json(OUT)` makes JSON lines of it"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class _Foreign:
    """Something that is no rows: how it begins, what it is, and what to do."""

    begins: Callable[[bytes], bool]
    what: str
    hint: str


def _starts(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(marks)


_FOREIGN = (
    _Foreign(
        _starts(b"version https://git-lfs.github.com/spec/"),
        "is a git-LFS pointer, not the data that it stands for",
        "fetch the data with `git lfs pull`, or download the file again",
    ),
    _Foreign(_starts(b"ARROW1\x00\x00", b"\xff\xff\xff\xff"), "is an Arrow file", _ARROW),
    _Foreign(
        lambda head: head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html", b"<?xml")),
        "is a web page, as a download without permission leaves it",
        "download the file again, with a token where the data set asks for one",
    ),
    _Foreign(_starts(b"PK\x03\x04"), "is a ZIP archive or a spreadsheet", "unpack it, or save its rows as JSON lines"),
    _Foreign(_starts(b"BZh", b"\xfd7zXZ\x00"), "is packed with bzip2 or xz", "unpack it, or pack it with gzip or zstd"),
    _Foreign(_starts(b"\x89HDF", b"Obj\x01", b"ORC"), "is HDF5, Avro or ORC", "save its rows as JSON lines or Parquet"),
    _Foreign(_starts(b"\x80\x04", b"\x80\x05", b"\x80\x03"), "is a Python pickle", "save its rows as JSON lines"),
)
FOREIGN_SUFFIXES = {
    ".csv": ("is a table of comma-separated values", _CSV),
    ".tsv": ("is a table of values", _CSV),
    ".arrow": ("is an Arrow file", _ARROW),
}
"""Names of files that hold no rows which are read here: what they are, and what to do."""


def head_of(path: Path, size: int = _HEAD) -> bytes:
    """The first bytes of a file, unpacked, without a byte order mark.

    Raises:
        DataError: it cannot be read. NotAvailableError: it is packed with zstd, and `zstandard` is not installed.
    """
    try:
        with open_regular(path) as file:
            head = file.read(size)
    except OSError as error:
        raise unreadable(path, error) from error
    kind = packing_of(head)
    if kind == "gzip":
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, size)
        except zlib.error as error:
            raise DataError(f"`{path}` is damaged: {error}", hint="copy or compress it again") from error
    elif kind == "zstd":
        head = _unpacked_zstd(path, head, size)
    return head.removeprefix(_BOM)


def _unpacked_zstd(path: Path, head: bytes, size: int) -> bytes:
    library: Any = zstandard()
    try:
        # Not more than is wanted: a few bytes can stand for gigabytes.
        found: bytes = library.ZstdDecompressor().stream_reader(head, read_across_frames=True).read(size)
    except library.ZstdError as error:
        raise DataError(f"`{path}` is damaged: {error}", hint="copy or compress it again") from error
    return found


def zstandard() -> Any:
    """The library that unpacks zstd.

    Raises:
        NotAvailableError: it is not installed.
    """
    try:
        import zstandard as library
    except ImportError as error:
        raise NotAvailableError("`.zst` files need the package `zstandard`", hint=install_extra("data")) from error
    return library


def packing_of(head: bytes) -> Packing | None:
    """How bytes that begin so are packed."""
    return next((kind for mark, kind in _PACKED if head.startswith(mark)), None)


def packing(path: Path) -> Packing | None:
    """How a file is packed.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return packing_of(file.read(4))
    except OSError as error:
        raise unreadable(path, error) from error


def layout_of(path: Path) -> Layout:
    """How rows stand in a file; one without any has lines.

    Raises:
        DataError: it cannot be read, or is something else; the message says what, and what to do.
    """
    head = head_of(path)
    problem = _no_rows(path, head)
    if problem is not None:
        raise problem
    if head.startswith(_PARQUET):
        return "parquet"
    if bare_suffix(path) in LINE_SUFFIXES:
        return "lines"
    first = head.lstrip()
    if first.startswith(b"["):
        return "values"
    line = first.split(b"\n", 1)[0].strip()
    # An object that does not end in its line goes on in the next ones, or in a line longer than what was looked at.
    return "values" if first.startswith(b"{") and b"\n" in first and not line.endswith(b"}") else "lines"


def bare_suffix(path: Path | str) -> str:
    """How a name ends, in small letters, without what its packing adds."""
    name = os.fspath(path).lower()
    for end in PACKED_SUFFIXES:
        name = name.removesuffix(end)
    return os.path.splitext(name)[1]


def _no_rows(path: Path, head: bytes) -> DataError | None:
    if head.startswith(_PARQUET):
        return None
    found = next(((kind.what, kind.hint) for kind in _FOREIGN if kind.begins(head)), None)
    if found is None and head.strip():
        found = FOREIGN_SUFFIXES.get(bare_suffix(path))
    if found is None and b"\x00" in head[:4] and bare_suffix(path) not in LINE_SUFFIXES:
        found = ("is no text", "rows are JSON lines (UTF-8), JSON arrays or Parquet")
    return None if found is None else DataError(f"`{path}` {found[0]}", hint=found[1], origin=Origin(os.fspath(path)))


def check_lines(path: Path) -> None:
    """Refuse a file that a step cannot read line by line.

    Raises:
        DataError: it is something else than JSON lines, and what is to be done with it.
    """
    layout = layout_of(path)
    if layout != "lines":
        what = "is a Parquet file" if layout == "parquet" else "holds JSON values over several lines or in an array"
        hint = f"steps read one object per line: `nemotron steps run data_prep/rl_prep blend_path={path}` writes it"
        raise DataError(f"`{path}` {what}", hint=hint, origin=Origin(os.fspath(path)))


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file of rows that cannot be read."""
    hint = "check the path"
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        hint = "`datasets.load_from_disk(FOLDER)` reads it; `.to_json(OUT)` of one of its splits makes JSON lines of it"
    elif isinstance(error, IsADirectoryError):
        prepare = f"`nemotron steps run data_prep/rl_prep blend_path={path}` reads all of them"
        hint = f"steps read files: name one in it; {prepare}"
    return DataError(f"cannot read `{path}`: {reason(error)}", hint=hint, origin=Origin(os.fspath(path)))
