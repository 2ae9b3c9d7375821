"""The files that people have: told apart by what is in them, read in bounded memory, or refused with what to do."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nemotron.data.prep.blend import expand, left_out, read_blend
from nemotron.data.rows import read_prompts
from nemotron.errors import DataError, NemotronError, OutputError
from tests.in_process import nemotron
from tests.unit.data.prep_data import lines_of, prompts, rejects_of, rows_of, run, write_rows

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
ROWS = prompts(30)


def ids(rows: list[dict[str, Any]]) -> list[int]:
    return sorted(row["id"] for row in rows)


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


CONTENTS = {
    "lines.json": as_lines(ROWS),
    "array.json": json.dumps(ROWS).encode(),
    "pretty.json": b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode(),
    "objects.json": b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS),
    "array.json.gz": gzip.compress(json.dumps(ROWS, indent=1).encode()),
    "lines.ndjson.gz": gzip.compress(as_lines(ROWS)),
    "LINES.JSONL": as_lines(ROWS),
    "LINES.JSONL.GZ": gzip.compress(as_lines(ROWS)),
    "packed.jsonl": gzip.compress(as_lines(ROWS)),
    "one.json": json.dumps(ROWS[0]).encode(),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("how", ["alone", "in a folder", "in a blend"])
def test_rows_are_known_by_their_content(tmp_path: Path, name: str, how: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(CONTENTS[name])
    source: Any = {"alone": folder / name, "in a folder": folder, "in a blend": {"train": [str(folder / name)]}}[how]
    result = run(tmp_path / "out", source, block_bytes=200)
    assert ids(rows_of(result)) == (list(range(30)) if name != "one.json" else [0])
    assert not rejects_of(result)


def test_values_keep_their_bytes(tmp_path: Path) -> None:
    row = b'{"prompt": "a\\n b", "n": 1.10,\n   "big": ' + b"9" * 300 + b', "list": [1,\n\n 2]}'
    (tmp_path / "in.json").write_bytes(b"[\n" + row + b"\n]")
    [line] = lines_of(run(tmp_path / "out", tmp_path / "in.json"))
    assert line == b'{"prompt": "a\\n b", "n": 1.10, "big": ' + b"9" * 300 + b', "list": [1, 2]}'


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=30) | st.integers() | st.none()), max_size=12),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    block=st.sampled_from([1, 40, 5000]),
)
def test_an_array_is_its_values(
    tmp_path: Path, rows: list[dict[str, Any]], indent: int | None, ascii_only: bool, block: int
) -> None:
    from nemotron.data.values import read_values

    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), errors="surrogatepass")
    blocks = list(read_values(path, block, 1 << 20))
    assert [json.loads(line) for found in blocks for line in found.lines] == rows
    assert [found.first_line for found in blocks] == [
        1 + sum(len(b.lines) for b in blocks[:i]) for i in range(len(blocks))
    ]


FOREIGN: list[tuple[str, bytes, str, str]] = [
    ("rows.jsonl", LFS, "git-LFS pointer", "git lfs pull"),
    ("rows.parquet", LFS, "git-LFS pointer", "git lfs pull"),
    ("rows.json", LFS, "git-LFS pointer", "git lfs pull"),
    ("rows.csv", b"question,answer\na,b\n", "comma-separated", "read_csv"),
    ("rows.csv.gz", gzip.compress(b"question,answer\na,b\n", mtime=0), "comma-separated", "read_csv"),
    ("rows.arrow", b"\xff\xff\xff\xff\x78\x00\x00\x00", "Arrow", "Dataset.from_file"),
    ("rows.jsonl", b"<!DOCTYPE html><html></html>", "web page", "token"),
    ("rows.jsonl", b"PK\x03\x04abc", "ZIP", "unpack"),
    ("rows.jsonl", b"", "nothing is in", "download"),
    ("rows.json", b"[]", "nothing is in", "download"),
]


@pytest.mark.parametrize(("name", "content", "what", "hint"), FOREIGN)
def test_what_holds_no_rows_says_what_it_is(tmp_path: Path, name: str, content: bytes, what: str, hint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=what) as caught:
        run(tmp_path / "out", path)
    assert hint in (caught.value.hint or "")
    if content.strip() and content != b"[]":
        with pytest.raises(DataError, match=what) as caught:
            list(read_prompts(path))
        assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(("name", "content", "what", "hint"), FOREIGN[:-2])
def test_the_dry_run_says_so_already(tmp_path: Path, name: str, content: bytes, what: str, hint: str) -> None:
    (tmp_path / name).write_bytes(content)
    runs = ("--runs-dir", str(tmp_path / "runs"), "--dry-run")
    for words in (
        ("steps", "run", "rl_prep", f"blend_path={tmp_path / name}", f"output_dir={tmp_path / 'out'}"),
        ("steps", "run", "rlhf", "-c", "tiny", f"data.train.data_path={tmp_path / name}"),
    ):
        done = nemotron(*words, *runs)
        assert done.code == 5, done.stderr
        assert what in done.stderr
        assert hint in done.stderr


def test_a_step_names_who_reads_parquet_and_arrays(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"]}), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=1))
    for name in ("rows.parquet", "rows.json"):
        with pytest.raises(DataError) as caught:
            list(read_prompts(tmp_path / name))
        assert f"data_prep/rl_prep blend_path={tmp_path / name}" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("rows.jsonl", "rl_prep blend_path="), ("state.json", "load_from_disk"), ("dataset_dict.json", "load_from_disk")],
)
def test_a_step_that_is_given_a_folder_says_who_reads_it(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).write_text("{}\n")
    with pytest.raises(DataError, match="is a directory") as caught:
        list(read_prompts(tmp_path))
    assert hint in str(caught.value.hint)


def test_what_is_left_out_of_a_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "data").mkdir(parents=True)
    write_rows(folder / "data" / "train.jsonl", ROWS)
    (folder / "dataset_infos.json").write_text('{"default": {"features": {}}}')
    (folder / "README.md").write_text("# rows")
    (folder / "more.csv").write_text("a,b")
    (folder / ".gitattributes").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    write_rows(tmp_path / "elsewhere" / "train.jsonl", ROWS)
    (folder / "linked").symlink_to("../elsewhere")
    (folder / "gone.jsonl").symlink_to("nowhere.jsonl")
    (folder / "data" / "one.jsonl").symlink_to("train.jsonl")
    [dataset] = read_blend(str(folder))
    assert left_out(dataset) == ["README.md", "dataset_infos.json", "gone.jsonl", "linked", "more.csv"]
    assert [file.path.name for file in expand(dataset)] == ["one.jsonl", "train.jsonl"]
    [dataset] = read_blend(str(folder / "*[ad]*"))
    assert left_out(dataset) == [str(folder / name) for name in ("data", "linked")]


def test_a_folder_of_foreign_files_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(DataError, match="holds no data files") as caught:
        run(tmp_path / "out", tmp_path / "in")
    assert "Dataset.from_file" in (caught.value.hint or "")


def test_a_large_file_that_is_no_blend_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "blend.json").write_bytes(b'{"datasets": [' + b'{"path": "x"},' * 300_000)
    started = time.process_time()
    with pytest.raises(DataError):
        run(tmp_path / "out", tmp_path / "blend.json")
    assert time.process_time() - started < 60


def test_rows_inside_an_object_are_no_blend(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    with pytest.raises(DataError) as caught:
        run(tmp_path / "out", tmp_path / "rows.json")
    assert "no blend" in caught.value.message or "unknown key" in caught.value.message


@pytest.mark.parametrize(
    "blend", ['{"train": ["a.jsonl"]}', "{train: [a.jsonl],}", '{"train": ["a.jsonl"],}', "train: [a.jsonl]"]
)
def test_a_blend_is_known_by_its_content(tmp_path: Path, blend: str) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "blend.json").write_text(blend)
    assert ids(rows_of(run(tmp_path / "out", tmp_path / "blend.json"))) == list(range(30))


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows.jsonl"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(DataError):
        list(read_prompts(path))
    with pytest.raises(DataError):
        run(tmp_path / "out", path)
    with pytest.raises(DataError):
        run(tmp_path / "out", {"train": [str(path)]})


def test_numbers_that_json_does_not_have_are_reported(tmp_path: Path) -> None:
    nan, infinite = float("nan"), float("inf")
    table = pyarrow.table(
        {
            "prompt": ["a", "b", "c"],
            "score": [1.0, nan, None],
            "inner": [{"x": [nan, 1.0]}, {"x": [infinite]}, None],
        }
    )
    parquet.write_table(table, tmp_path / "rows.parquet")
    result = run(tmp_path / "out", tmp_path / "rows.parquet")
    assert result.manifest["sources"][0]["not_finite"] == 3
    assert "3 numbers are NaN or infinite" in result.warnings[0]
    assert [row["score"] for row in rows_of(result) if row["prompt"] == "b"] == [None]


def test_a_parquet_row_that_is_too_long_is_a_reject(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"prompt": ["a", "b" * 5000, "c"]}), tmp_path / "rows.parquet")
    result = run(tmp_path / "out", tmp_path / "rows.parquet", max_row_bytes=2048)
    assert [(row["line"], row["reason"]) for row in rejects_of(result)] == [(2, "too-long")]


@pytest.mark.full
def test_memory_does_not_grow_with_the_pictures_in_a_parquet_file(tmp_path: Path) -> None:
    """One row group of 160 MB, read in a process of its own whose peak is measured."""
    pictures = [os.urandom(800_000) for _ in range(200)]
    parquet.write_table(
        pyarrow.table({"prompt": [f"q{i}" for i in range(200)], "image": pictures}), tmp_path / "p.parquet"
    )
    del pictures
    code = (
        "import resource, sys; from pathlib import Path; from nemotron.data.prep.parquet import read_parquet\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rows = sum(len(b.lines) for b in read_parquet(Path(sys.argv[1]), 4 << 20, 8 << 20))\n"
        "print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p.parquet")], capture_output=True, text=True, check=True
    )
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == 200
    assert kilobytes < 120_000 + resource.getpagesize() / 1024


@pytest.mark.parametrize("packing", ["gzip", pytest.param("zstd", marks=pytest.mark.full)])
def test_a_small_file_that_unpacks_to_gigabytes_needs_little_memory(tmp_path: Path, packing: str) -> None:
    zstandard = pytest.importorskip("zstandard")
    zeros = bytes(1 << 20)
    one = gzip.compress(zeros, mtime=0) if packing == "gzip" else zstandard.compress(zeros)
    (tmp_path / "rows.jsonl").write_bytes(one * (300 if packing == "gzip" else 1200))
    code = (
        "import resource, sys; from pathlib import Path; from nemotron.data.content import layout_of\n"
        "from nemotron.data.lines import read_stream\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "path = Path(sys.argv[1]); layout_of(path)\n"
        "lines = sum(len(b.lines) for b in read_stream(path, 1 << 20, 1 << 20))\n"
        "print(lines, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "rows.jsonl")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines, kilobytes = map(int, done.stdout.split())
    assert lines == 1
    assert kilobytes < 400_000


STARTS = [
    b"",
    b"{",
    b"[",
    b'[{"prompt": "a"}, ',
    b'{"prompt": "a"}\n',
    LFS,
    b"PAR1",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
]
STARTS += [b"datasets:\n- ", b"a: &a [x]\nb: *a\n", b"\xef\xbb\xbf{", b"ARROW1\x00\x00", b"[" * 300, b"- " * 300]


@settings(max_examples=150, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(name="a.json", content=b"[" * 100_000, packed=False)
@example(name="a.yaml", content=b"[" * 100_000, packed=False)
@example(name="a.jsonl", content=b'{"prompt": ' * 100_000, packed=True)
@given(
    name=st.sampled_from(
        ["a.json", "a.jsonl", "a.yaml", "a.ndjson.gz", "a.json.gz", "a.jsonl.zst", "a.parquet", "a", "a.csv"]
    ),
    content=st.builds(lambda start, rest: start + rest, st.sampled_from(STARTS), st.binary(max_size=60)),
    packed=st.booleans(),
)
def test_any_bytes_as_any_file_end_in_rows_or_an_error(tmp_path: Path, name: str, content: bytes, packed: bool) -> None:
    """Kind: whatever a file holds, it becomes rows or an error of data, never a crash."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if packed else content)
    for read in (
        lambda: run(tmp_path / "out", path, force=True, max_row_bytes=4096),
        lambda: run(tmp_path / "out", {"train": [str(path)]}, force=True),
        lambda: list(read_prompts(path)),
    ):
        problem = error_of(read)
        assert problem is None or (isinstance(problem, DataError | OutputError) and problem.exit_code in (5, 8))


def error_of(read: Any) -> NemotronError | None:
    try:
        read()
    except NemotronError as problem:
        return problem
    return None
