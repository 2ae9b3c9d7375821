"""The estimate of memory: what it grows with, and what its hint says would save."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.plan import Memory, Plan
from tests.unit.compile.compile_world import LAPTOP, Compile, named, write_model

DTENSOR = ("policy.megatron_cfg.enabled=false", "policy.dtensor_cfg.enabled=true")
ANEW = (*DTENSOR, "policy.dtensor_cfg.activation_checkpointing=true")
LORA = (*ANEW, "policy.dtensor_cfg.lora_cfg.enabled=true")
NO_REFERENCE = ("loss_fn.reference_policy_kl_penalty=0", "limits.max_kl=null")
SHAPE: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}


def memory_of(plan: Plan) -> Memory:
    assert isinstance(plan.memory, Memory), plan.findings
    return plan.memory


@pytest.fixture
def model(world: Path) -> str:
    """The sizes of a real model; its weights are as many as the header says, and never read."""
    write_model(world / "real", vocabulary=4_000_000, **SHAPE)
    config = world / "real" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "vocab_size": 50_000}))
    return "policy.model_name=real"


STEP = (
    "grpo.num_prompts_per_step=8",
    "grpo.num_generations_per_prompt=8",
    "policy.train_global_batch_size=64",
    "policy.train_micro_batch_size=16",
    "policy.max_total_sequence_length=512",
    "policy.generation.max_new_tokens=256",
)
"""A rollout that takes less than training on it."""


@pytest.mark.parametrize(
    "words", [ANEW, LORA, NO_REFERENCE, ("policy.train_micro_batch_size=1",)], ids=lambda words: words[-1]
)
def test_what_saves_memory_is_less(compiled: Compile, model: str, words: tuple[str, ...]) -> None:
    before = memory_of(compiled("own.yaml", model, *STEP))
    kept = [word for word in STEP if word.split("=")[0] not in words[-1]]
    after = memory_of(compiled("own.yaml", model, *kept, *words))
    assert after.total < 0.99 * before.total
    assert after.total == sum(
        (after.policy, after.reference, after.judge, after.critic, after.activations, after.libraries)
    )


def test_the_hint_names_what_saves_most_and_is_right(compiled: Compile, model: str) -> None:
    """Each proposal is taken at its word: a dry run with it says so much less."""
    words = (model, *STEP)
    small = replace(LAPTOP, memory_bytes=2**30)
    plan = compiled("own.yaml", *words, place=small)
    (finding,) = named(plan, "memory")
    proposals = re.findall(r"((?:`[^`]+` ?)+) saves about ([\d.]+) GiB", str(finding.hint))
    assert len(proposals) == 3
    saved = [float(amount) for _, amount in proposals]
    assert saved == sorted(saved, reverse=True)
    for proposed, amount in proposals:
        kept = [word for word in words if word.split("=")[0] not in proposed]
        other = memory_of(compiled("own.yaml", *kept, *re.findall(r"`([^`]+)`", proposed)))
        assert (memory_of(plan).total - other.total) / 2**30 == pytest.approx(float(amount), abs=0.06), proposed


def test_activation_checkpointing_is_read_by_the_embedded_engine(compiled: Compile, model: str) -> None:
    for words in (ANEW, ("policy.megatron_cfg.activation_checkpointing=true",)):
        assert not named(compiled("own.yaml", model, *words), "override-without-effect")
