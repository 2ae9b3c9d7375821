"""The shipped Megatron checkpoint against configs that do not fit it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import nemotron
from nemotron.compile.plan import Plan, compile_job
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.steps.rl.nemo_rl.rlhf.step import STEP

ROOT = Path(nemotron.__file__).parent
ASSETS = ROOT / "assets" / "tiny_world"
CONFIGS = ROOT / "steps" / "rl" / "nemo_rl" / "rlhf" / "config"


class Step:
    """The part of a manifest that a plan needs."""

    id = "rl/nemo_rl/rlhf"
    view = None


def plan(tmp_path: Path, *words: str) -> Plan:
    overrides = parse_overrides(list(enumerate(words, start=5)))
    resolved = load(CONFIGS, "tiny", overrides, run_dir=str(tmp_path / "RUN_ID"), model=STEP.config)
    return compile_job(Step(), resolved, STEP, runs_dir=tmp_path)


def messages(found: Plan) -> list[str]:
    return [f.message for f in found.findings if f.name == "pretrained-checkpoint"]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A copy of the shipped Hugging Face policy, to be changed."""
    return Path(shutil.copytree(ASSETS / "policy", tmp_path / "policy"))


def test_the_shipped_checkpoint_fits_and_is_listed(tmp_path: Path) -> None:
    found = plan(tmp_path)
    assert found.ok
    assert messages(found) == []
    assert "policy weights" in [file.role for file in found.inputs]


def test_a_folder_of_another_format(tmp_path: Path) -> None:
    found = plan(tmp_path, f"policy.pretrained_checkpoint.path={ASSETS / 'policy'}")
    assert found.exit_code == 6
    assert len(messages(found)) == 1


def test_a_missing_shard(tmp_path: Path) -> None:
    broken = Path(shutil.copytree(ASSETS / "policy_megatron", tmp_path / "broken"))
    next(broken.rglob("*.distcp")).unlink()
    found = plan(tmp_path, f"policy.pretrained_checkpoint.path={broken}")
    assert found.exit_code == 6
    assert ".distcp" in messages(found)[0]


def test_another_model(tmp_path: Path, policy: Path) -> None:
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps({**config, "hidden_size": 256}))
    found = plan(tmp_path, f"policy.model_name={policy}")
    assert messages(found) == ["the checkpoint has `hidden_size` 128, `policy.model_name` 256"]


def test_another_tokenizer(tmp_path: Path, policy: Path) -> None:
    content = json.loads((policy / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (policy / "tokenizer.json").write_text(json.dumps(content))
    found = plan(tmp_path, f"policy.tokenizer.name={policy}")
    assert found.exit_code == 6
    assert messages(found) == ["the tokenizer gives other ids to tokens than the one in the policy's checkpoint"]


def test_another_chat_template_is_a_warning(tmp_path: Path, policy: Path) -> None:
    (policy / "chat_template.jinja").write_text("{{ messages }}")
    found = plan(tmp_path, f"policy.tokenizer.name={policy}")
    assert found.ok
    assert messages(found) == ["the chat template differs from the one in the policy's checkpoint"]
