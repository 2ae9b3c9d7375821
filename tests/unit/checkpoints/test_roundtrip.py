"""Hugging Face to Megatron and back, for every family: the same bytes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemotron.checkpoints.convert import hf_to_megatron, megatron_to_hf
from nemotron.checkpoints.hf import HfWeights
from nemotron.checkpoints.megatron import run_config
from nemotron.checkpoints.megatron.families import from_hf, to_hf
from nemotron.checkpoints.policy import load_policy_weights
from nemotron.errors import ArtifactError
from tests.unit.checkpoints.families_zoo import CONFIGS, make, split_in_two, write_megatron


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_is_byte_identical(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "hf", name)
    there = hf_to_megatron(source, tmp_path / "megatron", verify="logits")
    assert there.largest_logit_difference == 0.0
    assert there.parameters == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(source).parameters())
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(source)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_every_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    source = make(tmp_path / "hf", "qwen2", dtype=dtype)
    hf_to_megatron(source, tmp_path / "megatron")
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(source)


def test_nan_and_negative_zero_survive(tmp_path: Path) -> None:
    source = make(tmp_path / "hf", "llama")
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.model.embed_tokens.weight[0, :3] = torch.tensor([float("nan"), -0.0, float("-inf")])
    model.save_pretrained(source)
    hf_to_megatron(source, tmp_path / "megatron", verify="weights")
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", verify="weights")
    assert files_of(tmp_path / "back")["model.safetensors"] == files_of(source)["model.safetensors"]


def test_sharded_source_and_sharded_target(tmp_path: Path) -> None:
    source = make(tmp_path / "hf", "qwen3")
    whole = dict(HfWeights(source))
    split_in_two(source)
    hf_to_megatron(source, tmp_path / "megatron")
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back", max_file_bytes=200_000)
    back = HfWeights(tmp_path / "back")
    assert len({header.file for header in back.headers.values()}) > 1
    assert all(torch.equal(back[name], weight) for name, weight in whole.items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert torch.equal(loaded.model.norm.weight, whole["model.norm.weight"])


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source = make(tmp_path / "hf", "llama")
    for name in ("one", "two"):
        hf_to_megatron(source, tmp_path / name, verify="none")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.parametrize("same", [True, False])
def test_an_output_layer_beside_a_config_that_ties_it_is_kept_where_it_is_another(tmp_path: Path, same: bool) -> None:
    source = make(tmp_path / "hf", "llama-tied")
    state = dict(HfWeights(source))
    embedding = state["model.embed_tokens.weight"]
    head = embedding.clone() if same else embedding.flip(0).contiguous()
    save_file({**state, "lm_head.weight": head}, source / "model.safetensors", metadata={"format": "pt"})
    there = hf_to_megatron(source, tmp_path / "megatron", verify="logits")
    assert there.largest_logit_difference == 0.0
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back")
    tokens = torch.arange(20)[None]
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder)(tokens).logits for folder in (source, tmp_path / "back")
    )
    assert torch.equal(before, after)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] == same
    assert ("lm_head.weight" in HfWeights(tmp_path / "back")) != same


def test_cast_on_the_way(tmp_path: Path) -> None:
    source = make(tmp_path / "hf", "llama-tied")
    hf_to_megatron(source, tmp_path / "megatron", dtype="bfloat16", verify="weights")
    back = megatron_to_hf(tmp_path / "megatron", tmp_path / "back", verify="logits")
    assert back.dtype == "bfloat16"
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "bfloat16"
    original, result = HfWeights(source), HfWeights(tmp_path / "back")
    assert all(torch.equal(result[name], original[name].to(torch.bfloat16)) for name in original)


def test_result_loads_and_generates(tmp_path: Path) -> None:
    source = make(tmp_path / "hf", "llama")
    hf_to_megatron(source, tmp_path / "megatron")
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "back")("w5 w6", return_tensors="pt")["input_ids"]
    answers = [
        AutoModelForCausalLM.from_pretrained(folder).generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0)
        for folder in (source, tmp_path / "back")
    ]
    assert torch.equal(*answers)
    assert answers[0].shape[1] > tokens.shape[1]


def test_policy_from_every_place_that_names_a_checkpoint(tmp_path: Path) -> None:
    source = make(tmp_path / "hf", "llama")
    original = load_policy_weights(source)
    step = tmp_path / "step_40"
    written = write_megatron(original.state, original.hf_config, source, step / "policy" / "weights")
    for path in (written, step / "policy" / "weights", step):
        policy = load_policy_weights(path)
        assert policy.kind == "checkpoint_megatron"
        assert policy.hf_config == original.hf_config
        assert policy.tokenizer == written / "tokenizer"
        assert all(torch.equal(policy.state[name], original.state[name]) for name in original.state)
    model = AutoModelForCausalLM.from_pretrained(make(tmp_path / "other", "llama", seed=1))
    policy.copy_into(model)
    assert all(torch.equal(original.state[name], parameter) for name, parameter in model.named_parameters())
    (written / "tokenizer").rename(step / "policy" / "tokenizer")  # where NeMo-RL keeps it
    assert load_policy_weights(step).tokenizer == step / "policy" / "tokenizer"


def test_another_shape_is_not_copied(tmp_path: Path) -> None:
    policy = load_policy_weights(make(tmp_path / "hf", "llama-mha"))
    model = AutoModelForCausalLM.from_pretrained(make(tmp_path / "other", "llama"))
    with pytest.raises(ArtifactError, match="k_proj"):
        policy.copy_into(model)


def test_the_layout_of_newer_writers(tmp_path: Path) -> None:
    """Megatron-Core 0.19 keeps common state as a byte object instead of common.pt."""
    source = make(tmp_path / "hf", "qwen2-tied")
    hf_to_megatron(source, tmp_path / "megatron")
    iteration = tmp_path / "megatron" / "iter_0000000"
    (iteration / "common.pt").unlink()
    (iteration / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    root = pickle.loads((iteration / ".metadata").read_bytes())  # our own file, just written
    state = next(key for key in root.state_dict_metadata if "_extra_state" in key)
    where = next(where for where in root.storage_data if where.fqn == state)
    root.state_dict_metadata["common_state/shard_0_1"] = root.state_dict_metadata[state]
    root.storage_data[type(where)("common_state/shard_0_1")] = root.storage_data[where]
    (iteration / ".metadata").write_bytes(pickle.dumps(root))
    megatron_to_hf(iteration, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(source)


def test_live_parameters_and_views_are_written(tmp_path: Path) -> None:
    """The engine's weights require grad and may be slices of one buffer."""
    source = make(tmp_path / "hf", "llama-tied")
    model = AutoModelForCausalLM.from_pretrained(source)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    at, state = 0, {}
    for name, parameter in model.named_parameters():
        state[name] = flat[at : at + parameter.numel()].view_as(parameter).requires_grad_()
        at += parameter.numel()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]  # as a tied module lists it
    write_megatron(state, model.config.to_dict(), None, tmp_path / "megatron")
    policy = load_policy_weights(tmp_path / "megatron")
    assert policy.tokenizer is None
    assert all(torch.equal(policy.state[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_run_config_alone_describes_the_model(tmp_path: Path, name: str) -> None:
    """What NeMo-RL keeps when it trains from our checkpoint: its run_config, not our sidecar."""
    source = make(tmp_path / "hf", name)
    hf_to_megatron(source, tmp_path / "megatron")
    iteration = tmp_path / "megatron" / "iter_0000000"
    (iteration / "hf_config" / "config.json").unlink()
    policy = load_policy_weights(iteration)
    config = json.loads((source / "config.json").read_text())
    known = from_hf(config, "the source")
    # A Mistral without a window is a Llama in everything but name.
    same_name = "llama" if name == "mistral" else known.family
    assert policy.hf_config["model_type"] == same_name
    assert from_hf({**policy.hf_config, "model_type": known.family}, "the result") == known
    assert from_hf(to_hf(known), "itself") == known


def test_run_config_is_plain_yaml_with_the_bridge_fields(tmp_path: Path) -> None:
    source = make(tmp_path / "hf", "mistral-window")
    hf_to_megatron(source, tmp_path / "megatron", hf_model_id="some/model")
    sections = run_config.load(tmp_path / "megatron" / "iter_0000000" / "run_config.yaml")
    assert sections["_target_"] == "megatron.bridge.training.config.ConfigContainer"
    model = sections["model"]
    assert model["window_size"] == [127, 0]
    assert model["layernorm_epsilon"] == 1e-6  # a number also for YAML 1.1, which wants the point
    assert model["make_vocab_size_divisible_by"] == 64
    assert sections["tokenizer"]["tokenizer_model"] == "some/model"
