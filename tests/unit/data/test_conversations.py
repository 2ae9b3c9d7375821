"""Rows to learn answers from: every form that people write, and what is refused in plain words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron.data.conversations import AnswerKeys, read_conversations
from nemotron.errors import DataError

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
SYSTEM = {"role": "system", "content": "Be kind."}


def read(
    folder: Path, row: dict[str, Any], keys: AnswerKeys | None = None
) -> tuple[list[dict[str, str]], tuple[int, ...]]:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    [found] = list(read_conversations(path, keys) if keys else read_conversations(path))
    assert found.id == "rows.jsonl:1"
    return found.messages, found.answers


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
        {"messages": [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Hello!"}]},
        {"messages": [{"role": "User", "content": "Hi"}, {"role": "Assistant", "content": "Hello!"}]},
        {"input": "Hi", "output": "Hello!"},
        {"prompt": "Hi", "response": "Hello!"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": "Hi", "completion": "Hello!"},
        {"question": "Hi", "answer": "Hello!"},
        {"instruction": "Hi", "input": "", "output": "Hello!"},
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."},
        {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "Go away."}]},
    ],
    ids=lambda row: "-".join(row),
)
def test_forms(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(tmp_path, row) == ([USER, ANSWER], (1,))


def test_alpaca_with_an_input_and_a_system_text(tmp_path: Path) -> None:
    messages, answers = read(tmp_path, {"system": "Be kind.", "instruction": "Sum", "input": "1 2", "output": "3"})
    assert messages == [SYSTEM, {"role": "user", "content": "Sum\n\n1 2"}, {"role": "assistant", "content": "3"}]
    assert answers == (2,)


def test_named_fields_win(tmp_path: Path) -> None:
    row = {"messages": [USER, ANSWER], "q": "Why?", "a": "Because."}
    messages, _ = read(tmp_path, row, AnswerKeys("q", "a"))
    assert [turn["content"] for turn in messages] == ["Why?", "Because."]


def test_every_answer_behind_the_first_question_is_learned(tmp_path: Path) -> None:
    turns = [SYSTEM, ANSWER, USER, ANSWER, USER, ANSWER]
    assert read(tmp_path, {"messages": turns}) == (turns, (1, 3, 5))
    turns = [ANSWER, USER, ANSWER]
    assert read(tmp_path, {"messages": turns}) == (turns, (2,))


def test_answers_without_weight_are_not_learned(tmp_path: Path) -> None:
    unweighted = {**ANSWER, "weight": 0}
    turns = [USER, unweighted, USER, {**ANSWER, "weight": 1}]
    messages, answers = read(tmp_path, {"messages": turns, "system": "Be kind."})
    assert (len(messages), answers) == (5, (4,))
    messages, answers = read(tmp_path, {"messages": [USER, ANSWER, USER, unweighted]})
    assert (messages, answers) == ([USER, ANSWER], (1,))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [USER]}, "ends with a turn of `user`"),
        ({"messages": []}, "has no message"),
        ({"messages": "Hi"}, "must be a list of messages"),
        ({"messages": [ANSWER]}, "an answer and no prompt"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "no answer with a weight"),
        (
            {"messages": [USER, {"role": "assistant", "content": " "}]},
            "the answer in turn 2",
        ),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"id": 1}]}]}, "calls tools"),
        ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "offers tools"),
        ({"prompt": "Hi"}, "no answer to learn from"),
        ({"response": "Hello!"}, "row has no prompt"),
        ({"prompt": [USER, ANSWER], "response": "Hello!"}, "ends with an answer before the answer"),
        ({"prompt": "Hi", "response": ""}, "is empty"),
        ({"prompt": "Hi", "response": 3}, "must be a text or messages, not a number"),
        ({"prompt": "Hi", "chosen": "Same", "rejected": "Same"}, "both answers are the same"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path, row)
    assert caught.value.origin is not None
    assert caught.value.origin.line == 1


@pytest.mark.parametrize(
    ("keys", "said"), [(AnswerKeys("q", None), "input_key"), (AnswerKeys(None, "a"), "output_key")]
)
def test_fields_that_are_named_and_not_there(tmp_path: Path, keys: AnswerKeys, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, {"prompt": "Hi", "response": "Hello!"}, keys)
    assert said in str(caught.value.hint)
