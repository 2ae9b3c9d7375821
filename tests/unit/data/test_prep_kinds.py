"""Every row kind, the documented examples word for word, and the reasons for which rows are rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron.data.prep.blend import read_blend
from nemotron.errors import DataError
from tests.unit.data.prep_data import lines_of, rejects_of, rows_of, run, write_rows

USER = [{"role": "user", "content": "Hi"}]


def test_documented_prompt(tmp_path: Path) -> None:
    line = b'{"prompt": "Write a short poem about the ocean."}'
    assert lines_of(run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", [line]))) == [line]


def test_documented_pair(tmp_path: Path) -> None:
    line = (
        b'{"prompt": "Explain quantum computing.", "chosen": "Quantum computing uses qubits, which can be in several '
        b'states at once.", "rejected": "It is a fast computer."}'
    )
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", [line]))
    assert lines_of(result) == [line]
    assert result.manifest["kind"] == "preference"


@pytest.mark.parametrize(
    "blend",
    [
        'model.data.data_prefix: {train: ["prompts.jsonl"], validation: ["val_prompts.jsonl"]}',
        'model: {data: {data_prefix: {train: ["prompts.jsonl"], '
        'validation: ["val_prompts.jsonl"], test: ["val_prompts.jsonl"]}}}',
    ],
)
def test_documented_data_prefix(tmp_path: Path, blend: str) -> None:
    write_rows(tmp_path / "prompts.jsonl", [{"text": f"Say {i}"} for i in range(20)])
    write_rows(tmp_path / "val_prompts.jsonl", [{"text": "Say something else"}])
    (tmp_path / "blend.yaml").write_text(blend)
    result = run(tmp_path / "out", tmp_path / "blend.yaml")
    splits = {name: split["rows"] for name, split in result.manifest["splits"].items()}
    assert splits == {"train": 20, "validation": 1, **({"test": 1} if "test:" in blend else {})}


KEPT_AS_THEY_ARE: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {"prompt": "Hi", "n": "34"}),
    ("prompt", {"prompt": USER}),
    ("prompt", {"messages": USER, "tools": []}),
    ("prompt", {"text": "Hi"}),
    ("preference", {"prompt": USER, "chosen": "a", "rejected": "b"}),
    ("preference", {"prompt": "p", "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"}),
    (
        "preference",
        {
            "chosen": [*USER, {"role": "assistant", "content": "a"}],
            "rejected": [*USER, {"role": "assistant", "content": "b"}],
        },
    ),
    (
        "preference",
        {
            "context": USER,
            "completions": [
                {"rank": 1, "completion": "y"},
                {"rank": 0, "completion": [{"role": "assistant", "content": "x"}]},
            ],
        },
    ),
    ("verifier", {"question": "1+1", "answer": "2"}),
    ("verifier", {"prompt": "f", "tests": ["assert f(1)"], "metadata": {"a": 1.0}}),
    (
        "nemo_gym",
        {"responses_create_params": {"input": USER}, "agent_ref": {"type": "responses_api_agents", "name": "x"}},
    ),
    ("nemo_gym", {"responses_create_params": {"input": "Hi", "tools": []}, "verifier_metadata": {"unit_tests": [1]}}),
]


@pytest.mark.parametrize(("kind", "row"), KEPT_AS_THEY_ARE)
def test_rows_that_trainers_read_keep_all_their_bytes(tmp_path: Path, kind: str, row: dict[str, Any]) -> None:
    line = json.dumps(row, indent=None, separators=(", ", " : ")).encode()
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", [line]))
    assert lines_of(result) == [line]
    assert result.manifest["kind"] == kind
    declared = {"datasets": [{"path": str(tmp_path / "in.jsonl"), "kind": kind}]}
    assert lines_of(run(tmp_path / "declared", declared)) == [line]


def test_transcripts_become_messages(tmp_path: Path) -> None:
    start = "\n\nHuman: What is 2+2?\n\nAssistant: 4.\n\nHuman: And 3+3?\n\nAssistant:"
    row = {"chosen": f"{start} 6.", "rejected": f"{start} Who knows.", "id": 1.50}
    [found] = rows_of(run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", [row])))
    assert found == {
        "prompt": [
            {"role": "user", "content": "What is 2+2?"},
            {"role": "assistant", "content": "4."},
            {"role": "user", "content": "And 3+3?"},
        ],
        "chosen": "6.",
        "rejected": "Who knows.",
        "id": 1.5,
    }


@pytest.mark.parametrize(("score", "chosen"), [(-2, "one"), (3, "two")])
def test_scored_answers_become_pairs(tmp_path: Path, score: int, chosen: str) -> None:
    row = {"context": USER, "response1": "one", "response2": "two", "overall_preference": score, "domain": "code"}
    [found] = rows_of(run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", [row])))
    assert found["chosen"] == chosen
    assert {name: found[name] for name in ("prompt", "overall_preference", "domain")} == {
        "prompt": USER,
        "overall_preference": score,
        "domain": "code",
    }


def test_alternating_lines_of_nemo_aligner(tmp_path: Path) -> None:
    def text(answer: str, i: int) -> dict[str, Any]:
        return {"text": f"User: Question {i}\n\nAssistant: {answer}", "extra": 1.0}

    lines: list[Any] = []
    for i in range(40):
        lines += [text("good", i), text("bad", i)]
    lines[10] = b"broken"
    lines[21] = {"text": "User: Another\n\nAssistant: bad"}
    lines.append(text("lonely", 99))
    source = write_rows(tmp_path / "comparisons.jsonl", lines)
    blend = {"datasets": [{"path": str(source), "kind": "aligner_pairs"}]}
    result = run(tmp_path / "out", blend, block_bytes=300)
    rows = rows_of(result)
    assert len(rows) == 38
    assert rows[0].keys() == {"prompt", "chosen", "rejected", "extra"}
    assert {(row["chosen"], row["rejected"]) for row in rows} == {("good", "bad")}
    assert [(r["line"], r["reason"]) for r in rejects_of(result)] == [
        (11, "not-json"),
        (21, "different-prompts"),
        (81, "odd-line"),
    ]
    source = result.manifest["sources"][0]
    assert source["rows_kept"] + source["rows_rejected"] == source["rows_read"] == 41


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not-json"),
        (b"[1]", "not-an-object"),
        (b'{"a": 1}', "missing-field"),
        (b'{"prompt": 3}', "wrong-type"),
        (b'{"prompt": " "}', "empty-prompt"),
        (b'{"prompt": [{"content": "x"}]}', "wrong-type"),
        (b'{"prompt": "\xff"}', "not-utf-8"),
        (b'{"prompt": "p", "chosen": "", "rejected": "x"}', "empty-answer"),
        (b'{"prompt": "p", "chosen": "x", "rejected": "x"}', "same-answers"),
        (b'{"chosen": "x", "rejected": "y"}', "not-a-transcript"),
        (b'{"context": "c", "completions": [{"rank": 0, "completion": "a"}, {"rank": 0, "completion": "b"}]}', "tie"),
        (b'{"context": "c", "response1": "a", "response2": "b", "overall_preference": 0}', "tie"),
        (b'{"question": "q", "expected_answer": null}', "no-answer"),
        (b'{"responses_create_params": {"tools": []}}', "missing-field"),
        (b'{"responses_create_params": {"input": "x"}, "agent_ref": "y"}', "wrong-type"),
        (b'{"dataset": "k"}', "missing-field"),
    ],
)
def test_reasons(tmp_path: Path, line: bytes, reason: str) -> None:
    result = run(tmp_path / "out", write_rows(tmp_path / "in.jsonl", [b'{"prompt": "fine"}', line]))
    [found] = rejects_of(result)
    assert (found["line"], found["reason"]) == (2, reason)
    assert found["detail"]
    assert result.manifest["rejects"]["by_reason"] == {reason: 1}


def test_field_mapping_renames_and_keeps_the_rest(tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "in.jsonl", [b'{"n": 1.10, "q": "What?", "z": "\\u0041"}', b'{"q": "a", "prompt": "b"}']
    )
    result = run(tmp_path / "out", {"datasets": [{"path": str(source), "fields": {"prompt": "q"}}]})
    assert lines_of(result) == [b'{"n":1.10,"prompt":"What?","z":"\\u0041"}']
    assert rejects_of(result)[0]["reason"] == "field-clash"


def test_a_declared_kind_is_demanded(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "p"}, {"prompt": "p", "chosen": "a", "rejected": "b"}])
    result = run(tmp_path / "out", {"datasets": [{"path": str(source), "kind": "preference"}]})
    assert len(rows_of(result)) == 1
    assert "not a `preference` row" in rejects_of(result)[0]["detail"]
    mixed = run(tmp_path / "mixed", source)
    assert mixed.manifest["kind"] == "mixed"
    assert "mixes row kinds: preference, prompt" in mixed.warnings[0]


@pytest.mark.parametrize(
    ("blend", "message"),
    [
        ({}, "the blend is empty"),
        ({"dataset": [{"path": "x"}]}, "unknown key `dataset`"),
        ({"datasets": []}, "must be a list of data sets"),
        ({"datasets": [{"pth": "x"}]}, "datasets.0"),
        ({"datasets": ["x"], "train": ["y"]}, "either `datasets` or splits"),
        ({"datasets": [{"path": "x", "weight": -1}]}, "weight"),
        ({"train": [0.5, 0.5, "x"]}, "a weight that follows a weight"),
        ({"train": ["x", 0.5]}, "has no path"),
    ],
)
def test_broken_blends(blend: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_blend(blend)


@pytest.mark.parametrize("path", ["nowhere.jsonl", "nowhere/*.jsonl", "blend.yaml"])
def test_a_source_that_is_not_there(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError):
        run(tmp_path / "out", tmp_path / path)
    assert not (tmp_path / "out").exists()
