"""Wire formats, held against a recorded exchange with the real NeMo-Gym."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemotron.gym.protocol import agent_of, output_text, read_verified, response_object, task_row

GOLDEN = Path(__file__).parents[2] / "golden" / "data" / "genrm_http_roundtrip.json"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    return found


def test_the_row_of_the_recording_is_sent_as_it_is(recorded: dict[str, Any]) -> None:
    row = recorded["row"]
    assert agent_of(row) == "genrm_simple_agent"
    sent = task_row(row, [], 7, 2)
    assert {name: sent[name] for name in row} == row
    assert (sent["_ng_rollout_index"], sent["_ng_group_id"]) == (2, "7")


def test_our_response_has_the_fields_of_the_recorded_one(recorded: dict[str, Any]) -> None:
    theirs = recorded["result"]["response"]
    thought, text = theirs["output"][0]["summary"][0]["text"], theirs["output"][1]["content"][0]["text"]
    ours = response_object(f"<think>{thought}</think>{text}", ended=True, response_id="1")
    assert set(ours) <= set(theirs)
    for mine, other in zip(ours["output"], theirs["output"], strict=True):
        assert set(mine) <= set(other)
        assert mine["type"] == other["type"]
    assert ours["output"][0]["summary"] == theirs["output"][0]["summary"]
    assert output_text(ours) == output_text(theirs) == text
    for name in ("object", "parallel_tool_calls", "tool_choice", "tools", "incomplete_details"):
        assert ours[name] == theirs[name]


def test_the_recorded_answer_gives_its_reward(recorded: dict[str, Any]) -> None:
    verified = read_verified(recorded["result"], recorded["row"])
    assert (verified.reward, verified.failure, verified.extras) == (2.0, None, {})


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ([1], "not a JSON object"),
        ({}, "no finite `reward`"),
        ({"reward": None}, "no finite `reward`"),
        ({"reward": float("nan")}, "no finite `reward`"),
        ({"reward": True}, "no finite `reward`"),
        ({"reward": 1e39}, "no finite `reward`"),
        ({"reward": 10**400}, "no finite `reward`"),
        ({"reward": "1"}, "no finite `reward`"),
        ({"reward": 0.0, "mask_sample": True}, "masks the sample"),
        ({"reward": 0.0, "mask_sample": True, "failure_reason": "judge down"}, "judge down"),
    ],
)
def test_what_is_no_reward_is_missing(body: Any, failure: str) -> None:
    verified = read_verified(body, {})
    assert verified.reward is None
    assert failure in str(verified.failure)


def test_extras_are_what_the_server_adds() -> None:
    body = {"uuid": "u", "reward": 1, "extracted_answer": "B", "library_reward": 1.0, "response": {}}
    assert read_verified(body, {"uuid": "u"}).extras == {"extracted_answer": "B", "library_reward": 1.0}


def test_rows_with_a_plain_prompt_are_translated() -> None:
    sent = task_row({"prompt": "Hi"}, [{"role": "user", "content": "Hi"}], 1, 0)
    assert sent["responses_create_params"] == {"input": [{"role": "user", "content": "Hi"}]}
    assert sent["prompt"] == "Hi"


def test_a_cut_response_says_so() -> None:
    response = response_object("17", ended=False, response_id="1")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert output_text(response) == "17"
    assert output_text({"output": "x"}) is None
    assert output_text(None) is None
