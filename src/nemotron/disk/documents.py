"""How files that somebody else may have written are read: regular files, of a bounded size, of a bounded depth.

A pipe never ends, a device neither, and a text nested a thousand deep ends in the interpreter's own limit, far from
the place that is to blame. All JSON and YAML of the product comes in through here, so all of it has the same bounds.
Failures are ``OSError`` (the file) or :class:`MalformedError` (what is in it): callers name the place and the fix.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

MOST_STRINGS = 3_000_000
"""Texts in quotes; the largest tokenizers have half of it."""
DEEPEST = 200
"""Lists and objects inside each other. Nobody writes more; ten times as many break recursive readers."""
MOST_BYTES = 48 << 20
"""Size of a document that is read as a whole. Manifests and indexes of weights stay far below; the largest tokenizers
have 35 MB."""
MOST_MARKS = 6_000_000
"""Commas, colons and opening brackets of a JSON text: what is between two of them can cost sixty bytes of memory. The
largest tokenizers have a third of it."""
LONGEST_LINE = 1 << 28
"""Bytes of a line of data: a row."""
MOST_TOML = 1 << 20
"""Size of a profile or a manifest of a step."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class MalformedError(ValueError):
    """A text is no JSON that can be used. ``message`` goes on from its name: ``is not JSON: ...``; ``line`` and
    ``column`` count from 1 where a place is known."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


def open_regular(path: Path | str) -> BufferedReader:
    """A file to read that is surely a file: opening a pipe would wait for ever, a device would never end.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            what = os.strerror(number) if stat.S_ISDIR(mode) else "it is not a regular file"
            raise OSError(number, what, os.fspath(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def regular(path: Path | str) -> Path | str:
    """The path itself, for a library that opens it.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    open_regular(path).close()
    return path


def lines_of(file: BufferedReader, most: int) -> Iterator[bytes]:
    """The lines of an open file: a hole of gigabytes is one line.

    Raises:
        OSError: one has more than ``most`` bytes.
    """
    while line := file.readline(most + 1):
        if len(line) > most:
            raise OSError(errno.EFBIG, f"a line has more than {most:,} bytes", str(file.name))
        yield line


def read_bytes(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))
    return content


def read_json(path: Path | str, most: int = MOST_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: as :func:`read_bytes`. MalformedError: as :func:`parse_json`.
    """
    return parse_json(read_bytes(path, most))


def read_object(path: Path | str, most: int = MOST_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: as :func:`read_bytes`. MalformedError: as :func:`parse_json`, or something else than an object.
    """
    value = read_json(path, most)
    if not isinstance(value, dict):
        raise MalformedError(f"holds no object but {'null' if value is None else 'a ' + type(value).__name__}")
    return value


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        MalformedError: it is not UTF-8 or not JSON, is too deep, or has half a surrogate pair.
    """
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    _refuse_large(raw)
    try:
        value = json.loads(content)
    except UnicodeDecodeError as error:
        raise MalformedError(f"is not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise MalformedError(f"is not JSON: {error.msg}", error.lineno, error.colno) from error
    except (ValueError, RecursionError) as error:
        # A whole number of more than 4,300 digits.
        raise MalformedError(f"is not JSON that can be read: {error}") from error
    if _SURROGATE.search(raw):
        refuse_surrogates(value)
    return value


def refuse_surrogates(value: Any) -> None:
    """Refuse half a surrogate pair: legal in JSON's escapes, but no text, so no tokenizer and no encoder takes it.

    Raises:
        MalformedError: there is one in the value.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise MalformedError(f"has half a surrogate pair, `\\u{ord(half):04x}`, which is no text") from error


def _refuse_large(raw: bytes) -> None:
    """Look at what a text would become before it becomes it; most are small in every way. Raises MalformedError."""
    brackets, marks = (sum(map(raw.count, some)) for some in (_OPENING, _MARKS))
    if brackets <= DEEPEST and marks <= MOST_MARKS:
        return
    # A quote behind a backslash may still end a string: these are the fewest that there can be.
    strings = (raw.count(b'"') - raw.count(b'\\"')) // 2
    bare = _STRINGS.sub(b"", raw) if strings <= MOST_STRINGS else b""
    if strings > MOST_STRINGS or sum(map(bare.count, _MARKS)) > MOST_MARKS:
        raise MalformedError(f"has more than {MOST_MARKS:,} values")
    if _depth(bare) > DEEPEST:
        raise MalformedError(f"has more than {DEEPEST} lists and objects inside each other")


def depth(raw: bytes) -> int:
    """How many lists and objects are inside each other at most, strings left out."""
    return _depth(_STRINGS.sub(b"", raw))


def _depth(bare: bytes) -> int:
    deepest = level = 0
    for token in _BRACKETS.finditer(bare):
        if token[0] in b"[{":
            level += 1
            deepest = max(deepest, level)
        else:
            level -= 1
    return deepest


_OPENING = (b"[", b"{")
_MARKS = (b",", b":", *_OPENING)
# Nothing is taken back: a text of megabytes would take gigabytes to remember where it could be.
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")
