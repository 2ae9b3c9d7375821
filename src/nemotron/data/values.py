"""JSON values that are not one a line, an array or objects over several lines, as blocks of lines.

The standard library's decoder says where a value ends, so a value keeps its bytes but for line ends between its parts.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from nemotron.data.lines import Block, checked_read, open_stream
from nemotron.errors import DataError, Origin

# Numbers are only passed over: as numbers, those of more than 4,300 digits would be refused.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
_BETWEEN = re.compile(r"[\s,]*")
# A line end is never inside a string of valid JSON, nor is the white space that touches one.
_FOLD = re.compile(r"[ \t]*[\r\n]\s*")
_SHOWN = 4096


def read_values(path: Path, block_bytes: int, max_row_bytes: int) -> Iterator[Block]:
    """The values of a file, plain or compressed, in blocks of about ``block_bytes``; a value is a line of its block.

    Raises:
        DataError: the file cannot be read, is damaged, or is not JSON where it goes on; the place is named.
    """
    with closing(open_stream(path)) as source:
        number, size = 1, 0
        lines: list[bytes] = []
        too_long: dict[int, int] = {}
        for text in _values(path, source, max_row_bytes):
            line = _FOLD.sub(" ", text).encode()
            if len(line) > max_row_bytes:
                too_long[len(lines)] = len(line)
                line = line[:_SHOWN]
            lines.append(line)
            size += len(line)
            if size >= block_bytes:
                yield Block(lines, too_long, first_line=number).of(b"\n".join(lines))
                number, lines, size, too_long = number + len(lines), [], 0, {}
        if lines:
            yield Block(lines, too_long, first_line=number).of(b"\n".join(lines))


def _values(path: Path, source: Any, max_row_bytes: int) -> Iterator[str]:
    """Every value as it is written. What is not finished yet waits for more of the file, up to a bound."""
    texts = _Texts(path, source, max_row_bytes)
    in_array = texts.start() == "["
    if in_array:
        texts.at += 1
    while letter := texts.start():
        if in_array and letter == "]":
            texts.at += 1
            if texts.start():
                raise texts.broken("something follows the end of the array")
            return
        while (end := _next(texts)) is None:
            texts.more()
        yield texts.text[texts.at : end]
        texts.at, texts.count = end, texts.count + 1
    if in_array:
        raise texts.broken("the array does not end")


class _Texts:
    """The part of a file that is being looked at."""

    def __init__(self, path: Path, source: Any, max_row_bytes: int) -> None:
        self.path, self._source = path, source
        self._piece, self._most = min(1 << 20, max_row_bytes), 4 * max_row_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.count, self.ended = "", 0, 0, False

    def start(self) -> str:
        """The letter at which something begins, after what stands between values; empty at the end of the file."""
        while True:
            between = _BETWEEN.match(self.text, self.at)
            self.at = between.end() if between is not None else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def more(self) -> None:
        """Read on, and forget what was read before."""
        kept = self.text[self.at :]
        if len(kept) > self._most:
            raise self.broken(f"the value has more than {self._most:,} characters")
        # A value that is not whole is read again from its start, so what is read doubles.
        new = checked_read(self.path, self._source, max(self._piece, len(kept)))
        self.ended = not new
        try:
            self.text, self.at = kept + self._decoder.decode(new, final=self.ended), 0
        except UnicodeDecodeError as error:
            raise self.broken(f"it is not UTF-8: {error.reason}") from error

    def broken(self, why: str) -> DataError:
        """The error at this place."""
        message = f"`{self.path}` is not JSON that can be read after {self.count:,} values: {why}"
        hint = "correct it there, or write one JSON object per line"
        return DataError(message, hint=hint, origin=Origin(str(self.path)))


def _next(texts: _Texts) -> int | None:
    """Where the value ends; None while it may go on behind what was read."""
    try:
        _, end = _DECODER.raw_decode(texts.text, texts.at)
    except json.JSONDecodeError as error:
        if not texts.ended:
            return None
        raise texts.broken(error.msg) from error
    except RecursionError as error:
        raise texts.broken("too many lists and objects are inside each other") from error
    # A number may go on; all else ends in a letter of its own.
    return int(end) if texts.ended or end < len(texts.text) else None
