"""From lines to checked rows: the first pass over a block. Every line ends up kept, or rejected with a reason."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from nemotron.data.forms import Form, Kind, Reading, ends_before_answer, filled
from nemotron.data.prep.kinds import PLACEHOLDER, as_written, form_of, join_aligner_pair, many_of, texts_of
from nemotron.data.prep.normal import NO_TEXT, line_digests, prompt_digests, text_digests
from nemotron.data.prep.rawjson import renamed, rewritten
from nemotron.data.turns import Row, UnusableRow, type_name
from nemotron.disk.documents import DEEPEST, depth

SHOWN_BYTES = 1 << 16
"""Rejected rows are copied into ``rejects.jsonl`` up to this length."""
_MOST_SHAPES = 4096
_AT_ONCE = 128
"""Rows that are parsed and checked together; more of them leave the processor's cache."""

Resolve = Callable[[Row, bytes], bytes]


class PlaceholdersFound(Exception):
    """A row stands for a row of another data set, and nothing was looked up yet."""


def look_up_first(row: Row, line: bytes) -> bytes:
    """The ``resolve`` of a scanner while nothing was looked up.

    Raises:
        PlaceholdersFound: always.
    """
    raise PlaceholdersFound


@dataclass(frozen=True, slots=True)
class Reject:
    """A line that was not kept."""

    index: int
    """Position in the block."""
    reason: str
    detail: str
    shown: bytes
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """The reject without its place; a row that is not UTF-8 is given twice, readable and exact."""
        found: dict[str, Any] = {"reason": self.reason, "detail": self.detail, "bytes": self.bytes}
        try:
            found["row"] = self.shown.decode()
        except UnicodeDecodeError:
            found["row"] = self.shown.decode(errors="replace")
            if self.reason == "not-utf-8":
                found["row_base64"] = base64.b64encode(self.shown).decode()
        return found


@dataclass(slots=True)
class Scanned:
    """The checked rows of a block, in the order of its lines."""

    lines: list[bytes] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    """Position of each kept row in the block."""
    checks: list[bytes] = field(default_factory=list)
    """Hash of each line. Texts are hashed at once and not kept: that costs less than bringing them back to mind."""
    prompts: list[bytes] = field(default_factory=list)
    """Hash of the prompt of each row."""
    chosen: list[bytes] = field(default_factory=list)
    rejected: list[bytes] = field(default_factory=list)
    """Hashes of the answers that belong to a row; of no text where it has none."""
    rows: list[Row] = field(default_factory=list)
    """The parsed rows; only where they are asked for."""
    forms: list[Form] = field(default_factory=list)
    """What each row was taken for."""
    rejects: list[Reject] = field(default_factory=list)
    read: int = 0
    """Rows looked at: kept and rejected."""

    def sort(self, start: int) -> None:
        """Bring the kept rows from ``start`` on into the order of their lines."""
        order = sorted(range(start, len(self.index)), key=self.index.__getitem__)
        self.pick([*range(start), *order])

    def pick(self, places: Sequence[int]) -> None:
        """Keep the kept rows at these places, in this order."""
        for name in ("lines", "index", "checks", "prompts", "chosen", "rejected", "rows", "forms"):
            values = getattr(self, name)
            if values:
                setattr(self, name, [values[place] for place in places])


@dataclass
class Scanner:
    """Checks rows of one data set."""

    kind: Kind | None = None
    """Declared kind; None finds it row by row."""
    fields: dict[str, str] = field(default_factory=dict)
    """Field mapping of the blend: their name -> ours."""
    aligner_pairs: bool = False
    """Two consecutive ``text`` lines make a row."""
    resolve: Resolve | None = None
    """Turns a placeholder row into a full one."""
    keep_rows: bool = False
    cut_answers: bool = False
    """Leave out the answer at the end of a prompt."""
    _shapes: dict[tuple[str, ...], Form] = field(default_factory=dict)
    """The form of all rows with these fields, where none of them holds null."""
    _together: dict[tuple[str, ...], Form] = field(default_factory=dict)
    """Those of them that can be checked together."""

    def scan(self, lines: Sequence[bytes], too_long: dict[int, int]) -> Scanned:
        """Check every line of a block; ``too_long`` maps the index of a line that was cut to its real length."""
        found = Scanned()
        if self.aligner_pairs:
            self._scan_pairs(lines, too_long, found)
        elif self.fields or too_long:
            self._scan(lines, too_long, found)
        else:
            self._scan_fast(lines, found)
        found.read = len(found.lines) + len(found.rejects)
        return found

    def _scan_fast(self, lines: Sequence[bytes], found: Scanned) -> None:
        """What decides the speed of the whole step: a few rows at a time, so that they stay in the cache."""
        for start in range(0, len(lines), _AT_ONCE):
            some = lines[start : start + _AT_ONCE]
            rows = _parsed(some)
            forms = list(map(self._together.get, map(tuple, rows)))
            common = next((form for form in forms if form is not None), None)
            if common is None or not self._scan_many(common, start, some, rows, forms, found):
                self._scan_rows(range(len(some)), start, some, rows, found)

    def _scan_many(
        self,
        common: Form,
        start: int,
        lines: Sequence[bytes],
        rows: Sequence[Row],
        forms: Sequence[Form | None],
        found: Scanned,
    ) -> bool:
        """Check the rows of the form ``common`` together, then the others one by one; False when that cannot be."""
        check = many_of(common, ())
        assert check is not None
        others: list[int] = []
        mine, picked = rows, lines
        places = list(range(start, start + len(rows)))
        if forms.count(common) < len(forms):
            others = [index for index, form in enumerate(forms) if form is not common]
            mine = [row for row, form in zip(rows, forms, strict=True) if form is common]
            picked = [line for line, form in zip(lines, forms, strict=True) if form is common]
            places = [start + index for index, form in enumerate(forms) if form is common]
        columns = check(mine)
        if columns is None:
            return False
        kept = len(found.index)
        prompts, chosen, rejected = columns
        none = [NO_TEXT] * len(prompts)
        found.lines += picked
        found.index += places
        found.checks += line_digests(picked)
        found.prompts += prompt_digests(prompts)
        found.chosen += text_digests(chosen) if chosen else none
        found.rejected += text_digests(rejected) if rejected else none
        found.forms += [common] * len(prompts)
        if self.keep_rows:
            found.rows += mine
        self._scan_rows(others, start, lines, rows, found)
        if len(found.index) > kept + len(prompts):
            found.sort(kept)
        return True

    def _scan_rows(
        self, places: Sequence[int], start: int, lines: Sequence[bytes], rows: Sequence[Row], found: Scanned
    ) -> None:
        """Check the rows at ``places`` one by one; the first line of ``lines`` is the line ``start`` of the block."""
        for index in places:
            line, row = lines[index], rows[index]
            try:
                if row is _UNREAD:
                    row = _object(line)
                if PLACEHOLDER in row and self.resolve is not None and row[PLACEHOLDER] is not None:
                    line = self.resolve(row, line)
                    row = orjson.loads(line)
                form, reading = self._read(row)
                line = as_written(form, row, line, reading)
                prompt, answers = texts_of(reading)
            except UnusableRow as error:
                found.rejects.append(_rejected(start + index, error, line))
                continue
            found.lines.append(line)
            found.index.append(start + index)
            found.checks += line_digests([line])
            found.prompts += prompt_digests([prompt])
            found.chosen += text_digests([answers[0] if answers else ""])
            found.rejected += text_digests([answers[1] if answers else ""])
            found.forms.append(form)
            if self.keep_rows:
                found.rows.append(orjson.loads(line))

    def _read(self, row: Row) -> tuple[Form, Reading]:
        """The form of a row and what a model is shown of it.

        Raises:
            UnusableRow: it has none, or cannot be used.
        """
        names = filled(row)
        # What a null field means is decided row by row.
        form = self._shapes.get(names) if len(names) == len(row) else None
        if form is None:
            form = form_of(row, names, self.kind)
            if len(names) == len(row) and len(self._shapes) < _MOST_SHAPES and PLACEHOLDER not in row:
                self._shapes[names] = form
                if many_of(form, names) is not None:
                    self._together[names] = form
        reading = form.read(row)
        ends_before_answer(reading, cut=self.cut_answers)
        return form, reading

    def _scan(self, lines: Sequence[bytes], too_long: dict[int, int], found: Scanned) -> None:
        for index, line in enumerate(lines):
            try:
                if index in too_long:
                    raise UnusableRow("too-long", f"the line has {too_long[index]} bytes, more than `max_row_bytes`")
                if self.fields and line.strip():
                    line = self._renamed(line)
            except UnusableRow as error:
                found.rejects.append(_rejected(index, error, line, too_long.get(index)))
                continue
            part = Scanned()
            self._scan_fast([line], part)
            self._add(found, part, index)

    def _scan_pairs(self, lines: Sequence[bytes], too_long: dict[int, int], found: Scanned) -> None:
        for index in range(0, len(lines), 2):
            pair = lines[index : index + 2]
            try:
                if len(pair) < 2:
                    raise UnusableRow("odd-line", "the last pair has no second line")
                for line, place in zip(pair, (index, index + 1), strict=True):
                    if place in too_long:
                        raise UnusableRow("too-long", f"a line of the pair has {too_long[place]} bytes")
                    _object(line)
                joined = join_aligner_pair(*pair)
            except UnusableRow as error:
                found.rejects.append(_rejected(index, error, b"\n".join(pair)))
                continue
            part = Scanned()
            self._scan_fast([joined], part)
            self._add(found, part, index)

    def _add(self, found: Scanned, part: Scanned, index: int) -> None:
        found.lines += part.lines
        found.checks += part.checks
        found.prompts += part.prompts
        found.chosen += part.chosen
        found.rejected += part.rejected
        found.rows += part.rows
        found.index += [index] * len(part.lines)
        found.forms += part.forms
        found.rejects += [Reject(index, r.reason, r.detail, r.shown, r.bytes) for r in part.rejects]

    def _renamed(self, line: bytes) -> bytes:
        """The line with the fields that the blend maps under our names; theirs may be inside others: `data.question`.

        Raises:
            UnusableRow: it is no object, or has a field of our name already.
        """
        row = _object(line)
        names = {theirs: ours for theirs, ours in self.fields.items() if theirs in row}
        inner: Row = {}
        for theirs, ours in self.fields.items():
            if theirs not in names and "." in theirs and (value := _inside(row, theirs.split("."))) is not None:
                inner[ours] = value
            if (theirs in names or ours in inner) and row.get(ours) is not None and ours not in names:
                raise UnusableRow("field-clash", f"`{theirs}` cannot become `{ours}`: the row has that field already")
        if names:
            gone = [ours for ours in names.values() if ours in row and ours not in names]
            line = renamed(rewritten(line, {}, without=gone) if gone else line, names)
        return rewritten(line, inner) if inner else line


def _inside(value: Any, path: Sequence[str]) -> Any:
    """The value at a path of names and positions inside objects and lists; None when there is none."""
    for name in path:
        if value.__class__ is dict:
            value = value.get(name)
        elif value.__class__ is list and name.isdecimal() and len(name) < 10 and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


_UNREAD: Row = {}
"""Stands for a line that is no JSON object."""


def _parsed(lines: Sequence[bytes]) -> list[Row]:
    """Every line parsed; ``_UNREAD`` where that is impossible, gives no object, or one that is too deep."""
    rows: list[Row] = []
    parse = map(orjson.loads, lines)
    while len(rows) < len(lines):
        try:
            # Goes on after the line that failed: what was parsed before it is in `rows` already.
            rows.extend(parse)
        except orjson.JSONDecodeError:
            rows.append(_UNREAD)
    if set(map(type, rows)) - {dict}:
        rows = [row if row.__class__ is dict else _UNREAD for row in rows]
    for index, line in enumerate(lines):
        # Every bracket is closed: shorter lines cannot be that deep.
        if len(line) > 2 * DEEPEST and line.count(b"[") + line.count(b"{") > DEEPEST and depth(line) > DEEPEST:
            rows[index] = _UNREAD
    return rows


def _object(line: bytes) -> Row:
    """The object of a line.

    Raises:
        UnusableRow: there is none, or one that no step reads.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _broken(line, error) from error
    if row.__class__ is not dict:
        raise UnusableRow("not-an-object", f"the line holds {type_name(row)}, not an object")
    if line.count(b"[") + line.count(b"{") > DEEPEST and depth(line) > DEEPEST:
        raise UnusableRow("too-deep", f"more than {DEEPEST} lists and objects are inside each other")
    found: Row = row
    return found


def _rejected(index: int, error: UnusableRow, line: bytes, length: int | None = None) -> Reject:
    detail = f"{error.detail} ({error.hint})" if error.hint else error.detail
    return Reject(index, error.reason, detail, line[:SHOWN_BYTES], len(line) if length is None else length)


def _broken(line: bytes, error: orjson.JSONDecodeError) -> UnusableRow:
    if not line.strip():
        return UnusableRow("blank", "the line is blank")
    try:
        line.decode()
    except UnicodeDecodeError as problem:
        return UnusableRow("not-utf-8", f"not UTF-8: {problem.reason} at byte {problem.start}")
    return UnusableRow("not-json", f"not JSON: {error.msg} (column {error.colno})")
