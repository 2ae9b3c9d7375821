"""What `job.json` says was asked: the command, the differences to the default, data and models; never a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron.compile.asked import asked
from nemotron.steps.rl.nemo_rl.rlhf.step import STEP
from tests.unit.compile.compile_world import CONFIGS, Compile

JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"


def test_differences_name_both_values_and_the_place(compiled: Compile) -> None:
    said = asked(compiled("tiny", "grpo.seed=7"), ["steps", "run", "rlhf"], CONFIGS, STEP.config)
    rows = {row[0]: row[1:] for row in said.differences}
    assert rows["grpo.seed"] == ("42", "7", "command line, argument 5")
    assert rows["policy.precision"][:2] == ("bfloat16", "float32")
    assert rows["policy.precision"][2].startswith("tiny.yaml:")
    assert rows["policy.model_name"][1] == "asset:tiny_world/policy"
    assert rows["eval.heldout.max_samples"][:2] == ("not set", "200")
    assert "eval.heldout" not in rows
    # What only follows another key was not written by anybody.
    assert "policy.megatron_cfg.optimizer.lr" not in rows
    assert said.command == ("steps", "run", "rlhf")
    assert [row[0] for row in said.inputs][:2] == ["policy model", "judge model"]
    assert said.data_steps == 400 // 8


def test_the_default_differs_in_nothing(compiled: Compile) -> None:
    assert asked(compiled("default"), [], CONFIGS, STEP.config).differences == ()


def test_a_value_of_the_environment_is_named(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_TRAIN_DATA", "own.jsonl")
    [row] = asked(compiled("default"), [], CONFIGS, STEP.config).differences
    assert row == ("data.train.data_path", row[1], "own.jsonl", "environment variable RL_TRAIN_DATA")


@pytest.mark.parametrize("secret", ["sk-very-secret", "short"])
def test_secrets_are_not_kept(secret: str, compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_REWARD_API_KEY", secret)
    words = [
        f"{JUDGE}.api_key={secret}",
        f"++{JUDGE}={{model: m, base_url: 'http://host/v1', api_key: {secret}}}",
    ]
    for word in words:
        said = asked(compiled("tiny", word), ["steps", "run", "rlhf", word], CONFIGS, STEP.config)
        assert secret not in said.model_dump_json()
        assert "[secret]" in said.command[-1]


def test_schedules_that_follow_the_number_of_steps(compiled: Compile) -> None:
    linear = "{name: torch.optim.lr_scheduler.LinearLR, kwargs: {total_iters: '${grpo.max_num_steps}'}}"
    assert asked(compiled("tiny", f"policy.scheduler={linear}"), [], CONFIGS, STEP.config).schedules == (
        "policy.scheduler",
    )
    assert asked(compiled("tiny"), [], CONFIGS, STEP.config).schedules == ()


def test_paths_below_the_working_folder_are_relative(compiled: Compile, world: Path) -> None:
    said = asked(compiled("own.yaml", f"data.train.data_path={world / 'own.jsonl'}"), [], CONFIGS, STEP.config)
    assert ("train data", "data.train.data_path", "own.jsonl", "200 rows") in said.inputs


@pytest.mark.parametrize("name", ["api_keys", "apikey", "openai_api_key", "password", "auth_token", "Authorization"])
@pytest.mark.parametrize(
    "form",
    [
        "{name}={secret}",
        "{name}=[{secret}, short]",
        "{name}=[first-one, {secret}]",
        "extra={{deep: {{{name}: {secret}}}}}",
    ],
)
def test_a_secret_under_a_name_that_no_field_has_is_not_kept(name: str, form: str, compiled: Compile) -> None:
    secret = "sk-very-secret"
    word = f"+{JUDGE}." + form.format(name=name, secret=secret)
    plan = compiled("tiny", word)
    said = asked(plan, ["steps", "run", "rlhf", word], CONFIGS, STEP.config)
    assert secret not in json.dumps(
        [said.model_dump(mode="json"), plan.job(said).model_dump(mode="json"), plan.to_json()]
    )
