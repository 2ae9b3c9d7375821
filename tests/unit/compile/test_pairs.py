"""Preference rows before the start: faults by file and line, and pairs that contradict each other."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.jobs.base import Job
from nemotron.compile.probes import survey as surveys
from nemotron.compile.probes.survey import FIRST_ROWS, READ_ALL_BYTES, Shape, survey
from tests.unit.compile.compile_world import Compile, CompileStep, named, write_rows

PAIRS = Shape("preference")


def pair(prompt: str, chosen: str = "good", rejected: str = "bad") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@pytest.fixture
def preference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "row_kind", "preference")


@pytest.mark.usefixtures("preference")
def test_pairs_that_cannot_be_used_are_named(compiled: Compile, world: Path) -> None:
    rows = [pair(f"own {i}") for i in range(100)]
    rows[3] = pair("own 3", "same", "same")
    rows[4] = pair("own 4", "good", "  ")
    rows[5] = {"prompt": "own 5"}
    write_rows(world / "own.jsonl", rows)
    write_rows(world / "val.jsonl", [pair("val")])
    found = named(compiled("own.yaml"), "data-row")
    assert [(f.origin.line if f.origin else None, f.message) for f in found] == [
        (4, "train data: both answers are the same, so nothing is preferred"),
        (5, "train data: the other answer is empty"),
        (6, "train data: row is no preference pair"),
    ]
    assert found[0].hint == "drop the row"


@pytest.mark.usefixtures("preference")
def test_the_same_answers_in_both_orders_are_an_error(compiled: Compile, world: Path) -> None:
    rows = [pair(f"own {i}") for i in range(100)]
    rows[9] = pair("own 2", "bad", "good")
    rows[10] = pair("own 7")  # the same pair again says nothing new
    rows[11] = pair("own 3", "bad", "better")  # another answer
    write_rows(world / "own.jsonl", rows)
    write_rows(world / "val.jsonl", [pair("val")])
    [finding] = named(compiled("own.yaml"), "contradictory-pairs")
    assert (finding.severity, str(finding.origin)) == ("error", "own.jsonl:10")
    assert finding.message == (
        "1 pairs of the train data prefer the answer that another row with that prompt rejects; "
        "this row contradicts own.jsonl:3"
    )


def test_clashes_are_seen_across_files(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", [pair("x")])
    second = write_rows(
        tmp_path / "b.jsonl", [{"prompt": [{"role": "user", "content": "x"}], **pair("x", "bad", "good")}]
    )
    found = survey([first, second], PAIRS)
    assert [(clash.path, clash.line, clash.other) for clash in found.clashes] == [(second, 1, "a.jsonl:1")]
    assert (found.rows, found.read, found.longest) == (2, 2, 5)


def test_compressed_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(pair(str(i))) + "\n" for i in range(7)).encode()))
    found = survey(path, PAIRS)
    assert (found.rows, found.read, found.faults, found.problem) == (7, 7, [], None)
    path.write_bytes(path.read_bytes()[:-9])
    assert "damaged or ends early" in (survey(path, PAIRS).problem or "")


def test_all_rows_are_looked_at_where_that_takes_seconds(tmp_path: Path, compiled_step: CompileStep) -> None:
    """The bad row stands behind the first thousands, in a file that was sampled before; the plan has nothing to add."""
    rows = [pair(str(i), "good " * 400) for i in range(5000)]
    path = write_rows(tmp_path / "pairs.jsonl", [*rows, {"prompt": "p", "chosen": "same", "rejected": "same"}])
    assert path.stat().st_size > READ_ALL_BYTES
    found = survey(path, PAIRS)
    assert (found.rows, found.read, [fault.line for fault in found.faults]) == (5001, 5001, [5001])
    plan = compiled_step("dpo", f"data.train.data_path={path}")
    assert not [finding for finding in plan.findings if finding.name == "rows-not-looked-at"]
    assert "5001 rows" in [file.detail for file in plan.inputs]


def test_of_more_the_plan_says_how_many_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled_step: CompileStep
) -> None:
    monkeypatch.setattr(surveys, "LOOK_S", 0.0)
    surveys._survey.cache_clear()
    path = write_rows(tmp_path / "pairs.jsonl", [pair(str(i), "good " * 400) for i in range(5000)])
    found = survey(path, PAIRS)
    plan = compiled_step("dpo", f"data.train.data_path={path}")
    (note,) = [finding for finding in plan.findings if finding.name == "rows-not-looked-at"]
    assert note.severity == "note"
    assert f"{found.read:,} of 5,000 train rows were looked at" in note.message
    assert f"5000 rows, {found.read:,} of them looked at" in [file.detail for file in plan.inputs]


def test_of_much_data_a_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "LOOK_S", 0.0)
    surveys._survey.cache_clear()
    rows = [pair(str(i), "good " * 400) for i in range(5000)]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    assert path.stat().st_size > READ_ALL_BYTES
    found = survey(path, PAIRS)
    assert found.rows == 5000
    assert FIRST_ROWS + 100 < found.read < FIRST_ROWS + 210
    known = survey(path, PAIRS, rows=5000)
    assert (known.rows, known.read) == (5000, FIRST_ROWS)
