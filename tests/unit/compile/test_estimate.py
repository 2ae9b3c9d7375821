"""The estimate of memory: what it grows with, and what its hint says would save."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile import estimate
from nemotron.compile.plan import Memory, Plan
from nemotron.compile.render import plan_rows
from nemotron.rl import packed, products
from tests.unit.compile.compile_world import LAPTOP, NODE, Compile, CompileStep, named, write_model

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


GPU = replace(NODE, modules=LAPTOP.modules)
"""Of a size that nobody has said, and without NeMo-RL."""
AWAY = "policy.offload_optimizer_for_logprob=true"


@pytest.mark.parametrize("words", [(), LORA], ids=["all weights", "adapters"])
def test_moments_beside_a_gpu_are_the_host_s(compiled: Compile, model: str, words: tuple[str, ...]) -> None:
    before = memory_of(compiled("own.yaml", model, *STEP, *words, place=GPU))
    after = memory_of(compiled("own.yaml", model, *STEP, *words, AWAY, place=GPU))
    assert before.host == 0
    assert before.policy - after.policy == after.host > 0
    if not words:
        assert after.host == 2 * 4 * before.parameters
    assert after.activations == max(before.activations, after.host)
    assert after.total == sum(
        (after.policy, after.reference, after.judge, after.critic, after.activations, after.libraries)
    )
    on_a_cpu = memory_of(compiled("own.yaml", model, *STEP, *words, AWAY))
    assert on_a_cpu == memory_of(compiled("own.yaml", model, *STEP, *words))


def test_moments_that_are_more_than_a_pass_needs_set_the_peak(compiled: Compile, model: str) -> None:
    """A step has them on the GPU, whatever is free then."""
    short = ("policy.max_total_sequence_length=64", "policy.generation.max_new_tokens=16")
    little = (model, *STEP[:3], "policy.train_micro_batch_size=1", *short, *ANEW)
    before = memory_of(compiled("own.yaml", *little, place=GPU))
    after = memory_of(compiled("own.yaml", *little, AWAY, place=GPU))
    assert before.activations < after.host == after.activations
    assert before.total - after.total == before.activations


def test_the_plan_says_what_lies_in_the_host_s_memory(compiled: Compile, model: str) -> None:
    plan = compiled("own.yaml", model, *STEP, AWAY, place=GPU)
    (line,) = (value for name, value in plan_rows(plan) if name == "memory")
    assert line.endswith(f"; beside it {memory_of(plan).host / 2**30:.1f} GiB of the host's for the optimizer")
    assert plan.to_json()["memory_bytes"]["host"] == memory_of(plan).host
    assert not named(plan, "optimizer-offload-without-gpu")


def test_where_a_gpu_is_too_small_the_hint_names_the_key(compiled: Compile, model: str) -> None:
    """Its size is what a profile says; each proposal is taken at its word."""
    words = (model, *STEP, *ANEW)
    small = replace(GPU, gpu_memory_bytes=2**30, memory_bytes=None)
    plan = compiled("own.yaml", *words, place=small)
    (finding,) = named(plan, "memory")
    assert "the GPU has 1.0 GiB" in finding.message
    (amount,) = re.findall(rf"`{AWAY}` saves about ([\d.]+) GiB", str(finding.hint))
    other = compiled("own.yaml", *words, AWAY, place=small)
    assert (memory_of(plan).total - memory_of(other).total) / 2**30 == pytest.approx(float(amount), abs=0.06)
    assert not named(other, "override-without-effect")
    (still,) = named(other, "memory")
    assert AWAY not in str(still.hint)
    assert not named(compiled("own.yaml", *words, place=GPU), "memory")


def test_the_host_may_have_too_little_for_the_moments(compiled: Compile, model: str) -> None:
    small = replace(GPU, memory_bytes=2**30)
    (finding,) = named(compiled("own.yaml", model, *STEP, AWAY, place=small), "host-memory")
    assert finding.severity == "warning"
    assert not named(compiled("own.yaml", model, *STEP, AWAY, place=replace(GPU, memory_bytes=2**34)), "host-memory")
    assert not named(compiled("own.yaml", model, *STEP, place=small), "host-memory")


def test_beside_adapters_the_sampler_s_packed_copy_counts(
    compiled: Compile, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a size, and a number of responses, that it packs; not where the adapters are off or a GPU samples."""
    assert (estimate.PACKED, estimate.PACKED_ROWS) == (
        (products.LARGE, packed.BESIDE_ADAPTERS),
        (packed._FEWEST, packed._MOST),
    )
    short = ("policy.max_total_sequence_length=64", "policy.generation.max_new_tokens=16")
    little = (model, *STEP[:3], "policy.train_micro_batch_size=1", "policy.precision=float32", *short)
    for words, adapters in [((*LORA, *little), True), ((*ANEW, *little), False)]:
        found, on_a_gpu = (memory_of(compiled("own.yaml", *words, place=place)) for place in (LAPTOP, GPU))
        for name, never in (("PACKED", (1, 1)), ("PACKED_ROWS", (4, 63))):
            with monkeypatch.context() as patch:
                patch.setattr(estimate, name, never)
                plain = memory_of(compiled("own.yaml", *words))
                assert memory_of(compiled("own.yaml", *words, place=GPU)) == on_a_gpu
            # The copy comes on top of the answers' keys and values, which are less than what training keeps.
            assert (found.activations > plain.activations) is adapters
            assert not adapters or found.activations > 3 * found.parameters
            assert found.policy == plain.policy


KEPT = (*STEP[:3], "policy.train_micro_batch_size=64", "policy.max_total_sequence_length=512", STEP[-1])
LORA_KEPT = (*DTENSOR, "policy.dtensor_cfg.lora_cfg.enabled=true", "policy.precision=float32")


def test_what_a_rollout_leaves_for_training_counts(compiled: Compile, model: str) -> None:
    """Where all responses are trained on at once: beside the packed copy it is more than training needs."""
    found = memory_of(compiled("own.yaml", model, *KEPT, *LORA_KEPT))
    # 64 answers of 256 tokens, 8 prompts as long; 24 layers, and 2 hidden states, gate and up of 4,096, of each token.
    kept = (64 * 256 + 8 * 256) * 24 * (2 * 1024 + 2 * 4096) * 4
    assert found.activations > kept + 4 * 0.8 * found.parameters
    for words in (
        ("grpo.use_dynamic_sampling=true", "grpo.dynamic_sampling_max_gen_batches=4"),
        ("grpo.seq_logprob_error_threshold=2",),
        ("policy.precision=bfloat16",),
    ):
        given = [word for word in LORA_KEPT if word.split("=")[0] != words[0].split("=")[0]]
        assert memory_of(compiled("own.yaml", model, *KEPT, *given, *words)).activations < found.activations, words
    assert memory_of(compiled("own.yaml", model, *KEPT, *LORA_KEPT, place=GPU)).activations < found.activations


@pytest.mark.parametrize("step", ["rlhf", "rlvr", "dpo", "sft", "rm", "ppo"])
def test_every_step_takes_the_key(compiled_step: CompileStep, step: str) -> None:
    for word in (AWAY, AWAY.replace("true", "false")):
        plan = compiled_step(step, word)
        assert not named(plan, "override-without-effect")
        assert bool(named(plan, "optimizer-offload-without-gpu")) is (word == AWAY)


def test_activation_checkpointing_is_read_by_the_embedded_engine(compiled: Compile, model: str) -> None:
    for words in (ANEW, ("policy.megatron_cfg.activation_checkpointing=true",)):
        assert not named(compiled("own.yaml", model, *words), "override-without-effect")
