"""Rules of verifiable rewards: each is broken once, on top of configs that break none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.plan import Plan, compile_job
from nemotron.config.known import Standing, embedded_reads, look_up
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.config.schema.rewards import RewardConfig
from nemotron.data.rows import read_prompts
from nemotron.errors import DataError
from nemotron.manifest import find_step
from nemotron.place import Place
from nemotron.rewards import scorable
from nemotron.steps.rl.nemo_rl.rlvr.step import STEP as DECLARED
from tests.unit.compile.compile_world import LAPTOP, NODE, driven, named, write_model, write_rows

STEP = find_step("rlvr")
OWN = """\
defaults: {base}
policy: {{model_name: model}}
data:
  train: {{data_path: own.jsonl}}
  validation: {{data_path: val.jsonl}}
"""
Compile = Callable[..., Plan]


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "prompt": f"What is {number} + 1?",
        "question": f"What is {number} + 1?",
        "expected_answer": str(number + 1),
        "agent_ref": {"type": "responses_api_agents", "name": "math_with_judge_simple_agent"},
        "anything": ".*",
        **fields,
    }


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compile]:
    """Compile ``own.yaml`` (from default) or ``gym.yaml`` (from nemo_gym) with overrides."""
    write_model(tmp_path / "model")
    write_rows(tmp_path / "own.jsonl", [row(i) for i in range(100)])
    write_rows(tmp_path / "val.jsonl", [row(1000 + i) for i in range(20)])
    for name, base in (("own", "default"), ("gym", "nemo_gym")):
        (tmp_path / f"{name}.yaml").write_text(OWN.format(base=base))
    for name in ("RL_POLICY_MODEL", "RL_TRAIN_DATA", "RL_VALIDATION_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def build(name: str, *overrides: str, place: Place = LAPTOP) -> Plan:
        words = parse_overrides(list(enumerate(overrides, start=5)))
        resolved = load(STEP.config_dir, name, words, run_dir="runs/RUN_ID", model=DECLARED.config)
        return compile_job(STEP, resolved, driven(DECLARED), runs_dir=Path("runs"), place=place, env={})

    return build


@pytest.mark.parametrize("name", ["own.yaml", "gym.yaml", "tiny", "default", "nemo_gym"])
def test_the_configs_break_no_rule(compiled: Compile, name: str) -> None:
    plan = compiled(name)
    assert [finding.name for finding in plan.errors] == []
    roles = [process.role for process in plan.processes]
    assert roles == ["policy", "server math", "server mcqa"] if "gym" in name else ["policy", "rewards"]


TWO = "{name: regex, label: shape, pattern_field: format_pattern}"
HELD = "eval.heldout={data_path: val.jsonl, max_samples: 4, rewards: {functions: [%s]}}"
BROKEN: list[tuple[str, str, tuple[str, ...]]] = [
    ("no-rewards", "own.yaml", ("rewards=null",)),
    ("no-rewards", "gym.yaml", ("rewards={functions: [{name: math}]}",)),
    ("reward-row", "own.yaml", ("rewards.functions=[{name: math, answer_field: gone}]",)),
    ("reward-row", "own.yaml", (f"rewards.functions=[{{name: math}}, {TWO}]",)),
    ("reward-row", "own.yaml", (f"rewards.functions=[{{name: math}}, {TWO[:-1]}, optional: true}}]",)),
    ("reward-row", "own.yaml", (HELD % TWO,)),
    ("reward-function", "own.yaml", ("rewards.functions=[{name: user, function: 'gone:score'}]",)),
    ("reward-function", "own.yaml", ("rewards.functions=[{name: json_schema, schema_file: gone.json}]",)),
    ("reward-gold", "own.yaml", ("rewards.functions=[{name: regex, pattern_field: anything}]",)),
    ("gym-row", "gym.yaml", ("gym.servers.math.agents=[math_agent]",)),
    ("reward-scale", "own.yaml", ("grpo.reward_scaling.enabled=true", "rewards.functions=[{name: math, weight: 2.0}]")),
]


@pytest.mark.parametrize(("name", "config", "overrides"), BROKEN)
def test_a_broken_rule_is_found(compiled: Compile, name: str, config: str, overrides: tuple[str, ...]) -> None:
    [finding, *_] = named(compiled(config, *overrides), name)
    assert finding.origin is not None
    assert finding.hint or name == "reward-function"
    if name != "reward-scale":
        assert finding.severity == "error"
    assert look_up(DECLARED.config, str(finding.key).split(".")) is not Standing.UNKNOWN


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"agent_ref": None}, "it has neither `agent_ref.name` nor `task_source`"),
        ({"agent_ref": {"name": "math_with_judge_simple_agnt"}}, "serves its agent"),
        ({"question": 3}, "it has no text `question`"),
    ],
)
def test_a_row_that_no_server_can_score_is_named(compiled: Compile, fields: dict[str, Any], said: str) -> None:
    write_rows(Path("own.jsonl"), [*(row(i) for i in range(99)), row(99, **fields)])
    [finding] = named(compiled("gym.yaml"), "gym-row")
    assert said in finding.message
    assert str(finding.origin) == "own.jsonl:100"
    assert finding.exit_code == 5


def test_rows_that_a_function_cannot_score_are_counted(compiled: Compile) -> None:
    rows = [row(i) for i in range(60)]
    for each in rows[10:13]:
        del each["expected_answer"]
    write_rows(Path("own.jsonl"), rows)
    [finding] = named(compiled("own.yaml"), "reward-row")
    assert "`math` cannot score 3 rows of the train data" in finding.message
    assert str(finding.origin) == "own.jsonl:11"
    optional = compiled("own.yaml", "rewards.functions=[{name: math, optional: true}]")
    assert named(optional, "reward-row") == []


def test_unknown_instructions_are_counted_and_can_be_left_out(compiled: Compile) -> None:
    """Which ones are unknown, how many rows ask for each, and what leaves those rows out: plan and engine agree."""
    asked = ["punctuation:no_comma"] * 50 + ["words:start_verb"] * 7 + ["language:response_language"] * 3
    rows = [row(i, instruction_id_list=[name], kwargs=[{}]) for i, name in enumerate(asked)]
    write_rows(Path("own.jsonl"), rows)
    functions = "rewards.functions=[{name: instructions}]"
    [finding] = named(compiled("own.yaml", functions), "reward-row")
    assert finding.severity == "error"
    assert "there is no instruction `words:start_verb` (7 rows)" in finding.message
    assert "there is no instruction `language:response_language` (3 rows)" in finding.message
    assert "rewards.unusable_rows=leave_out" in (finding.hint or "")
    [told] = named(compiled("own.yaml", functions, "rewards.unusable_rows=leave_out"), "reward-row")
    assert (told.severity, "cannot score 10 rows" in told.message) == ("warning", True)
    config = RewardConfig.model_validate({"functions": [{"name": "instructions"}], "unusable_rows": "leave_out"})
    kept = scorable(config, list(read_prompts(Path("own.jsonl"))))
    assert [prompt.fields for prompt in kept] == rows[:50]
    with pytest.raises(DataError, match="none of 10 rows"):
        scorable(config, list(read_prompts(Path("own.jsonl")))[50:])


def test_right_answers_that_pay_nobody_are_counted(compiled: Compile) -> None:
    golds = ["12.", "1e-05", 2.0, "\\frac{1}{2}", "\\text{}", "5", "1/0", "5"]
    write_rows(Path("own.jsonl"), [row(i, expected_answer=gold) for i, gold in enumerate([*golds, *range(60)])])
    [finding] = named(compiled("own.yaml"), "reward-gold")
    assert finding.severity == "warning"
    assert "`math` cannot use 2 of 5 different right answers of the train data" in finding.message
    assert str(finding.origin) == "own.jsonl:5"
    write_rows(Path("own.jsonl"), [row(i, expected_answer=" ") for i in range(60)])
    [finding] = named(compiled("own.yaml"), "reward-row")
    assert "is blank" in finding.message


def test_broken_rows_are_left_to_the_rule_for_them(compiled: Compile) -> None:
    Path("own.jsonl").write_text("\n".join([*(json.dumps(row(i)) for i in range(40)), "{broken", "[1]"]) + "\n")
    plan = compiled("own.yaml")
    assert {finding.name for finding in plan.errors} == {"data-row"}


def test_a_remote_server_is_noted(compiled: Compile) -> None:
    words = ("gym.servers.math.base_url=http://localhost:12001", "gym.servers.math.kind=null")
    plan = compiled("gym.yaml", *words)
    [note] = named(plan, "gym-servers")
    assert "http://localhost:12001" in note.message
    assert [process.where for process in plan.processes][1] == "server http://localhost:12001"


def test_what_nemo_rl_lacks_is_said(compiled: Compile) -> None:
    words = ("engine=nemo_rl", "gym.servers.math.base_url=http://localhost:12001", "gym.servers.math.kind=null")
    keys = {finding.key for finding in named(compiled("gym.yaml", *words, place=NODE), "not-in-nemo-rl")}
    assert "gym.servers.math.base_url" in keys
    # Other functions than mathematics run as our server under NeMo-Gym.
    words = ("engine=nemo_rl", "rewards.functions=[{name: math}, {name: format, require_end: true}]")
    assert not named(compiled("own.yaml", *words, place=NODE), "not-in-nemo-rl")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("rewards.functions=[{name: maths}]",), "maths"),
        (("rewards.functions=[{name: math, weight: 0.0}]",), "no reward function has a positive weight"),
        (("rewards.functions=[{name: math}, {name: math}]",), "two reward functions are called `math`"),
        (("rewards.functions=[]",), "at least 1"),
        (("rewards.functions=[{name: math, answer_feld: x}]",), "answer_feld"),
        (("gym={servers: {a: {agents: [x]}}}",), "give either `base_url`"),
        (("gym={servers: {a: {kind: math, agents: [x]}, b: {kind: mcqa, agents: [x]}}}",), "belongs to two servers"),
        (("gym={servers: {a: {base_url: localhost, agents: [x]}}}",), "is not an http address"),
    ],
)
def test_what_the_model_refuses(compiled: Compile, overrides: tuple[str, ...], said: str) -> None:
    plan = compiled("own.yaml", *overrides)
    assert any(said in finding.message for finding in plan.errors), [finding.message for finding in plan.errors]
    assert all(finding.origin is not None for finding in plan.errors)


def test_every_rule_of_verifiable_rewards_is_broken_here() -> None:
    from nemotron.compile.rules.rewards import rules

    assert any(rules in stage for stage in DECLARED.rules)
    tested = {name for name, _, _ in BROKEN} | {"gym-servers", "not-in-nemo-rl"}
    assert {rule.name for rule in rules.members} <= tested


def test_what_the_embedded_engine_reads() -> None:
    assert embedded_reads(DECLARED.config, "grpo", "rewards.functions.0.name")
    assert embedded_reads(DECLARED.config, "grpo", "gym.servers.math.agents")
    assert not embedded_reads(DECLARED.config, "grpo", "env.should_use_nemo_gym")
