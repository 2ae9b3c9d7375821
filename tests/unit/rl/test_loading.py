"""What the engine loads is what the files mean, or it is refused by name: nothing is dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron.errors import ArtifactError
from nemotron.rl.policy import Policy
from tests.unit.checkpoints.families_zoo import write_megatron
from tests.unit.rl.tiny_policy import tiny_policy

WEIGHTS = "model.safetensors"


def saved(folder: Path, **weights: torch.Tensor) -> Path:
    """The tiny policy in files, with weights changed or added."""
    tiny_policy().model.save_pretrained(folder)
    save_file({**load_file(folder / WEIGHTS), **weights}, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def test_an_output_layer_of_its_own_survives_every_form_of_a_checkpoint(tmp_path: Path) -> None:
    """transformers keeps it, and trains it, although the config ties it to the embedding."""
    head = torch.randn_like(tiny_policy().model.lm_head.weight)
    policy = Policy.load(saved(tmp_path / "hf", **{"lm_head.weight": head}), device="cpu")
    hf_config = json.loads(policy.model.config.to_json_string())
    write_megatron(policy.model.state_dict(), hf_config, None, tmp_path / "megatron")
    policy.model.save_pretrained(tmp_path / "again")
    again = [Policy.load_checkpoint(tmp_path / name, device="cpu") for name in ("hf", "again", "megatron")]
    for found in (policy, policy.frozen_copy(), *again):
        assert torch.equal(found.model.lm_head.weight, head)
        assert not found.model.config.tie_word_embeddings


def test_a_model_beside_an_adapter_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "hf")
    (tmp_path / "hf" / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="a whole model and an adapter"):
        Policy.load(tmp_path / "hf", device="cpu")
