"""A `step_N` whose policy has no place in Megatron-Core: shown as the model that it holds, refused with the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.inspect import CheckpointFacts, inspect
from nemotron.artifacts.kinds import recognise
from nemotron.artifacts.verify import verify
from nemotron.checkpoints.megatron import layout
from nemotron.checkpoints.policy import load_policy_weights
from nemotron.errors import ArtifactError


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """As a run with a GPT-2 policy saves it."""
    folder = tmp_path / "checkpoints" / "step_4"
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    model.save_pretrained(folder / "policy" / "weights" / "hf")
    (folder / "training_info.json").write_text("{}")
    return folder


def test_it_is_looked_at_and_verified(step: Path) -> None:
    model = step / "policy" / "weights" / "hf"
    assert recognise(step) == "checkpoint_hf"
    found = inspect(step)
    assert found.path == str(model)
    assert isinstance(found.facts, CheckpointFacts)
    assert found.facts.family == "gpt2"
    assert verify(step).type == "checkpoint_hf"
    assert fingerprint(step) == fingerprint(model)


@pytest.mark.parametrize("below", [".", "policy", "policy/weights"])
def test_there_is_nothing_to_convert(step: Path, below: str) -> None:
    model = step / "policy" / "weights" / "hf"
    for use in (layout.resolve, load_policy_weights):
        with pytest.raises(ArtifactError, match="holds its `gpt2` model in Hugging Face form already") as caught:
            use(step / below)
        assert str(caught.value.hint) == (
            f"there is nothing to convert: use `{model}` as it is, wherever a model is named"
        )


def test_a_step_with_a_broken_config_is_said_to_be_broken(step: Path) -> None:
    (step / "policy" / "weights" / "hf" / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"no readable `config\.json`"):
        layout.resolve(step)
