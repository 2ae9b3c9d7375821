"""One mistake is one error: what only follows from it is not said beside it.

Each case is one wrong input to a step that works otherwise, with the rule and the key that must be blamed for it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nemotron.config import resolvers
from nemotron.config.known import Standing, look_up
from nemotron.errors import CompileError, Finding
from nemotron.manifest import declaration, find_step
from tests.unit.compile.compile_world import CompileStep, write_manifest, write_rows

JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
FAMILIES = ("rlhf", "rlvr", "dpo", "rm", "ppo")
RATIO = "loss_fn.force_on_policy_ratio=true"


def edited(folder: Path, **changes: Any) -> None:
    """A copy of the shipped policy whose config says something else."""
    shutil.copytree(resolvers.ASSETS / "tiny_world" / "policy", folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="session")
def broken_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Broken models and data. No test changes them."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "empty").mkdir()
    edited(folder / "wide")
    tokens = json.loads((folder / "wide" / "tokenizer.json").read_text())
    tokens["added_tokens"].append({**tokens["added_tokens"][0], "id": 5000, "content": "<far>"})
    (folder / "wide" / "tokenizer.json").write_text(json.dumps(tokens))
    edited(folder / "short", max_position_embeddings=64)
    for name, lost in (("no_config", "config.json"), ("no_weights", "model.safetensors")):
        edited(folder / name)
        (folder / name / lost).unlink()
    for name, content in (("no_header", b"\xff" * 64), ("odd_header", b"\x08" + bytes(7) + b'{"w": 1}')):
        edited(folder / name)
        (folder / name / "model.safetensors").write_bytes(content)
    edited(folder / "cut_off")
    shutil.copytree(resolvers.ASSETS / "tiny_world" / "reward_model", folder / "scores")
    weights = folder / "cut_off" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    edited(folder / "no_tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "no_tokenizer" / name).unlink()
    edited(folder / "other_tokens")
    path = folder / "other_tokens" / "tokenizer.json"
    value = json.loads(path.read_text())
    first, second, *_ = reversed(value["model"]["vocab"])
    vocabulary = value["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(value))
    (folder / "file").write_text("x")
    (folder / "broken.jsonl").write_text("not json\n" * 80)
    write_rows(folder / "no_prompt.jsonl", [{"words": str(i)} for i in range(80)])
    write_rows(folder / "few.jsonl", [{"prompt": str(i)} for i in range(3)])
    write_rows(folder / "few_pairs.jsonl", [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(3)])
    write_rows(folder / "same.jsonl", [{"prompt": str(i), "chosen": "a", "rejected": "a"} for i in range(80)])
    manifest = write_manifest(folder / "prepared", {"train": [[{"prompt": str(i)} for i in range(80)]]})
    (manifest.parent / "train-00000-of-00001.jsonl").unlink()
    return folder


@pytest.fixture
def here(broken_files: Path, tmp_path: Path) -> None:
    """They are here, to name in a config."""
    for path in broken_files.iterdir():
        (tmp_path / path.name).symlink_to(path)


GRPO = [
    ("policy.train_micro_batch_size=0", "out-of-range", "policy.train_micro_batch_size"),
    ("policy.optimizer.kwargs.lr=fast", "wrong-type", "policy.optimizer.kwargs.lr"),
    ("~policy.optimizer", "unresolved", "policy.optimizer"),
    ("policy.optimizer=null", "unresolved", "policy.optimizer"),
    ("grpo.max_num_steps=many", "wrong-type", "grpo.max_num_steps"),
    ("grpo.max_num_step=3", "unknown-key", "grpo.max_num_step"),
]
MODELS = [
    ("policy.model_name=./gone", "model-files", "policy.model_name"),
    ("policy.model_name=empty", "model-files", "policy.model_name"),
    ("policy.model_name=no_config", "model-files", "policy.model_name"),
    ("policy.model_name=no_weights", "model-files", "policy.model_name"),
    ("policy.model_name=no_header", "model-files", "policy.model_name"),
    ("policy.model_name=odd_header", "model-files", "policy.model_name"),
    ("policy.model_name=cut_off", "model-files", "policy.model_name"),
    ("policy.model_name=no_tokenizer", "model-files", "policy.model_name"),
    ("policy.model_name=wide", "vocabulary", "policy.tokenizer.name"),
    ("policy.max_total_sequence_length=100000", "model-context", "policy.max_total_sequence_length"),
    ("policy.precision=fp32", "wrong-type", "policy.precision"),
    ("data.train.data_path=gone.jsonl", "data-file", "data.train.data_path"),
    ("data.train.data_path=broken.jsonl", "data-row", "data.train.data_path"),
    ("data.manifest_path=gone", "manifest-missing", "data.manifest_path"),
]
CASES = [
    *[("rlhf", *case) for case in (*GRPO, *MODELS)],
    *[("rlvr", *case) for case in (*GRPO, *MODELS)],
    *[("dpo", *case) for case in MODELS],
    *[("rm", *case) for case in MODELS],
    *[("ppo", *case) for case in MODELS],
    ("rlvr", "policy.model_name=scores", "not-a-language-model", "policy.model_name"),
    *[
        (step, "policy.model_name=scores ~policy.pretrained_checkpoint", "not-a-language-model", "policy.model_name")
        for step in ("rlhf", "dpo", "ppo")
    ],
    ("rlhf", "~grpo", "unresolved", "grpo"),
    ("rlhf", "grpo=null", "unresolved", "grpo"),
    ("rlvr", "grpo=null", "wrong-type", "grpo"),
    ("rlhf", "grpo.num_generations_per_prompt=0", "out-of-range", "grpo.num_generations_per_prompt"),
    ("rlhf", "grpo.num_generations_per_prompt=1", "group-of-one", "grpo.num_generations_per_prompt"),
    ("rlhf", f"policy.train_global_batch_size=48 {RATIO}", "batch-not-divisible", "policy.train_global_batch_size"),
    ("rlhf", "grpo.adv_estimator.name=opd", "not-in-embedded", "grpo.adv_estimator.name"),
    (
        "rlhf",
        "grpo.skip_reference_policy_logprobs_calculation=true",
        "reference-kl-skipped",
        "grpo.skip_reference_policy_logprobs_calculation",
    ),
    ("rlhf", "data.train.data_path=no_prompt.jsonl", "data-row", "data.train.data_path"),
    ("rlhf", "data.manifest_path=prepared", "manifest-shard", "data.manifest_path"),
    ("rlhf", f"{JUDGE}.model=./gone", "model-files", f"{JUDGE}.model"),
    ("rlhf", f"{JUDGE}.model=no_tokenizer", "model-files", f"{JUDGE}.model"),
    ("rlhf", f"{JUDGE}.model=no_header", "model-files", f"{JUDGE}.model"),
    ("rlhf", f"{JUDGE}.base_url=localhost", "judge-endpoint", f"{JUDGE}.base_url"),
    ("rlhf", "policy.model_name=short", "model-context", "policy.max_total_sequence_length"),
    ("rlhf", "policy.model_name=other_tokens", "pretrained-checkpoint", "policy.tokenizer.name"),
    ("rlvr", "data.train.data_path=few.jsonl", "too-few-rows", "data.train.data_path"),
    ("rlvr", "data.train.data_path=no_prompt.jsonl", "data-row", "data.train.data_path"),
    ("rlvr", "data.train.data_path=same.jsonl", "reward-row", "rewards.functions.0"),
    ("rlvr", "rewards.functions=[{name: code}]", "reward-row", "rewards.functions.0"),
    ("rlvr", "rewards.functions=[{name: mth}]", "invalid-value", "rewards.functions.0"),
    ("rlvr", "rewards.functions=[]", "out-of-range", "rewards.functions"),
    ("rlvr", "rewards.functions=[{name: math, fields: gone}]", "unknown-key", "rewards.functions.0.fields"),
    ("rlvr", "rewards.functions=[{name: user, function: 'gone:x'}]", "reward-function", "rewards.functions.0"),
    ("dpo", "data.train.data_path=few_pairs.jsonl", "too-few-rows", "data.train.data_path"),
    ("dpo", "data.train.data_path=same.jsonl", "data-row", "data.train.data_path"),
    ("dpo", "data.train.data_path=few.jsonl", "data-row", "data.train.data_path"),
    ("dpo", "data.train.chosen_key=gone", "data-row", "data.train.data_path"),
    ("dpo", "data.manifest_path=prepared", "manifest-kind", "data.manifest_path"),
    ("rm", "data.validation=null", "no-validation-data", "rm.val_period"),
    ("rm", "data.manifest_path=prepared", "manifest-kind", "data.manifest_path"),
    ("ppo", "policy.train_global_batch_size=7", "batch-not-divisible", "policy.train_global_batch_size"),
    ("ppo", "ppo.num_generations_per_prompt=3", "batch-not-divisible", "policy.train_global_batch_size"),
    (
        "ppo",
        "ppo.adv_estimator.name=rloo ppo.num_generations_per_prompt=1",
        "group-of-one",
        "ppo.num_generations_per_prompt",
    ),
    ("ppo", "policy.model_name=other_tokens", "pretrained-checkpoint", "policy.tokenizer.name"),
    ("ppo", "reward_model.model_name=./gone", "model-files", "reward_model.model_name"),
    ("ppo", "reward_model.model_name=no_config", "model-files", "reward_model.model_name"),
    ("ppo", "reward_model.model_name=no_header", "model-files", "reward_model.model_name"),
    ("ppo", "reward_model.model_name=no_tokenizer", "model-files", "reward_model.model_name"),
    ("ppo", "reward_model.model_name=other_tokens", "reward-model", "reward_model.model_name"),
    ("ppo", "reward_model.model_name=short", "reward-model", "reward_model.model_name"),
    (
        "ppo",
        "ppo.skip_reference_policy_logprobs_calculation=true",
        "reference-kl-skipped",
        "ppo.skip_reference_policy_logprobs_calculation",
    ),
    ("rl_prep", "blend=null blend_path=few.jsonl output_dir=few.jsonl", "output-folder", "output_dir"),
    ("rl_prep", "blend=null blend_path=gone.jsonl", "source-missing", "blend_path"),
    ("rl_prep", "blend={}", "no-effect", "blend"),
    ("hf_to_megatron", "hf_model=./gone", "model-files", "hf_model"),
    ("hf_to_megatron", "hf_model=no_config", "model-files", "hf_model"),
    ("megatron_to_hf", "megatron_path=./gone", "model-files", "megatron_path"),
    ("megatron_to_hf", "megatron_path=empty", "model-files", "megatron_path"),
    ("reward_audit", f"{JUDGE}.model=./gone", "model-files", f"{JUDGE}.model"),
    ("reward_audit", "reward_model.path=no_weights", "model-files", "reward_model.path"),
    ("reward_audit", "reward_model.path=no_tokenizer", "model-files", "reward_model.path"),
    ("reward_audit", "data.data_path=broken.jsonl", "data-row", "data.data_path"),
    ("reward_audit", "data.chosen_key=gone", "data-row", "data.data_path"),
]


def with_one_step(cases: list[tuple[str, str, str, str]]) -> list[Any]:
    """Each mistake with one of the steps that know it, not always the same one, and with all of them in `make full`."""
    alike: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for case in cases:
        alike.setdefault(case[1:], []).append(case)
    return [
        pytest.param(*case, marks=[] if at == number % len(steps) else pytest.mark.full)
        for number, steps in enumerate(alike.values())
        for at, case in enumerate(steps)
    ]


def errors(compiled_step: CompileStep, step: str, *words: str) -> list[Finding]:
    try:
        findings = compiled_step(step, *words).findings
    except CompileError as error:
        findings = error.findings
    return [finding for finding in findings if finding.severity == "error"]


def split(words: str) -> list[str]:
    """Words of a command line; what stands in brackets is one."""
    return [words] if any(mark in words for mark in "[{") else words.split()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("step", "words", "name", "key"), with_one_step(CASES), ids=lambda value: str(value)[:60])
def test_one_error(compiled_step: CompileStep, step: str, words: str, name: str, key: str) -> None:
    found = errors(compiled_step, step, *split(words))
    assert [(finding.name, finding.key) for finding in found] == [(name, key)], found
    assert found[0].origin is not None


@pytest.mark.usefixtures("here")
def test_two_causes_are_two_errors(compiled_step: CompileStep) -> None:
    words = ("policy.model_name=./gone", "data.train.data_path=gone.jsonl", "policy.train_global_batch_size=7")
    found = errors(compiled_step, "rlhf", *words)
    assert [finding.name for finding in found] == ["batch-not-divisible", "model-files", "data-file"]
    found = errors(compiled_step, "ppo", "policy.precision=fp32", "value.precision=fp16")
    assert [finding.key for finding in found] == ["policy.precision", "value.precision"]


def test_what_was_deleted_is_named_with_what_refers_to_it(compiled_step: CompileStep) -> None:
    (finding,) = errors(compiled_step, "rlhf", "~policy.optimizer")
    assert str(finding.origin) == "command line, argument 5"
    assert finding.message == (
        "`policy.optimizer` is taken away here, and `policy.megatron_cfg.optimizer.lr` and 2 more refer to it"
    )


def test_what_a_rule_needs_is_a_key(compiled_step: CompileStep) -> None:
    """A misspelt need would silence nothing."""
    for step in (*FAMILIES, "rl_prep", "hf_to_megatron", "megatron_to_hf", "reward_audit"):
        model = declaration(find_step(step)).config
        stages = declaration(find_step(step)).rules
        section = getattr(model, "section", "")
        for rule in (rule for stage in stages for rules in stage for rule in rules.members):
            assert all(look_up(model, need.split(".")) is not Standing.UNKNOWN for need in rule.needed(section)), (
                rule.name
            )
