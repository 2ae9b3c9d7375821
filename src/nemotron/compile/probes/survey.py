"""Reading data before the start: every row where that takes seconds, else as many as that, and a random sample."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from nemotron.compile.nemo_rl_rows import Given, Learned, OfPrompt
from nemotron.data.conversations import FOUND, AnswerKeys, conversation_row
from nemotron.data.rows import PAIR_KEYS, Message, PairKeys, pair_row, parse_row, prompt_row, read_lines
from nemotron.data.turns import ASSISTANT, UnusableRow
from nemotron.errors import DataError

RowKind = Literal["prompt", "preference", "conversation"]

READ_ALL_BYTES = 8 * 2**20
"""Files up to this size are looked at completely, however long it takes."""
LOOK_S = 6.0
"""So many seconds are spent on the rows of larger files."""
FIRST_ROWS, RANDOM_ROWS = 500, 200
"""So many are looked at in any case; the others are counted by their line ends."""
KINDS_OF_CONVERSATIONS = 64
"""By who speaks in turn; so many are kept of a file."""
SHOWN_KINDS = 3
"""Kinds of faults that are told of a file."""
SLICE = 4096
_DEFLATED = 4
"""How much larger a compressed file is taken to be when it is read."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be used."""

    message: str
    path: Path
    line: int
    column: int | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Clash:
    """A pair that prefers what another rejects."""

    path: Path
    line: int
    other: str
    """Place of the other row."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the rows of a file should be."""

    kind: RowKind = "prompt"
    keys: PairKeys = PAIR_KEYS
    """The fields of a pair."""
    answers: AnswerKeys = FOUND
    """The fields of a question and its answer."""
    given: Given | None = None
    """What NeMo-RL is given for a row, where that refuses some."""


PROMPTS = Shape()


@dataclass(slots=True)
class Survey:
    """What was found in one or more data files."""

    rows: int = 0
    """Lines that are not blank."""
    read: int = 0
    """Rows that were parsed."""
    faults: list[Fault] = field(default_factory=list)
    prompts: set[int] = field(default_factory=set)
    """Hashes of the prompts that were read."""
    clashes: list[Clash] = field(default_factory=list)
    roles: dict[tuple[str, ...], tuple[Path, int]] = field(default_factory=dict)
    """Who speaks in turn -> the first row in which they do, of so many kinds of conversations."""
    longest: int = 0
    """Characters of the longest row: the prompt, in a pair with the longer answer."""
    problem: str | None = None
    """Why a file could not be read at all."""
    hint: str | None = None
    """What to do about that, where it is known."""
    _pairs: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Hash of a prompt with both answers, in any order -> hash of the preferred one, and the place."""

    @property
    def complete(self) -> bool:
        """Every row was read."""
        return self.read == self.rows

    @property
    def told(self) -> str:
        """How many rows there are and were looked at, or why none could be, for people."""
        some = "" if self.complete else f", {self.read:,} of them looked at"
        return self.problem or f"{self.rows} rows{some}"


def told_once(faults: Sequence[Fault]) -> list[tuple[Fault, str]]:
    """The first row of every kind of fault with what to say: how many rows have it too. The commonest kinds first."""
    kinds: dict[str, list[Fault]] = {}
    for fault in faults:
        kinds.setdefault(fault.message, []).append(fault)
    commonest = sorted(kinds.values(), key=len, reverse=True)
    # One kind more takes no more room than saying that there is one.
    shown = commonest if len(commonest) <= SHOWN_KINDS + 1 else commonest[:SHOWN_KINDS]
    told = []
    for alike in shown:
        more = len(alike) - 1
        told.append(
            (alike[0], alike[0].message + (f" (and {more:,} more row{'s' if more > 1 else ''})" if more else ""))
        )
    rest = commonest[len(shown) :]
    if rest:
        count = sum(len(alike) for alike in rest)
        told.append((rest[0][0], f"{rest[0][0].message}; {count:,} rows in all cannot be used for still other reasons"))
    return told


def survey(paths: Path | Sequence[Path], shape: Shape = PROMPTS, rows: int | None = None) -> Survey:
    """Look at the rows of data files, once per process and version of the files; ``complete`` says whether at all.

    With ``rows``, their number when it is known (shards of a manifest), what is not looked at is not read either.
    """
    versions = []
    for path in [paths] if isinstance(paths, Path) else paths:
        try:
            stat = path.stat()
        except OSError as error:
            return Survey(problem=error.strerror or "cannot be read")
        versions.append((path, stat.st_size, stat.st_mtime_ns))
    return _survey(tuple(versions), shape, rows)


@lru_cache(maxsize=16)
def _survey(files: tuple[tuple[Path, int, int], ...], shape: Shape, rows: int | None) -> Survey:
    found = Survey()
    small = sum(size * (_DEFLATED if _is_packed(path) else 1) for path, size, _ in files) <= READ_ALL_BYTES
    until = math.inf if small else time.monotonic() + LOOK_S
    try:
        for path, size, _ in files:
            for number, line, wanted in _lines(path, size, until, counted=rows is not None):
                found.rows += 1
                if wanted:
                    found.read += 1
                    _look_at(path, number, line, shape, found)
    except DataError as error:
        found.problem, found.hint = error.message, error.hint
    if rows is not None and found.problem is None:
        found.rows = rows
    return found


def _lines(path: Path, size: int, until: float, *, counted: bool) -> Iterator[tuple[int, bytes, bool]]:
    """Number and text of the lines that are not blank, and whether they are among those to look at.

    Args:
        until: when (`time.monotonic`) only a sample is looked at any more.
        counted: how many lines there are is known, so the rest need not be read.
    """
    chosen = _sample(size * (_DEFLATED if _is_packed(path) else 1)) if until < math.inf and not counted else set()
    offset = 0
    for number, line in read_lines(path):
        offset += len(line)
        if not line.strip():
            continue
        if number <= FIRST_ROWS or time.monotonic() < until:
            yield number, line, True
        elif counted:
            return
        else:
            yield number, line, offset // SLICE in chosen
        chosen.discard(offset // SLICE)


def _is_packed(path: Path) -> bool:
    return path.name.endswith((".gz", ".zst"))


def _sample(size: int) -> set[int]:
    """Slices of the file of which the row that ends in it is read; the same ones for the same size."""
    return {random.Random(size * 1_000_003 + i).randrange(size // SLICE + 1) for i in range(RANDOM_ROWS)}


def _look_at(path: Path, number: int, line: bytes, shape: Shape, found: Survey) -> None:
    try:
        row = parse_row(path, number, line)
        ends: tuple[str, ...] = ()
        if shape.kind == "preference":
            pair = pair_row(path, number, row, shape.keys)
            messages, longest_answer, ends = pair.messages, max(len(pair.chosen), len(pair.rejected)), (ASSISTANT,)
            _compare(path, number, messages, pair.chosen, pair.rejected, found)
        elif shape.kind == "conversation":
            spoken = conversation_row(path, number, row, shape.answers)
            *messages, last = spoken.messages
            longest_answer, ends = len(last["content"]), (last["role"],)
            if isinstance(shape.given, Learned):
                shape.given(spoken)
        else:
            prompt = prompt_row(path, number, row)
            messages, longest_answer = prompt.messages, 0
            if isinstance(shape.given, OfPrompt):
                shape.given(prompt)
    except UnusableRow as problem:
        found.faults.append(Fault(problem.detail, path, number, hint=problem.hint))
    except DataError as error:
        column = error.origin.column if error.origin else None
        found.faults.append(Fault(error.message, path, number, column, hint=error.hint))
    else:
        found.prompts.add(hash(_said(messages)))
        if len(found.roles) < KINDS_OF_CONVERSATIONS:
            found.roles.setdefault((*[message["role"] for message in messages], *ends), (path, number))
        found.longest = max(found.longest, longest_answer + sum(len(message["content"]) for message in messages))


def _said(messages: list[Message]) -> tuple[tuple[str, str], ...]:
    """Who says what: all that a message of ours holds."""
    return tuple([(message["role"], message["content"]) for message in messages])


def _compare(path: Path, number: int, messages: list[Message], chosen: str, rejected: str, found: Survey) -> None:
    """Remember a pair, and note it when an earlier one says the opposite."""
    key = hash((_said(messages), *sorted((chosen, rejected))))
    preferred, place = found._pairs.setdefault(key, (hash(chosen), f"{path.name}:{number}"))
    if preferred != hash(chosen):
        found.clashes.append(Clash(path, number, place))
