"""Rows that stand for others: `{"dataset": KEY, "_hf_placeholder": {"row": N, "question_template": T}}`.

The questions and answers that are needed are looked up once, before the first pass, and kept in a small file that every
process reads. What cannot be found is an error that says how many rows it would cost, never a shorter data set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from nemotron.config.schema.data_prep import PlaceholderSource
from nemotron.data.content import layout_of
from nemotron.data.lines import Block, read_stream
from nemotron.data.prep.blend import Dataset, SourceFile, expand
from nemotron.data.prep.kinds import PLACEHOLDER
from nemotron.data.prep.rawjson import rewritten
from nemotron.data.prep.reading import whole_blocks
from nemotron.data.turns import Row, refuse
from nemotron.disk.atomic import write_atomic
from nemotron.disk.documents import MalformedError, read_object
from nemotron.errors import DataError, NemotronError, Origin
from nemotron.suggest import closest, listed

_READ = 1 << 22
_LONGEST = 1 << 28
_SHOWN = 5


@dataclass
class _Need:
    """The rows of one other data set that are referred to."""

    rows: set[int] = field(default_factory=set)
    places: list[str] = field(default_factory=list)
    """``file:line`` of the first rows that refer to it."""
    count: int = 0


@dataclass(frozen=True)
class Resolver:
    """Fills placeholders from what was looked up."""

    found: Mapping[str, Mapping[int, tuple[str, Any]]]
    """Key -> row number -> question and answer."""
    revisions: Mapping[str, str]
    known: Mapping[str, PlaceholderSource]

    def resolve(self, row: Row, line: bytes) -> bytes:
        """The row with question, expected answer and prompt; its own other fields keep their bytes.

        Raises:
            UnusableRow: the placeholder is malformed, or its template does not fit.
        """
        key, number, template = _reference(row)
        question, answer = self.found[key][number]
        text = fill(template, question, unwrap=self.known[key].unwrap)
        params = row.get("responses_create_params")
        params = dict(params) if isinstance(params, dict) else {}
        ours = {
            "responses_create_params": {**params, "input": [{"role": "user", "content": text}]},
            "question": text if self.known[key].unwrap else question,
            "expected_answer": answer,
        }
        return rewritten(line, ours, without=(PLACEHOLDER,))


def _reference(row: Row) -> tuple[str, int, Any]:
    placeholder, key = row[PLACEHOLDER], row.get("dataset")
    if not isinstance(key, str):
        refuse("placeholder", "a placeholder row needs `dataset`")
    number = placeholder.get("row") if isinstance(placeholder, dict) else None
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        refuse("placeholder", f"`{PLACEHOLDER}.row` must be a row number")
    return key, number, placeholder.get("question_template")


def fill(template: Any, question: str, *, unwrap: bool) -> str:
    """The question inside its template: a text with `{question}`, or `prefix` and `suffix`; none leaves it as it is.

    Raises:
        UnusableRow: the template has no place for the question.
    """
    if unwrap:
        paragraphs = question.split("\n\n")
        question = "\n\n".join(paragraphs[1:-1]) if len(paragraphs) > 2 else question
    if template is None:
        return question
    if isinstance(template, str):
        if "{question}" not in template:
            refuse("placeholder", "the template of the placeholder has no `{question}`")
        return template.replace("{question}", question)
    if isinstance(template, dict):
        return f"{template.get('prefix') or ''}{question}{template.get('suffix') or ''}".rstrip("\n")
    refuse("placeholder", "`question_template` must be a text, or an object with `prefix` and `suffix`")


def build_resolver(sources: Sequence[SourceFile], known: Mapping[str, PlaceholderSource], work: Path) -> Resolver:
    """Look up everything that placeholders of the sources refer to.

    Raises:
        DataError: a data set is unknown, cannot be reached or has no such row; the message says what it would cost.
    """
    path = work / WORK_FILE
    saved = looked_up(work)
    if saved is not None:
        again = {key: {int(n): (q, a) for n, (q, a) in rows.items()} for key, rows in saved["found"].items()}
        return Resolver(again, saved["revisions"], known)
    needs = find_needs(sources)
    found: dict[str, dict[int, tuple[str, Any]]] = {}
    revisions: dict[str, str] = {}
    problems: list[tuple[str, _Need, NemotronError]] = []
    for key, need in sorted(needs.items()):
        try:
            found[key], revisions[key] = _look_up(key, need, known)
        except NemotronError as error:
            problems.append((key, need, error))
    if problems:
        raise _cost(problems)
    text = {
        "found": {key: {str(n): pair for n, pair in rows.items()} for key, rows in found.items()},
        "revisions": revisions,
    }
    write_atomic(path, orjson.dumps(text))
    return Resolver(found, revisions, known)


WORK_FILE = "placeholders.json"


def looked_up(work: Path) -> dict[str, Any] | None:
    """What an earlier attempt found; None where it found nothing, or left it damaged."""
    try:
        return read_object(work / WORK_FILE)
    except (OSError, MalformedError):
        return None


def find_needs(sources: Sequence[SourceFile]) -> dict[str, _Need]:
    """What is referred to, by data set."""
    needs: dict[str, _Need] = defaultdict(_Need)
    word = PLACEHOLDER.encode()
    for source in sources:
        for block in _blocks(source):
            for index, line in enumerate(block.lines):
                if word not in line:
                    continue
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError:
                    # The first pass rejects this line with its reason.
                    continue
                placeholder = row.get(PLACEHOLDER) if isinstance(row, dict) else None
                if not isinstance(placeholder, dict) or not isinstance(row.get("dataset"), str):
                    continue
                number = placeholder.get("row")
                if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
                    need = needs[row["dataset"]]
                    need.rows.add(number)
                    need.count += 1
                    if len(need.places) < _SHOWN:
                        need.places.append(f"{source.label}:{(block.first_line or 1) + index}")
    return dict(needs)


def _blocks(source: SourceFile) -> Iterator[Block]:
    """All lines of a source."""
    layout = layout_of(source.path)
    if layout != "lines":
        yield from whole_blocks(source.path, layout, _READ, _LONGEST)
        return
    yield from read_stream(source.path, _READ, _LONGEST)


def _look_up(key: str, need: _Need, known: Mapping[str, PlaceholderSource]) -> tuple[dict[int, tuple[str, Any]], str]:
    if key not in known:
        guess = closest(key, list(known))
        hint = f"did you mean `{guess}`?" if guess else "add it under `placeholder_sources`"
        raise DataError(f"`placeholder_sources` has no `{key}`", hint=hint)
    source = known[key]
    files = _split_files(source)
    wanted, found, first = sorted(need.rows), {}, 0
    for file in files:
        for block in _blocks(file):
            last = first + len(block.lines)
            for number in [n for n in wanted if first <= n < last]:
                row = orjson.loads(block.lines[number - first])
                question, answer = _at(row, source.question), _at(row, source.answer)
                if not isinstance(question, str) or answer is None:
                    raise DataError(f"row {number} of `{source.path}` has no question and answer at the given paths")
                found[number] = (question, answer)
            first = last
    if len(found) < len(wanted):
        missing = next(n for n in wanted if n not in found)
        raise DataError(
            f"`{source.path}` has {first} rows, and row {missing} is asked for", hint="pin the right `revision`"
        )
    return found, files[0].revision or "local"


def _split_files(source: PlaceholderSource) -> list[SourceFile]:
    dataset = Dataset(path=source.path, revision=source.revision, split=source.split)
    try:
        return expand(dataset)
    except DataError:
        # Files whose names say nothing about splits hold the only one there is.
        files = expand(Dataset(path=source.path, revision=source.revision))
        if {file.split for file in files} == {None} or len(files) == 1:
            return files
        named = [file for file in files if source.split and Path(file.label).name.startswith(source.split)]
        if named:
            return named
        raise


def _at(row: Any, path: Sequence[str | int]) -> Any:
    for name in path:
        if isinstance(row, dict) and isinstance(name, str):
            row = row.get(name)
        elif isinstance(row, list) and isinstance(name, int) and name < len(row):
            row = row[name]
        else:
            return None
    return row


def _cost(problems: Sequence[tuple[str, _Need, NemotronError]]) -> DataError:
    lines = []
    for key, need, error in problems:
        places = listed(need.places) + (" ..." if need.count > len(need.places) else "")
        lines.append(f"`{key}`: {error.message}; it would cost {need.count} rows ({places})")
    total = sum(need.count for _, need, _ in problems)
    file, _, line = problems[0][1].places[0].rpartition(":")
    hint = problems[0][2].hint or "name a local copy in `placeholder_sources`"
    message = f"{total} placeholder rows cannot be resolved: " + "; ".join(lines)
    return DataError(message, hint=hint, origin=Origin(file, line=int(line)))
