"""Preference pairs: every documented form reads the same, and every broken row is named by its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from nemotron.data.rows import PairKeys, read_pairs
from nemotron.errors import DataError

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "What?"}
RANKED = [{"rank": 1, "completion": [BAD]}, {"rank": 0, "completion": [GOOD]}]


def write(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {"prompt": [USER], "chosen": "Hello!", "rejected": "What?"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": BAD},
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": "What?"},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"context": [USER], "completions": RANKED},
        {"context": "Hi", "completions": RANKED[::-1]},
        {"context": [USER], "response1": "What?", "response2": "Hello!", "overall_preference": 2},
        {"context": [USER], "response1": "Hello!", "response2": "What?", "overall_preference": -0.5},
        {"prompt": "Hi", "chosen_response": "Hello!", "rejected_response": "What?"},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "chosen": GOOD, "rejected": BAD},
    ],
)
def test_every_form_of_pair_reads_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    [read] = read_pairs(write(tmp_path, {**row, "world": {"n": "34"}}))
    assert (read.id, read.messages, read.chosen, read.rejected) == ("pairs.jsonl:1", [USER], "Hello!", "What?")
    assert read.fields == {**row, "world": {"n": "34"}}


def test_the_fields_may_have_other_names(tmp_path: Path) -> None:
    row = {"question": "Hi", "better": "Hello!", "worse": "What?"}
    [read] = read_pairs(write(tmp_path, row), PairKeys("question", "better", "worse"))
    assert (read.messages, read.chosen, read.rejected) == ([USER], "Hello!", "What?")


def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "Hi", "chosen": "a", "rejected": "b"}\n' * 3))
    assert [row.id for row in read_pairs(path)] == [f"pairs.jsonl.gz:{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi"}, "no preference pair"),
        ({"text": "User: Hi\n\nAssistant: Hello!"}, "alternating lines"),
        ({"prompt": "Hi", "chosen": "x", "rejected": "x"}, "the same"),
        ({"prompt": "Hi", "chosen": "x", "rejected": " "}, "other answer is empty"),
        ({"prompt": "Hi", "chosen": "", "rejected": "x"}, "preferred answer is empty"),
        ({"prompt": "Hi", "chosen": 3, "rejected": "x"}, "must be a text or messages"),
        ({"prompt": "Hi", "chosen": [USER], "rejected": [BAD]}, "not of `assistant`"),
        ({"prompt": "Ho", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "not the prompt"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "`prompt` is empty"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "has no message"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no prompt"),
        ({"chosen": [USER, GOOD], "rejected": [USER, USER, BAD]}, "differ before"),
        ({"context": "Hi", "completions": RANKED[:1]}, "two objects"),
        ({"context": "Hi", "completions": [{**c, "rank": 0} for c in RANKED]}, "neither is preferred"),
        ({"context": "Hi", "completions": [{**c, "rank": "1"} for c in RANKED]}, "whole number"),
        ({"context": "Hi", "response1": "a", "response2": "b", "overall_preference": 0}, "neither answer"),
        ({"context": "Hi", "response1": "a", "response2": "b", "overall_preference": "1"}, "a number"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path, {"prompt": "Hi", "chosen": "a", "rejected": "b"}, row)
    with pytest.raises(DataError, match=message) as caught:
        list(read_pairs(path))
    assert str(caught.value.origin) == f"{path}:2"
