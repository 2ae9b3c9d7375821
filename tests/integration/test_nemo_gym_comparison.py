"""The folder that NeMo-RL is given, run by the real NeMo-Gym 0.4.0: its agents call our servers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nemotron.engines.nemo_rl.folder import prepare
from nemotron.manifest import declaration, find_step
from nemotron.rewards import build_rewards
from tests.integration.gym_world import Models, run_rows, started
from tests.unit.engines.nemo_rl.test_config import JUDGE, values_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

KEY = "sk-planted-0123456789abcdef"
GROUPS, SIZE = 20, 8


def folder_of(tmp_path: Path, judge: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RL_REWARD_API_KEY", KEY)
    words = (f"{JUDGE}.base_url={judge}", f"{JUDGE}.model=judge", "data.validation=null")
    values = values_of("rlhf", "default", *words)
    config = declaration(find_step("rl/nemo_rl/rlhf")).config.model_validate(values)
    values["env"]["nemo_gym"]["genrm_model"]["responses_api_models"]["vllm_model"]["api_key"] = None
    folder = tmp_path / "run" / "nemo_rl"
    prepare(folder, config, values, secrets={f"{JUDGE}.api_key": "RL_REWARD_API_KEY"}, metrics=folder / "m.jsonl")
    return folder


def row_of(prompt: str) -> dict[str, Any]:
    params = {"input": [{"role": "user", "content": prompt}], "temperature": 1.0, "max_output_tokens": 64}
    return {"responses_create_params": params, "agent_ref": {"name": "genrm_simple_agent"}, "_rowidx": 0}


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["response"]["output"][0]["content"][0]["text"]
    return text


def test_every_reward_is_right_when_answers_arrive_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {f"prompt {group}": [f"{n}: quality {1 + n % 5}" for n in range(SIZE)] for group in range(GROUPS)}
    with Models(answers, spread_s=2.0, judge_s=(0.1, 1.0)) as models:
        folder = folder_of(tmp_path, models.base_url, monkeypatch)
        assert [path for path in folder.rglob("*") if path.is_file() and KEY in path.read_text()] == []
        with started(folder, models.base_url) as agents:
            rows = [row_of(prompt) for prompt in answers for _ in range(SIZE)]
            found = run_rows(agents["genrm_simple_agent"], rows)
            # Its judge scores an answer by what it says of itself, so every reward is known.
            wanted = [float(re.findall(r"quality (\d)", text_of(answer))[0]) for answer in found]
            assert len(found) == GROUPS * SIZE == 160
            assert [answer["reward"] for answer in found] == wanted
            assert len(set(wanted)) == 5
            assert not any(answer["mask_sample"] for answer in found)
            assert models.judged == GROUPS * SIZE, "circular: one comparison an answer"
            # What NeMo-RL trains on comes back with the reward.
            assert {answer["response"]["output"][-1]["generation_token_ids"][0] for answer in found} == {7}
            assert models.keys == {f"Bearer {KEY}"}

            models.unfit = True
            models.judge_s = (0.0, 0.0)
            masked = run_rows(agents["genrm_simple_agent"], [row_of("prompt 0") for _ in range(SIZE)])
            assert {(answer["reward"], answer["mask_sample"]) for answer in masked} == {(0.0, True)}
            assert all(answer["failure_kind"] == "judge" for answer in masked)
        assert KEY not in (folder / "gym.log").read_text()


FUNCTIONS = (
    "rewards.functions=[{name: math, extract: boxed, weight: 2.0}, {name: format, tags: [think], weight: 0.5}, "
    '{name: regex, pattern: "sorry|${", weight: -1.0}]'
)
SAID = [r"\boxed{4}", "4", r"<think>2+2</think>\boxed{4}", r"sorry, \boxed{4}", r"<think>hm</think>\boxed{5}", "${x}"]


def test_the_same_functions_give_the_same_rewards(tmp_path: Path) -> None:
    """A config of rlvr on this machine, and its folder under NeMo-Gym."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "What is 2 + 2?", "expected_answer": "4"}) + "\n")
    words = (f"data.train.data_path={rows}", "data.validation=null", f"grpo.num_generations_per_prompt={len(SAID)}")
    values = values_of("rlvr", "default", *words, FUNCTIONS.replace("${", r"\\$\\{"))
    config = declaration(find_step("rl/nemo_rl/rlvr")).config.model_validate(values)
    folder = tmp_path / "run" / "nemo_rl"
    prepare(folder, config, values, secrets={}, metrics=folder / "m.jsonl")
    row = json.loads((folder / "data" / "train.jsonl").read_text())
    with build_rewards(config.rewards) as scorer:
        wanted = {text: scorer.score(row, text, ended=True).reward for text in SAID}
    prompt = row["responses_create_params"]["input"][0]["content"]
    with Models({prompt: SAID}, spread_s=0.2, judge_s=(0, 0)) as models, started(folder, models.base_url) as agents:
        found = run_rows(agents["nemotron_rewards_simple_agent"], [row] * len(SAID))
    assert {text_of(answer): answer["reward"] for answer in found} == wanted
    assert len(set(wanted.values())) >= 4
