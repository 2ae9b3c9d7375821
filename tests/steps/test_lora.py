"""LoRA in every training step: only adapters learn, a checkpoint holds them, a resumed run ends with the same bits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from nemotron.rl.policy import Policy
from nemotron.rl.saving import weights_of
from tests.steps.commands import only_run, run_here

TINY = Path(__file__).parents[2] / "src" / "nemotron" / "assets" / "tiny_world"
DT = "policy.dtensor_cfg"
ON = (f"{DT}.enabled=true", f"{DT}.lora_cfg.enabled=true", f"{DT}.lora_cfg.dim=4")
SECTIONS = {
    "rl/nemo_rl/rlhf": "grpo",
    "rl/nemo_rl/rlvr": "grpo",
    "rl/nemo_rl/dpo": "dpo",
    "rl/nemo_rl/rm": "rm",
    "rl/nemo_rl/ppo": "ppo",
    "sft/nemo_rl": "sft",
}


GRPO = ("grpo.num_prompts_per_step=2", "grpo.num_generations_per_prompt=4")
SMALL = {"grpo": (*GRPO, "limits.max_kl=null"), "ppo": ("ppo.num_prompts_per_step=8",)}
"""A few rows show what there is to show."""


def words(step: str, steps: int) -> tuple[str, ...]:
    section = SECTIONS[step]
    # Every row is read before the first step, and the reference scores it.
    few = "data.train.data_path=${asset:tiny_world/data/pairs_heldout.jsonl}"
    own = {
        "rl/nemo_rl/dpo": (*ON, few),
        "sft/nemo_rl": (*ON, few),
        "rl/nemo_rl/rm": (*ON[1:], few, "bradley_terry.statistics_pairs=16"),
        "rl/nemo_rl/ppo": ON[1:],
    }
    return (
        *own.get(step, ON),
        *SMALL.get(section, (f"{section}.val_period=0", f"{section}.val_at_start=false")),
        f"{section}.max_num_steps={steps}",
        "policy.train_global_batch_size=8",
        "policy.train_micro_batch_size=8",
        "checkpointing.save_period=1",
        "checkpointing.keep_top_k=null",
        "checkpointing.metric_name=null",
        "eval.heldout=null",
    )


def trained(step: str, runs: Path, steps: int) -> Path:
    """A run of so many steps; returns its folder."""
    argv = [sys.executable, "-m", "nemotron", "steps", "run", step, "-c", "tiny", "--runs-dir", str(runs)]
    done = run_here([*argv, *words(step, steps)])
    assert done.code == 0, done.stderr
    return only_run(runs)


def adapter(run: Path, step: int) -> dict[str, Any]:
    return load_file(run / "checkpoints" / f"step_{step}" / "policy" / "adapter" / "adapter_model.safetensors")


ALWAYS = ("sft/nemo_rl",)
"""The other steps, and the other kind of model, are looked at in the full run."""


@pytest.mark.parametrize(
    "step", [pytest.param(one, marks=[] if one in ALWAYS else pytest.mark.full) for one in sorted(SECTIONS)]
)
def test_adapters_learn_and_a_resumed_run_ends_with_the_same_bits(step: str, tmp_path: Path) -> None:
    whole = trained(step, tmp_path / "whole", 2)
    part = trained(step, tmp_path / "part", 1)
    argv = [sys.executable, "-m", "nemotron", "runs", "resume", part.name, "--runs-dir", str(tmp_path / "part")]
    done = run_here([*argv, "--max-steps", "2"])
    assert done.code == 0, done.stderr

    ours, theirs = adapter(whole, 2), adapter(part, 2)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    learned = [name for name in ours if "lora_B" in name and ours[name].any()]
    assert len(learned) == sum("lora_B" in name for name in ours) > 0
    before = adapter(whole, 1)
    assert any(not ours[name].equal(before[name]) for name in ours)
    assert losses(whole) == losses(part)


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def test_the_reference_is_the_model_with_its_adapters_off_and_the_rest_stays(tmp_path: Path) -> None:
    """The first pairs have no margin: policy and reference are one model, whose adapters are still zero. The reference
    saw them in other batches, which rounds sums in another order."""
    run = trained("rl/nemo_rl/dpo", tmp_path, 2)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    margins = [row["train/margin"] for row in rows if "train/margin" in row]
    assert abs(margins[0]) < 1e-5
    assert abs(margins[1]) > 1e-4
    merged, start = (
        Policy.load_checkpoint(path, device="cpu").model.state_dict()
        for path in (weights_of(run / "checkpoints" / "step_2"), TINY / "policy_megatron")
    )
    changed = {name for name, tensor in merged.items() if not tensor.equal(start[name])}
    assert changed
    assert all("_proj" in name for name in changed)
