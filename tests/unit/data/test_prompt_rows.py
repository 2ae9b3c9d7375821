"""Prompt rows: three forms of prompt, and every broken line named by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron.data.rows import read_prompts
from nemotron.errors import DataError


def write(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


USER = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi"},
        {"messages": USER},
        {"responses_create_params": {"input": "Hi"}},
        {"responses_create_params": {"input": USER}},
        {"responses_create_params": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]}},
    ],
)
def test_every_form_of_prompt_reads_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    [read] = read_prompts(write(tmp_path, row))
    assert read.messages == USER
    assert read.id == "rows.jsonl:1"


def test_other_fields_stay_as_they_are(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "expected_answer": "34", "agent_ref": {"name": "x"}, "principle": "Be kind."}
    [read] = read_prompts(write(tmp_path, row))
    assert read.fields == row
    assert read.principle == "Be kind."


def test_blank_lines_count_but_are_no_rows(tmp_path: Path) -> None:
    rows = list(read_prompts(write(tmp_path, {"prompt": "a"}, b"  ", {"prompt": "b"})))
    assert [row.id for row in rows] == ["rows.jsonl:1", "rows.jsonl:3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": ', "not JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"[1]", "must be a JSON object"),
        (b"{}", "no prompt"),
        (b'{"prompt": 3}', "text or a list of messages"),
        (b'{"messages": []}', "has no message"),
        (b'{"messages": ["Hi"]}', "needs `role`"),
        (b'{"messages": [{"role": "user"}]}', "no text"),
        (b'{"messages": [{"role": "user", "content": [{"type": "input_image"}]}]}', "not text"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path, {"prompt": "a"}, line)
    with pytest.raises(DataError, match=message) as caught:
        list(read_prompts(path))
    assert str(caught.value.origin).startswith(f"{path}:2")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl`: no such file"):
        list(read_prompts(tmp_path / "none.jsonl"))
