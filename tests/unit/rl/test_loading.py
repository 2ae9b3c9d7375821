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
from tests.unit.rl.tiny_policy import tiny_chat, tiny_policy

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


def test_weights_of_layers_that_the_config_does_not_have_are_refused(tmp_path: Path) -> None:
    policy = tiny_policy().model
    name = "model.layers.1.mlp.up_proj.weight"
    folder = saved(tmp_path / "hf", **{name.replace("1", "7"): policy.get_parameter(name).detach().clone()})
    with pytest.raises(ArtifactError, match="no such layer"):
        Policy.load(folder, device="cpu")


@pytest.mark.parametrize("name", ["score.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"])
def test_what_may_lie_beside_the_weights_does_no_harm(tmp_path: Path, name: str) -> None:
    Policy.load(saved(tmp_path / "hf", **{name: torch.zeros(1, 32)}), device="cpu")


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    """transformers makes floating point of them without a word."""
    name = "model.layers.1.mlp.up_proj.weight"
    numbers = tiny_policy().model.get_parameter(name).detach().to(torch.int8)
    with pytest.raises(ArtifactError, match="as `int8`"):
        Policy.load(saved(tmp_path / "hf", **{name: numbers}), device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_found_before_training(tmp_path: Path, value: float) -> None:
    weight = tiny_policy().model.model.norm.weight.detach().clone()
    weight[3] = value
    folder = saved(tmp_path / "hf", **{"model.norm.weight": weight})
    for load in (Policy.load, Policy.load_checkpoint):
        with pytest.raises(ArtifactError, match=r"`model.norm.weight` that are not finite"):
            load(folder, device="cpu")


def test_weights_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    weight = torch.full_like(tiny_policy().model.model.norm.weight, 3e38)
    Policy.load(saved(tmp_path / "hf", **{"model.norm.weight": weight}), device="cpu")


def test_shards_that_no_index_lists_are_said_to_be_that(tmp_path: Path) -> None:
    folder = saved(tmp_path / "hf")
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ArtifactError, match=r"no `model.safetensors.index.json`"):
        Policy.load(folder, device="cpu")


def test_a_quantised_model_is_not_to_be_exported_again(tmp_path: Path) -> None:
    path = saved(tmp_path / "hf") / "config.json"
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    with pytest.raises(ArtifactError) as caught:
        Policy.load(tmp_path / "hf", device="cpu")
    assert "use the unquantised model" in str(caught.value.hint)


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused() -> None:
    chat = tiny_chat()
    chat.check_rows(len(chat.tokenizer), "model")
    chat.tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>"]})
    with pytest.raises(ArtifactError, match=f"{len(chat.tokenizer)} tokens, the embedding of `model`"):
        chat.check_rows(len(chat.tokenizer) - 1, "model")
