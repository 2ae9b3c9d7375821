"""All JSON and YAML comes in through bounded readers; what lies damaged in a run folder is an error that names it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.artifacts.inspect import inspect
from nemotron.artifacts.verify import verify
from nemotron.checkpoints.store import CheckpointStore, read_info
from nemotron.data.rows import read_lines
from nemotron.disk.documents import DEEPEST, MalformedError, depth, parse_json, read_bytes, read_json, read_object
from nemotron.errors import ArtifactError, DataError
from nemotron.runs.jsonl import JsonLines
from nemotron.runs.status import Status
from tests.unit.test_architecture import SOURCE, modules

BY_OURSELVES = {"disk/documents.py"}
UNBOUNDED = re.compile(r"json\.loads?\((?:[\w./ ()]*\.read(?:_bytes|_text)?\(|file\b)|YAML\([^)]*\)\.load\(")


def lines(but: set[str]) -> Iterator[tuple[str, str]]:
    """Lines of all modules but some, with the module's name."""
    assert len(modules()) > 500
    for path in modules():
        relative = str(path.relative_to(SOURCE))
        # Inside the sandbox nothing of the product is there; it reads what its launcher wrote.
        if relative not in but and not relative.startswith("sandbox/"):
            for line in path.read_text().splitlines():
                yield relative, line.strip()


def test_documents_are_read_through_one_reader() -> None:
    allowed = ("await", "__file__")
    found = [
        (path, line)
        for path, line in lines(BY_OURSELVES)
        if UNBOUNDED.search(line) and not any(word in line for word in allowed)
    ]
    assert found == [], "use nemotron.disk.documents"


OPENED = re.compile(
    r"\.open\((?:\"r?b\")?\)|[^.\w]open\([^)]*\"rb\"|\.read_text\(|\.read_bytes\(\)"
    r"|torch\.load\((?!regular)|safe_open\((?!regular)|load_file\((?!regular)"
)
OURS = {
    # What the system says.
    *("place.py", "processes/cores.py", "executors/doctor.py", "install.py"),
    # Files of the package, and what it made of them.
    *("snapshot.py", "cli/profiles.py", "judge/instruct.py", "checkpoints/chat_template.py", "executors/mirror.py"),
    *("compile/probes/torch_optim.py", "engines/nemo_rl/folder.py", "engines/nemo_rl/server.py", "rewards/code.py"),
    # What another process of the same run writes.
    *(
        "engines/embedded/critic.py",
        "engines/nemo_rl/lines.py",
        "executors/bootstrap.py",
        "executors/slurm/ray_node.py",
    ),
    # Shards that were hashed before.
    "rl/tokenized.py",
}
"""Modules that open files which nobody else had his hands on."""


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for() -> None:
    found = [(path, line) for path, line in lines(BY_OURSELVES | OURS) if OPENED.search(line)]
    assert found == [], "use `open_regular`, `read_bytes` or `regular` of nemotron.disk.documents"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "{", "\xff", '"\\ud800"', ""])
def test_what_cannot_be_used_is_malformed(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(MalformedError):
        read_json(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_only_files_of_a_bounded_size_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"1" * 100)
    with pytest.raises(OSError, match=r"regular|directory|more than"):
        read_bytes(path, 99)


MANY = [False, pytest.param(True, marks=pytest.mark.full)]
"""Whether to try many examples."""
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
scalars |= st.text(st.characters(exclude_categories=["Cs"]))
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('[]{}"\\a'), inner),
)


@settings(max_examples=100, deadline=None)
@given(value=values, ascii_only=st.booleans())
def test_a_json_value_reads_as_it_was(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == parse_json(text.encode()) == value

    def deep(at: Any) -> int:
        return (
            1 + max(map(deep, at.values() if isinstance(at, dict) else at), default=0)
            if isinstance(at, dict | list)
            else 0
        )

    assert depth(text.encode()) == deep(value) <= DEEPEST


damaged = st.binary(max_size=20) | values.map(lambda value: json.dumps(value).encode())


@pytest.mark.parametrize("many", MANY, ids=["some", "many"])
def test_a_damaged_training_info_is_an_error_of_its_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, many: bool
) -> None:
    @settings(max_examples=150 if many else 50, deadline=None)
    @given(content=damaged)
    def holds(content: bytes) -> None:
        folder = tmp_path_factory.mktemp("step")
        (folder / "training_info.json").write_bytes(content)
        try:
            assert isinstance(read_info(folder), dict)
        except ArtifactError as error:
            assert str(folder) in error.message  # noqa: PT017 - most contents are errors, objects are not

    holds()


STATUS = {
    "state": "running",
    "pid": 3,
    "started_at": "2026-01-01T00:00:00+00:00",
    "updated_at": "2026-01-01T00:00:00+00:00",
}
FIELDS = [*STATUS, "steps_done", "steps_total", "wall_s", "heldout_before", "checkpoint", "error", "exit_code"]


@pytest.mark.parametrize("many", MANY, ids=["some", "many"])
def test_a_status_is_one_or_is_refused(many: bool) -> None:
    @settings(max_examples=150 if many else 50, deadline=None)
    @given(changes=st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=3))
    def holds(changes: dict[str, Any]) -> None:
        try:
            status = Status.from_json({**STATUS, **changes})
        except ValueError:
            return
        assert isinstance(status.steps_done, int)
        assert isinstance(status.heldout_before, dict | None)

    holds()


@pytest.mark.parametrize("leads", ["nowhere", "elsewhere"])
def test_a_link_named_like_a_draft_is_taken_away_alone(tmp_path: Path, leads: str) -> None:
    """Neither followed nor in the way."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("x")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("tmp_step_1", "tmp_step_2", "old_step_3"):
        (folder / name).symlink_to(tmp_path / leads)
    (folder / "step_3").mkdir()
    store = CheckpointStore(folder, None, None, True)
    store.recover()
    assert sorted(path.name for path in folder.iterdir()) == ["step_3"]
    (folder / "tmp_step_4").symlink_to(tmp_path / leads)
    saved = store.save(4, {"step": 4}, lambda inside: (inside / "x").write_text("y") and None)
    assert not saved.is_symlink()
    assert read_object(saved / "training_info.json") == {"step": 4}
    assert (tmp_path / "elsewhere" / "kept").read_text() == "x"


LARGE: dict[str, Callable[[], bytes]] = {
    "lists": lambda: b"[" + b"[],[1]," * 6_000_000 + b"1]",
    "objects": lambda: b"[" + b'{"a":{}},' * 5_000_000 + b"1]",
    "many objects": lambda: b"[" + b'{"a":{}},' * 1_400_000 + b"1]",
    "one wide letter": lambda: '"\U0001f600'.encode() + b"x" * (47 << 20) + b'"',
    "commas in a text": lambda: b'["' + b"," * (46 << 20) + b'"' + b",[]" * 1000 + b"]",
    "spaces": lambda: b" " * (70 << 20) + b"1",
}


READ = """
import json, re, sys, time
from nemotron.disk.documents import MalformedError, read_json
began = time.process_time()
json.loads(b'[' + b'{"a":{}},' * 100_000 + b'1]')
usual, began = time.process_time() - began, time.process_time()
try:
    read_json(sys.argv[1])
except (MalformedError, OSError):
    print(end="")
took = time.process_time() - began
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], took / usual)
"""


@pytest.mark.parametrize(
    "name", [name if name == "objects" else pytest.param(name, marks=pytest.mark.full) for name in LARGE]
)
def test_a_large_document_takes_little_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.json").write_bytes(LARGE[name]())
    words = [sys.executable, "-c", READ, str(tmp_path / "x.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=250)
    kilobytes, times = map(float, done.stdout.split())
    assert kilobytes < 500 << 10
    assert times < 300, "more than Python needs for a megabyte"


@pytest.mark.full
def test_a_hole_is_no_line(tmp_path: Path) -> None:
    """Three sparse gigabytes without a line break were read as one line, in memory."""
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(DataError, match="a line has more than"):
        list(JsonLines(path).read())
    with pytest.raises(DataError, match="a line has more than"):
        list(read_lines(path))
    for look in (inspect, verify):
        with pytest.raises(DataError, match="a line has more than"):
            look(path)
