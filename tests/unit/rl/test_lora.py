"""Adapters: they change nothing at first, only they learn, and they are saved merged and by themselves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from nemotron.compile.probes.fast_path import matrices
from nemotron.compile.probes.model_files import read_model
from nemotron.config.schema.dtensor import LoraConfig
from nemotron.contracts.samples import Completion, Group
from nemotron.errors import ArtifactError, ConfigError
from nemotron.place import Place
from nemotron.rl.lora import Merged, add_adapters, read_adapter, write_adapter
from nemotron.rl.policy import Policy
from tests.unit.rl.tiny_policy import tiny_policy

GROUPS = [Group([3, 4, 5], [Completion([6, 7, 0], [], False), Completion([8], [], False)])]
LORA: dict[str, Any] = {
    "enabled": True,
    "dim": 4,
    "alpha": 8,
    "dropout": 0.0,
    "dropout_position": "post",
    "target_modules": [],
    "exclude_modules": [],
    "match_all_linear": True,
    "lora_A_init": "xavier",
}


def with_adapters(**changes: Any) -> Policy:
    return add_adapters(tiny_policy(), LoraConfig.model_validate({**LORA, **changes}), seed=1)


def trained(policy: Policy) -> Policy:
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    for _ in range(3):
        policy.response_logprobs(GROUPS).sum().neg().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return policy


def test_fresh_adapters_change_nothing_and_only_they_learn() -> None:
    plain, policy = tiny_policy(), with_adapters()
    torch.testing.assert_close(policy.response_logprobs(GROUPS), plain.response_logprobs(GROUPS))
    names = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert names
    assert all(".lora_" in name for name in names)
    trained(policy)
    base = dict(plain.model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")]), name
    assert not torch.allclose(policy.response_logprobs(GROUPS), plain.response_logprobs(GROUPS))


def test_the_merged_weights_compute_the_same_and_leave_the_adapters_alone(tmp_path: Path) -> None:
    policy = trained(with_adapters())
    expected = policy.response_logprobs(GROUPS)
    merged = Merged(policy)
    assert set(merged.state_dict()) == set(tiny_policy().model.state_dict())
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(
        Policy.load(tmp_path, device="cpu").response_logprobs(GROUPS), expected, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(policy.response_logprobs(GROUPS), expected)


def test_a_saved_adapter_is_read_back_bit_for_bit_and_by_peft(tmp_path: Path) -> None:
    policy = trained(with_adapters())
    write_adapter(policy, tmp_path)
    again = with_adapters()
    read_adapter(again, tmp_path)
    assert torch.equal(again.response_logprobs(GROUPS), policy.response_logprobs(GROUPS))
    theirs = PeftModel.from_pretrained(tiny_policy().model, tmp_path)
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, policy.model(ids).logits)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no module gets an adapter"):
        with_adapters(match_all_linear=False)
    with pytest.raises(ConfigError, match="`no_such_module`"):
        with_adapters(target_modules=["no_such_module"])
    write_adapter(with_adapters(), tmp_path)
    with pytest.raises(ArtifactError, match="other modules or another rank"):
        read_adapter(with_adapters(dim=2), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_adapter(with_adapters(), tmp_path)


def test_the_seed_decides_the_first_matrices() -> None:
    config = LoraConfig.model_validate(LORA)
    first, same, other = (add_adapters(tiny_policy(), config, seed=seed) for seed in (1, 1, 2))
    state = [torch.cat([p.flatten() for p in policy.parameters()]) for policy in (first, same, other)]
    assert torch.equal(state[0], state[1])
    assert not torch.equal(state[0], state[2])


@pytest.mark.parametrize("published", [True, False], ids=["was bfloat16", "was float32"])
def test_a_base_that_was_bfloat16_is_kept_so_and_saved_as_it_was(published: bool) -> None:
    """Half the memory, the same bits: in what is computed and in what a checkpoint holds."""
    start = tiny_policy().model
    if published:
        for parameter in start.parameters():
            parameter.data = parameter.data.bfloat16().float()
    config = LoraConfig.model_validate(LORA)
    policy = add_adapters(Policy(start, precision="bfloat16"), config, seed=1)
    kinds = {p.dtype for m in policy.model.modules() if type(m) is torch.nn.Linear for p in m.parameters()}
    layers = {m.get_base_layer().weight.dtype for m in policy.model.modules() if isinstance(m, BaseTunerLayer)}
    assert layers == {torch.bfloat16 if published else torch.float32}
    assert torch.float32 in kinds  # the adapters themselves
    full = Policy(copy.deepcopy(policy.model).float(), precision="bfloat16")
    trained(policy)
    for name, parameter in full.model.named_parameters():
        parameter.data.copy_(dict(policy.model.named_parameters())[name])
    assert torch.equal(policy.response_logprobs(GROUPS), full.response_logprobs(GROUPS))
    kept, expected = Merged(policy).state_dict(), Merged(full).state_dict()
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in kept.items())


def injected(policy: Policy) -> set[str]:
    return {name for name, module in policy.model.named_modules() if isinstance(module, BaseTunerLayer)}


def test_a_path_with_a_star_is_read_as_nemo_rl_reads_it() -> None:
    every = injected(with_adapters())
    assert injected(with_adapters(target_modules=["*.layers.0.*"])) == {n for n in every if ".layers.0." in n}
    last = with_adapters(target_modules=["q_proj", "*.layers.0.mlp.*"], exclude_modules=["*.up_proj"])
    wanted = {n for n in every if n.endswith("q_proj") or (".layers.0.mlp." in n and not n.endswith("up_proj"))}
    assert injected(last) == wanted


SIZES = {"vocab_size": 97, "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 32}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("config", "names"),
    [
        (transformers.GPT2Config(**SIZES), {"c_attn", "c_fc", "c_proj"}),
        (transformers.FalconConfig(**SIZES), {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        (
            transformers.GPTNeoXConfig(**SIZES, tie_word_embeddings=True, intermediate_size=32),
            {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
        ),
    ],
    ids=["GPT-2", "Falcon", "GPT-NeoX"],
)
def test_all_linear_layers_are_adapted_whatever_their_class_and_the_head_is_called(
    config: transformers.PretrainedConfig, names: set[str]
) -> None:
    policy = Policy(transformers.AutoModelForCausalLM.from_config(config).float())
    plain = policy.frozen_copy()
    adapted = add_adapters(policy, LoraConfig.model_validate(LORA), seed=1)
    assert {path.rpartition(".")[2] for path in injected(adapted)} == names
    trained(adapted)
    merged = dict(Merged(adapted).state_dict())
    assert any(not torch.equal(merged[name], weight) for name, weight in plain.model.state_dict().items())


@pytest.mark.parametrize("named", [["no_such"], ["q_proj", "no_such"], ["*.q_porj"], ["input_layernorm"]])
def test_a_name_that_no_matrix_has_is_an_error_beside_right_ones_too(named: list[str]) -> None:
    with pytest.raises(ConfigError, match="no matrix of the policy is called") as caught:
        with_adapters(target_modules=named)
    assert "`q_proj`" in str(caught.value.hint)


def test_the_compile_knows_the_modules_of_a_family(tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.model.save_pretrained(tmp_path)
    model = read_model(str(tmp_path), Place.this_machine())
    assert model is not None
    found = [n for n, m in policy.model.named_modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2]
    assert sorted(matrices(model) or []) == sorted(found)


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "embed_tokens"], ["*"]], ids=str)
def test_a_matrix_with_two_tasks_gets_no_adapter(targets: list[str]) -> None:
    """Embedding and output layer are one: merged for the one, an adapter would change what the other computes."""
    with pytest.raises(ConfigError, match="one matrix as embedding and as output layer") as caught:
        with_adapters(target_modules=targets, match_all_linear=False)
    assert "leave" in str(caught.value.hint)
