"""Lines that survive kill -9 and a full disk."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.disk.faults import output_errors
from nemotron.errors import DataError, OutputError
from nemotron.runs.jsonl import JsonLines


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.append([{"step": 1, "x": 0.1}, {"step": 2, "text": "zwei\nZeilen ü"}])
    lines.append([{"step": 3}])
    assert list(lines.read()) == [{"step": 1, "x": 0.1}, {"step": 2, "text": "zwei\nZeilen ü"}, {"step": 3}]


def test_missing_file_has_no_rows_and_stays_missing(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.keep(lambda row: True)
    assert list(lines.read()) == []
    assert not lines.path.exists()


def test_not_finite_numbers_are_null_so_every_reader_can_parse(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.append([{"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1e-300}])

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(lines.path.read_text(), parse_constant=refuse) == {"a": None, "b": None, "c": None, "d": 1e-300}


@given(cut=st.integers(min_value=0, max_value=200))
@settings(deadline=None, max_examples=60)
def test_cut_at_any_byte_loses_only_the_torn_line(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.jsonl"
    rows = [{"step": step, "text": "é" * step} for step in range(6)]
    JsonLines(path).append(rows)
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    assert list(JsonLines(path).read()) == rows[:complete]

    JsonLines(path).append([{"step": 99}])
    assert list(JsonLines(path).read()) == [*rows[:complete], {"step": 99}]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_keep_removes_a_torn_line_and_what_is_not_wanted(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    JsonLines(path).keep(lambda row: row["step"] <= 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert [child.name for child in tmp_path.iterdir()] == ["m.jsonl"]


def test_keep_drops_what_lies_between(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 9}\n{"step": 2}\n{"step": 9}\n')
    JsonLines(path).keep(lambda row: row["step"] <= 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert [child.name for child in tmp_path.iterdir()] == ["m.jsonl"]


@pytest.mark.parametrize("last_step", [3, 2, -1])
def test_keep_writes_only_where_something_goes(tmp_path: Path, last_step: int) -> None:
    """The rows that stay are not written again: a resumed run may have gigabytes of them."""
    path = tmp_path / "m.jsonl"
    JsonLines(path).append([{"step": step} for step in (1, 2, 3)])
    before = path.stat()
    JsonLines(path).keep(lambda row: row["step"] <= last_step)
    assert path.stat().st_ino == before.st_ino
    assert [row["step"] for row in JsonLines(path).read()] == [step for step in (1, 2, 3) if step <= last_step]
    if last_step == 3:
        assert path.stat().st_mtime_ns == before.st_mtime_ns


_LARGE = """
import resource, sys
from pathlib import Path
from nemotron.runs.jsonl import JsonLines

path = Path(sys.argv[1])
with path.open("w") as file:
    for step in range(2000):
        file.write('{"step": %d, "text": "%s"}\\n' % (step, "x" * 50_000))
    file.write('{"step": 2000, "te')
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 32 * 2**20,) * 2)
JsonLines(path).append([{"step": 2000}])
JsonLines(path).keep(lambda row: row["step"] < 1990)
JsonLines(path).keep(lambda row: row["step"] != 5)
print(sum(1 for _ in JsonLines(path).read()))
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """100 MB of rows with room for 32."""
    words = [sys.executable, "-c", _LARGE, str(tmp_path / "samples.jsonl")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1989\n"), done.stderr


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", "12"])
def test_damage_before_the_last_line_is_an_error_with_its_place(tmp_path: Path, line: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(DataError) as caught:
        list(JsonLines(path).read())
    assert str(caught.value.origin) == f"{path}:2"


def test_full_disk_is_an_output_error_that_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no space left on device") as caught, output_errors(tmp_path):
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    assert "free some disk space" in str(caught.value.hint)


_FILL = """
import resource, signal, sys
from pathlib import Path
from nemotron.errors import OutputError
from nemotron.disk.faults import output_errors
from nemotron.runs.jsonl import JsonLines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
lines = JsonLines(Path(sys.argv[1]))
lines.append([{"step": 1, "text": "x" * 500}])
resource.setrlimit(resource.RLIMIT_FSIZE, (800, 800))
try:
    lines.append([{"step": 2, "text": "y" * 500}])
except OutputError as error:
    print(error.message)
try:
    lines.keep(lambda row: True)
    JsonLines(Path(sys.argv[1] + "2")).append([{"step": 1, "text": "x" * 5000}])
except OutputError as error:
    print(error.message)
"""


def test_a_write_that_runs_out_of_room_leaves_no_part_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    done = subprocess.run([sys.executable, "-c", _FILL, str(path)], capture_output=True, text=True, check=True)
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before
    assert done.stdout.splitlines() == [
        f"cannot write `{path}`: file too large",
        f"cannot write `{path}2`: file too large",
    ]
    assert [row["step"] for row in JsonLines(path).read()] == [1]
    assert path.read_bytes().endswith(b'"}\n')
    assert (tmp_path / "m.jsonl2").read_bytes() == b""
