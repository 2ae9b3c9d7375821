"""convert/merge_lora: what peft would merge, as a command, and every adapter that it does not merge by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import nemotron as package
from nemotron.artifacts.verify import verify
from nemotron.checkpoints.lora import merge_lora
from nemotron.errors import ArtifactError
from tests.in_process import Result, nemotron

POLICY = Path(package.__file__).parent / "assets" / "tiny_world" / "policy"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that peft wrote, with something in it."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32), config).save_pretrained(folder)
    return folder


def merge(*words: str, cwd: Path) -> Result:
    return nemotron("steps", "run", "convert/merge_lora", *words, cwd=cwd, env={"HF_HUB_OFFLINE": "1"})


def changed(adapter: Path, folder: Path, **config: Any) -> Path:
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_the_merged_model_is_peft_s(adapter: Path, tmp_path: Path) -> None:
    done = merge(f"adapter={adapter}", f"base={POLICY}", "output_dir=merged", "dtype=float32", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "read back bit for bit" in done.stderr
    base = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    theirs = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)
    before = load_file(POLICY / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    touched = {name for name in before if not before[name].float().equal(after[name])}
    assert touched == {name for name in before if "q_proj" in name or "down_proj" in name}
    verify(tmp_path / "merged")
    assert nemotron("artifacts", "inspect", str(adapter), cwd=tmp_path).stdout.count("checkpoint_lora") == 1


def test_the_tiny_config_runs(tmp_path: Path) -> None:
    done = merge("-c", "tiny", cwd=tmp_path)
    assert done.code == 0, done.stderr
    [run] = (tmp_path / "runs").iterdir()
    found = json.loads(nemotron("artifacts", "verify", str(run / "merged"), "--json", cwd=tmp_path).stdout)
    assert (found["type"], found["recorded"]) == ("checkpoint_hf", True)


def test_the_adapter_may_name_its_base(adapter: Path, tmp_path: Path) -> None:
    done = merge(f"adapter={adapter}", "output_dir=merged", "dtype=bfloat16", cwd=tmp_path)
    assert done.code == 0, done.stderr
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    nameless = changed(adapter, tmp_path / "nameless", base_model_name_or_path=None)
    done = merge(f"adapter={nameless}", "output_dir=other", cwd=tmp_path)
    assert done.code == 6
    assert "name it as `base`" in done.stderr


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"r": 0}, "no rank"),
    ],
)
def test_what_is_not_merged_is_refused_by_name(
    adapter: Path, tmp_path: Path, config: dict[str, Any], word: str
) -> None:
    other = changed(adapter, tmp_path / "other", **config)
    done = merge(f"adapter={other}", f"base={POLICY}", "output_dir=merged", "--dry-run", cwd=tmp_path)
    assert done.code == 6
    assert word in done.stderr
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = changed(adapter, tmp_path / "other")
    tensors = load_file(other / "adapter_model.safetensors")
    save_file(
        {name.replace(".layers.0.", ".layers.77."): tensor for name, tensor in tensors.items()},
        other / "adapter_model.safetensors",
    )
    done = merge(f"adapter={other}", f"base={POLICY}", "output_dir=merged", cwd=tmp_path)
    assert done.code == 6
    assert "is not of this model" in done.stderr
    assert not (tmp_path / "merged").exists()


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SECOND = FIRST.replace("lora_A", "lora_B")
Tensors = dict[str, torch.Tensor]


def wider(tensors: Tensors) -> Tensors:
    """One module with twice the rank."""
    first, second = tensors[FIRST], tensors[SECOND]
    return {**tensors, FIRST: torch.cat([first, first]), SECOND: torch.cat([second, second], 1)}


@pytest.mark.parametrize(
    ("change", "config", "word"),
    [
        (lambda found: {name: one for name, one in found.items() if name != FIRST}, {}, "incomplete"),
        (lambda found: {name: one for name, one in found.items() if name != SECOND}, {}, "incomplete"),
        (dict, {"r": 8}, "of rank 4, its config says `r: 8`"),
        (wider, {}, "of rank 8, its config says `r: 4`"),
    ],
)
def test_an_incomplete_or_contradictory_adapter_is_refused_by_the_plan_and_by_the_merge(
    adapter: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], config: dict[str, Any], word: str
) -> None:
    other = changed(adapter, tmp_path / "other", **config)
    save_file(change(load_file(other / "adapter_model.safetensors")), other / "adapter_model.safetensors")
    done = merge(f"adapter={other}", f"base={POLICY}", "output_dir=merged", "--dry-run", cwd=tmp_path)
    assert (done.code, word in done.stderr) == (6, True), done.stderr
    with pytest.raises(ArtifactError, match=word):
        merge_lora(other, POLICY, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_pickled_adapter_is_refused_by_the_plan(adapter: Path, tmp_path: Path) -> None:
    other = changed(adapter, tmp_path / "other")
    (other / "adapter_model.safetensors").rename(other / "adapter_model.bin")
    done = merge(f"adapter={other}", f"base={POLICY}", "output_dir=merged", "--dry-run", cwd=tmp_path)
    assert (done.code, "its weights are a pickle" in done.stderr) == (6, True), done.stderr


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_base_is_refused_by_the_plan_and_by_the_merge(
    adapter: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    base = Path(shutil.copytree(POLICY, tmp_path / "base"))
    weights = {name: one.to(dtype) for name, one in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors")
    done = merge(f"adapter={adapter}", f"base={base}", "output_dir=merged", "--dry-run", cwd=tmp_path)
    assert (done.code, "use the unquantised model" in done.stderr) == (6, True), done.stderr
    with pytest.raises(ArtifactError, match=str(dtype).removeprefix("torch.")):
        merge_lora(adapter, base, tmp_path / "merged")


def test_an_adapter_as_policy_is_refused_by_name(adapter: Path, tmp_path: Path) -> None:
    words = ("-c", "tiny", f"policy.model_name={adapter}", "--dry-run")
    done = nemotron("steps", "run", "rl/nemo_rl/rlvr", *words, cwd=tmp_path)
    assert done.code == 6
    assert "is an adapter (PEFT, LoRA), not a whole model" in done.stderr
    assert "convert/merge_lora" in done.stderr
