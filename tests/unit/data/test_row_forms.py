"""What a usable row is: public shapes by their own names, and one reading for `rl_prep` and for every step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemotron.data import pair_forms
from nemotron.data.forms import ANSWERS, PREFERENCE, PROMPTS, usable_prompt, without_form
from nemotron.data.prep.kinds import prompt_text
from nemotron.data.prep.scan import Scanner
from nemotron.data.rows import pair_row, parse_row, prompt_row, read_prompts
from nemotron.data.turns import SYSTEM_FIELDS
from nemotron.errors import DataError, Origin
from tests.unit.data.prep_data import rejects_of, rows_of, run, write_rows

HERE = Path("rows.jsonl")
USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "What?"}
SYSTEM = {"role": "system", "content": "Be kind."}
TOOL = {"type": "function", "name": "book", "parameters": {"type": "object", "properties": {}}}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}

PUBLIC_PROMPTS: list[tuple[dict[str, Any], list[dict[str, str]]]] = [
    ({"conversations": [HUMAN, GPT]}, [USER]),
    ({"conversations": [{"from": "system", "value": "Be kind."}, HUMAN, GPT]}, [SYSTEM, USER]),
    ({"conversations": [HUMAN, GPT, HUMAN]}, [USER, GOOD, USER]),
    ({"system": "Be kind.", "conversations": [HUMAN, GPT]}, [SYSTEM, USER]),
    ({"conversation": [USER, GOOD], "model": "x"}, [USER]),
    ({"messages": [{**USER, "role": "human"}, {**GOOD, "role": "gpt"}, {**USER, "role": "User"}]}, [USER, GOOD, USER]),
    ({"messages": [{**SYSTEM, "role": "System"}, {**USER, "role": "USER"}]}, [SYSTEM, USER]),
    ({"instruction": "Hi", "input": "", "output": "Hello!"}, [USER]),
    ({"instruction": "Hi", "input": "there", "output": "o"}, [{"role": "user", "content": "Hi\n\nthere"}]),
    ({"instruction": "Hi", "input": "", "output": "o", "text": "### Instruction:\nHi\n\n### Response:\no"}, [USER]),
    ({"instruction": "Hi", "output": "o", "history": [["Hi", "Hello!"]]}, [USER, GOOD, USER]),
    ({"question": "Hi"}, [USER]),
    ({"problem": "Hi", "level": "5"}, [USER]),
    ({"question": "Hi", "answer": "4"}, [USER]),
    ({"problem": "Hi", "solution": "4"}, [USER]),
    ({"input": [USER], "output": "x"}, [USER]),
    ({"prompt": "Hi", "messages": [USER, GOOD]}, [USER]),
    ({"prompt": None, "messages": [USER], "chosen": None, "rejected": None}, [USER]),
    ({"responses_create_params": {"instructions": "Be kind.", "input": "Hi"}}, [SYSTEM, USER]),
    ({"responses_create_params": {"input": "Hi", "tools": [], "instructions": None}}, [USER]),
    ({"messages": [{**USER, "tool_calls": None, "content": [{"type": "text", "text": "Hi"}]}]}, [USER]),
]
PUBLIC_PAIRS: list[tuple[dict[str, Any], list[dict[str, str]]]] = [
    ({"input": {"messages": [USER], "tools": []}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, [USER]),
    ({"chosen_messages": [USER, GOOD], "rejected_messages": [USER, BAD]}, [USER]),
    ({"prompt": "Hi", "chosen_messages": [GOOD], "rejected_messages": [BAD]}, [USER]),
    ({"question": "Hi", "response_A": "Hello!", "response_B": "What?", "label": "A>B"}, [USER]),
    ({"question": "Hi", "response_A": "What?", "response_B": "Hello!", "label": "A<<B"}, [USER]),
    ({"prompt": "Hi", "response_A": "What?", "response_B": "Hello!", "label": "B"}, [USER]),
    ({"prompt": "Hi", "response_a": "Hello!", "response_b": "What?", "winner": "model_a"}, [USER]),
    ({"prompt": "Hi", "response_0": "What?", "response_1": "Hello!", "better_response_id": 1}, [USER]),
    ({"instruction": "Hi", "output_1": "Hello!", "output_2": "What?", "preference": 1.0}, [USER]),
    ({"conversation_a": [USER, GOOD], "conversation_b": [USER, BAD], "winner": "model_a"}, [USER]),
    ({"question": "Hi", "response_j": "Hello!", "response_k": "What?"}, [USER]),
    ({"system": "Be kind.", "question": "Hi", "chosen": "Hello!", "rejected": "What?"}, [SYSTEM, USER]),
    ({"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "What?"}}, [USER]),
    ({"prompt": "Hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, [SYSTEM, USER]),
    ({"prompt": "Hi", "messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
    ({"messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}, [USER]),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"responses_create_params": {"input": "Hi", "tools": [TOOL]}}, "tools"),
    ({"messages": [USER], "tools": [TOOL]}, "tools"),
    ({"messages": [USER], "tools": json.dumps([TOOL])}, "tools"),
    ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, USER]}, "tools"),
    ({"responses_create_params": {"input": [USER, {"type": "function_call", "name": "book"}]}}, "tools"),
    ({"conversations": [HUMAN, {"from": "function_call", "value": "book()"}, HUMAN]}, "tools"),
    ({"messages": [USER, GOOD]}, "ends-with-answer"),
    ({"prompt": [USER, GOOD]}, "ends-with-answer"),
    ({"messages": [{**USER, "role": "human"}, {**GOOD, "role": "gpt"}]}, "ends-with-answer"),
    ({"responses_create_params": {"input": [USER, GOOD]}}, "ends-with-answer"),
    ({"conversations": [GPT]}, "empty-prompt"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "not-text"),
    ({"messages": [USER, {"role": "user", "content": " "}]}, "empty-prompt"),
    ({"prompt": "Hi", "chosen": [GOOD, USER], "rejected": [BAD, USER]}, "no-answer-turn"),
    ({"prompt": "Hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [USER, BAD]}, "different-prompts"),
    ({"prompt": "Hi", "response_A": "Hello!", "response_B": "What?"}, "two-answers"),
    ({"prompt": "Hi", "response_A": "Hello!", "response_B": "What?", "label": "A=B"}, "tie"),
    ({"prompt": "Hi", "response_A": "Hello!", "response_B": "What?", "label": "C"}, "unknown-label"),
    ({"prompt": "Hi", "response_A": "Hello!", "response_B": "What?", "label": 1}, "unknown-label"),
    ({"prompt": "Hi", "chosen": "Hello!"}, "two-answers"),
    ({"instruction": "Hi", "completions": [{"response": "a"}, {"response": "b"}]}, "two-answers"),
]


@pytest.mark.parametrize(("row", "prompt"), PUBLIC_PROMPTS)
def test_public_shapes_of_prompts(tmp_path: Path, row: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    assert prompt_row(HERE, 1, row).messages == prompt
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", [row]))
    [prepared] = rows_of(result)
    assert prompt_row(HERE, 1, prepared).messages == prompt
    assert prepared.items() >= {name: value for name, value in row.items() if name != "prompt"}.items()


@pytest.mark.parametrize(("row", "prompt"), PUBLIC_PAIRS)
def test_public_shapes_of_pairs(tmp_path: Path, row: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    row = {**row, "id": 34}
    read = pair_row(HERE, 1, row)
    assert (read.messages, read.chosen, read.rejected) == (prompt, "Hello!", "What?")
    assert prompt_row(HERE, 1, row).messages == prompt
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", [row]))
    [prepared] = rows_of(result)
    again = pair_row(HERE, 1, prepared)
    assert (again.messages, again.chosen, again.rejected) == (prompt, "Hello!", "What?")
    assert result.manifest["kind"] == "preference"
    assert prepared["id"] == 34


@pytest.mark.parametrize(("row", "reason"), REFUSED)
def test_what_a_model_cannot_be_shown_is_a_counted_reject(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", [{"prompt": "fine"}, row]))
    [found] = rejects_of(result)
    assert (found["line"], found["reason"]) == (2, reason)
    assert result.manifest["rejects"]["by_reason"] == {reason: 1}
    if reason not in ("two-answers", "tie", "unknown-label", "no-answer-turn", "different-prompts"):
        with pytest.raises(DataError) as caught:
            prompt_row(HERE, 3, row)
        assert caught.value.origin == Origin("rows.jsonl", line=3)
        assert caught.value.message in found["detail"]


def test_the_last_answer_is_cut_where_it_is_asked_for(tmp_path: Path) -> None:
    rows = [
        {"messages": [USER, GOOD, USER, BAD], "id": 1},
        {"prompt": [SYSTEM, USER, GOOD], "answer": "4"},
        {"responses_create_params": {"input": [USER, GOOD], "temperature": 0.5}},
        {"messages": [USER]},
    ]
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", rows), on_answer="cut")
    read = [prompt_row(HERE, 1, row).messages for row in rows_of(result)]
    wanted = [[USER, GOOD, USER], [SYSTEM, USER], [USER], [USER]]
    assert sorted(map(json.dumps, read)) == sorted(map(json.dumps, wanted))
    assert not rejects_of(result)


def test_splits_follow_the_field_that_training_reads(tmp_path: Path) -> None:
    """Rows with one prompt and other conversations beside it stay in one split."""
    rows = [
        {"prompt": f"Question {i % 20}?", "messages": [USER, {"role": "assistant", "content": f"answer {i}"}]}
        for i in range(400)
    ]
    result = run(
        tmp_path / "out",
        write_rows(tmp_path / "in.jsonl", rows),
        split={"mode": "hash", "shares": {"validation": 0.5}},
    )
    train, validation = (
        {prompt_text(usable_prompt(row)) for row in rows_of(result, split)} for split in ("train", "validation")
    )
    assert train
    assert validation
    assert not train & validation


def test_declared_prompts_of_undecided_pairs(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "response_A": "a", "response_B": "b"}
    source = write_rows(tmp_path / "in.jsonl", [row])
    result = run(tmp_path / "out", {"datasets": [{"path": str(source), "kind": "prompt"}]})
    assert rows_of(result) == [row]
    assert prompt_row(HERE, 1, row).messages == [USER]


def test_a_rejected_row_names_its_fields_and_the_nearest_kind(tmp_path: Path) -> None:
    rows = [{"prompt": "fine"}, {"prompt_text": "x", "Chosen": "y", "rejected": "z"}, {"a": 1, "b": None}]
    pair, nothing = rejects_of(run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", rows)))
    assert "the row has `prompt_text`, `Chosen`, `rejected`; nearest is `preference`" in pair["detail"]
    assert "`Chosen` may be its `chosen`" in pair["detail"]
    assert nothing["detail"].startswith("the row has `a`, and no prompt: that would be in `prompt`, `messages`")


def test_a_row_that_lacks_nothing_of_its_nearest_kind_is_told_so() -> None:
    """Where an answer is wanted, a text alone is a whole prompt: what it lacks is not left open."""
    assert without_form({"text": "hello"}).endswith("which is a whole `prompt` (`text`) and nothing more")


def test_every_split_says_what_its_rows_were_taken_for(tmp_path: Path) -> None:
    pair = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    write_rows(tmp_path / "train.jsonl", [{**pair, "n": i} for i in range(3)] + [{"question": "q", "answer": "a"}])
    write_rows(tmp_path / "validation.jsonl", [{"conversations": [HUMAN, GPT]}])
    splits = run(
        tmp_path / "out", {"train": [str(tmp_path / "train.jsonl")], "validation": [str(tmp_path / "validation.jsonl")]}
    )
    assert splits.manifest["splits"]["train"]["taken_for"] == [
        {"kind": "preference", "fields": "`prompt`, `chosen`, `rejected`", "rows": 3},
        {"kind": "verifier", "fields": "a prompt and something to check answers with", "rows": 1},
    ]
    assert splits.manifest["splits"]["validation"]["taken_for"] == [
        {"kind": "prompt", "fields": "`conversations`", "rows": 1}
    ]


def test_fields_reach_into_objects(tmp_path: Path) -> None:
    row = {"data": {"question": "Hi", "answers": [{"text": "4"}]}, "other": 1.50}
    blend = {
        "datasets": [
            {
                "path": str(write_rows(tmp_path / "in.jsonl", [row, {"data": {"question": "Ho"}, "prompt": "x"}])),
                "fields": {"prompt": "data.question", "answer": "data.answers.0.text"},
            }
        ]
    }
    result = run(tmp_path / "out", blend)
    assert rows_of(result) == [{"prompt": "Hi", "answer": "4", **row}]
    assert rejects_of(result)[0]["reason"] == "field-clash"


NAMES = sorted(
    {*PROMPTS, *ANSWERS, *SYSTEM_FIELDS, "tools", "history", "agent_ref", "responses_create_params", "_hf_placeholder"}
    | {name for form in PREFERENCE for either in form.needs for name in either}
    | {name for pair in pair_forms.SIDES for name in pair}
)
INNER = ["role", "content", "from", "value", "input", "instructions", "tools", "tool_calls", "text", "type"]
INNER += ["rank", "completion", "messages", "name"]
WORDS = ["", " ", "Hi", "user", "assistant", "system", "human", "gpt", "A>B", "A", "tie", "text", "\n\nHuman: a"]
scalar = st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | st.sampled_from(WORDS)
turn = st.sampled_from([USER, GOOD, BAD, SYSTEM, HUMAN, GPT])
value = st.recursive(
    scalar | turn | st.lists(turn, max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=3),
    max_leaves=8,
)
LIKELY: list[Any] = ["Hi", "Hello!", "What?", "A>B", "B", 1, -1, None, USER, GOOD, BAD, GPT, [GOOD], [BAD], [USER]]
LIKELY += [[*before, last] for before in ([USER], [SYSTEM, USER], [USER, GOOD, USER]) for last in (GOOD, BAD, USER)]
LIKELY += [[{"rank": rank, "completion": text} for rank, text in ((1, "a"), (0, [GOOD]))], {"messages": [USER]}]
likely = st.sampled_from(LIKELY)
KINDS = [None, None, "prompt", "preference", "verifier", "nemo_gym"]
any_row = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), value | likely, max_size=4),
    st.sampled_from(PREFERENCE).flatmap(
        lambda form: st.fixed_dictionaries(
            {either[0]: likely for either in form.needs} | {"prompt": value | st.sampled_from(["Hi", [USER], None])}
        )
    ),
)


@settings(max_examples=400, deadline=None)
@example(rows=[{"prompt": [GOOD, GOOD]}], cut=True, kind=None)
@given(rows=st.lists(any_row, min_size=1, max_size=4), cut=st.booleans(), kind=st.sampled_from(KINDS))
def test_what_rl_prep_keeps_every_step_reads_alike(rows: list[dict[str, Any]], cut: bool, kind: Any) -> None:
    """Any JSON gives a value or a problem; what is kept is read, as written, by the steps of its kind."""
    scanner = Scanner(kind=kind, cut_answers=cut)
    lines = [json.dumps(row).encode() for row in rows]
    found = scanner.scan(lines, {})
    assert len(found.lines) + len(found.rejects) == len(lines)
    for line, form in zip(found.lines, found.forms, strict=True):
        row = parse_row(HERE, 1, line)
        read = prompt_row(HERE, 1, row)
        assert read.messages
        assert read.messages[-1]["role"] != "assistant"
        if form.kind == "preference":
            pair = pair_row(HERE, 1, row)
            assert pair.messages == read.messages
            assert pair.chosen != pair.rejected
    for row in rows:
        for reader in (prompt_row, pair_row):
            problem = problem_of(lambda row=row, reader=reader: reader(HERE, 7, row))
            assert problem is None or problem.origin == Origin("rows.jsonl", line=7)


def problem_of(read: Callable[[], Any]) -> DataError | None:
    try:
        read()
    except DataError as problem:
        return problem
    return None


CASES = Path(__file__).parents[2] / "cases" / "rows"


def test_the_cases_of_rows(tmp_path: Path) -> None:
    """What went wrong once: rows that two readers read in two ways, and rows that no tokenizer takes."""

    def prepared(name: str) -> Any:
        return run(tmp_path / name, CASES / name)

    sums = prepared("verifier_question.jsonl")
    assert sums.manifest["kind"] == "verifier"
    assert all(prompt_row(HERE, 1, row).messages[0]["role"] == "user" for row in rows_of(sums))
    chats = rows_of(prepared("prompt_and_messages.jsonl"))
    assert chats
    for row in chats:
        assert prompt_row(HERE, 1, row).messages == [{"role": "user", "content": row["prompt"]}]
    assert rows_of(prepared("lines.json"))
    with pytest.raises(DataError, match="no row of the blend can be used"):
        prepared("tools_and_instructions.jsonl")
    with pytest.raises(DataError, match="no row of the blend can be used"):
        prepared("lone_surrogate.jsonl")
    for name, why in (("tools_and_instructions.jsonl", "offers tools"), ("lone_surrogate.jsonl", "surrogate pair")):
        with pytest.raises(DataError, match=why) as caught:
            list(read_prompts(CASES / name))
        assert caught.value.origin == Origin(str(CASES / name), line=1)
    for name in ("pairs_developer.jsonl", "pairs_full_context.jsonl"):
        rows = rows_of(prepared(name))
        assert len(rows) == len((CASES / name).read_text().splitlines())
        assert all(pair_row(HERE, 1, row).chosen for row in rows)
