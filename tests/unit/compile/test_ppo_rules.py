"""Every rule of PPO is broken once, on top of a config that breaks none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.plan import Plan, compile_job
from nemotron.compile.rules.ppo import models, rules
from nemotron.config.known import embedded_reads
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.manifest import find_step
from nemotron.place import Place
from nemotron.steps.rl.nemo_rl.ppo.step import STEP as DECLARED
from tests.unit.compile.compile_world import LAPTOP, NODE, driven, fill, named, row, write_model, write_rows

STEP = find_step("rl/nemo_rl/ppo")
OWN = """\
defaults: default
ppo:
  max_num_epochs: 25
policy:
  model_name: model
  max_total_sequence_length: 256
  generation:
    max_new_tokens: 64
reward_model:
  model_name: reward_model
data:
  train:
    data_path: own.jsonl
  validation:
    data_path: val.jsonl
"""
ON_NODE = (
    *("engine=nemo_rl", "cluster.gpus_per_node=9", "reward_model.standardize=false", "actor.exclude_truncated=false"),
)
"""One GPU for the reward model leaves eight."""
LORA = "policy.dtensor_cfg.lora_cfg.enabled=true"
LINEAR = "{name: torch.optim.lr_scheduler.LinearLR, kwargs: {start_factor: 0.1}}"
APART = ("only=actor", "critic.token=a-long-secret", "critic.address=http://host:5556")
SHAPING = "ppo.reward_shaping"
SHARED = "checkpointing.checkpoint_dir=/tmp/shared"

# name, number, severity, overrides
BROKEN: list[tuple[str, int | None, str, tuple[str, ...]]] = [
    ("batch-not-divisible", 22, "error", ("policy.train_global_batch_size=100", "value.train_global_batch_size=64")),
    ("batch-not-divisible", 22, "error", ("value.train_global_batch_size=100",)),
    ("group-of-one", None, "error", ("ppo.adv_estimator.name=rloo", "ppo.num_generations_per_prompt=1")),
    ("critic-warm-up", None, "error", ("ppo.policy_training_start_step=5", "ppo.max_num_steps=5")),
    ("critic-warm-up", None, "warning", ("ppo.policy_training_start_step=5", "ppo.adv_estimator.name=rloo")),
    ("reference-kl-skipped", 44, "error", ("ppo.skip_reference_policy_logprobs_calculation=true",)),
    (
        "limit-unmeasured",
        None,
        "error",
        (
            "ppo.skip_reference_policy_logprobs_calculation=true",
            "loss_fn.reference_policy_kl_penalty=0",
            "limits.max_kl=1.0",
        ),
    ),
    ("cispo", 49, "error", ("loss_fn.use_cispo=true", "loss_fn.ratio_clip_c=3")),
    ("importance-sampling", 47, "error", ("loss_fn.truncated_importance_sampling_type=tis",)),
    ("on-policy-ratio-batch", 25, "error", ("loss_fn.force_on_policy_ratio=true",)),
    (
        "overlong-buffer",
        None,
        "error",
        (f"{SHAPING}.enabled=true", f"{SHAPING}.overlong_buffer_length=2000", f"{SHAPING}.max_response_length=64"),
    ),
    ("kl-without-weight", None, "error", ("actor.absolute_kl=true", "loss_fn.use_kl_in_reward=false")),
    ("no-validation-data", 42, "error", ("data.validation=null",)),
    (
        "reward-shaping",
        50,
        "error",
        (f"{SHAPING}.enabled=true", f"{SHAPING}.overlong_buffer_length=null"),
    ),
    ("empty-range", None, "error", ("ppo.reward_scaling.enabled=true", "ppo.reward_scaling.source_max=-1.0")),
    ("schedulers", 19, "error", (f"value.scheduler=[{LINEAR}, {LINEAR}]",)),
    ("schedulers", 19, "error", ("policy.scheduler=[{milestones: [3]}]",)),
    ("value-model", None, "error", ("value.optimizer=null",)),
    ("value-model", None, "error", ("value.reward_model_cfg.reward_model_type=bradley_terry",)),
    ("critic-elsewhere", None, "error", ("critic.address=http://host:1",)),
    ("critic-elsewhere", None, "error", ("only=critic", SHARED)),
    ("critic-elsewhere", None, "error", ("only=actor", "critic.token=a-long-secret", SHARED)),
    ("critic-elsewhere", None, "error", (*APART[:2], "critic.address=host:5556", SHARED)),
    ("critic-in-the-open", None, "warning", (*APART, SHARED)),
    ("critic-in-the-open", None, "warning", ("only=critic", APART[1], "critic.host=0.0.0.0", SHARED)),
    ("checkpoints-not-shared", None, "error", APART),
    ("offload-without-gpu", None, "warning", ("critic.offload=both",)),
    ("request-size", None, "error", ("critic.max_request_mib=1", "policy.max_total_sequence_length=512")),
    ("reward-model", None, "error", ("reward_model.model_name=model", "value.model_name=reward_model")),
    ("reward-model", None, "error", ("reward_model.model_name=unmeasured",)),
    ("other-tokenizer", None, "error", ("reward_model.model_name=foreign",)),
    ("reward-model-context", None, "error", ("policy.max_total_sequence_length=1024",)),
    ("not-in-embedded", None, "error", ("ppo.use_dynamic_sampling=true",)),
    ("not-in-embedded", None, "error", ("ppo.max_rollout_turns=2",)),
    ("not-in-embedded", None, "error", (LORA, "policy.dtensor_cfg.lora_cfg.dropout=0.1")),
    ("override-without-effect", None, "error", ("value.dtensor_cfg.tensor_parallel_size=2",)),
    ("model-files", None, "error", ("reward_model.model_name=./nowhere",)),
    ("too-few-rows", None, "error", ("ppo.num_prompts_per_step=400",)),
]
VALUE = "value.dtensor_cfg"
ON_CLUSTER: list[tuple[str, int | None, str, tuple[str, ...]]] = [
    ("data-parallel-batch", 23, "error", ("cluster.gpus_per_node=8",)),
    ("data-parallel-batch", 23, "error", ("cluster.num_nodes=4", "cluster.gpus_per_node=8")),
    ("reward-model-gpus", None, "note", ()),
    ("reward-model-gpus", None, "error", ("cluster.gpus_per_node=1",)),
    ("reward-model-gpus", None, "error", ("cluster.num_nodes=2", "env.reward_model.resources.num_nodes=2")),
    ("not-in-nemo-rl", None, "error", ("reward_model.standardize=true",)),
    ("not-in-nemo-rl", None, "error", ("actor.exclude_truncated=true",)),
    ("not-in-nemo-rl", None, "error", ("actor.absolute_kl=true",)),
    ("not-in-nemo-rl", None, "error", ("actor.entropy_bonus=0.1",)),
    ("not-in-nemo-rl", None, "error", ("env.reward_model.model_name=another",)),
    ("not-in-nemo-rl", None, "error", ("only=critic",)),
    ("not-in-nemo-rl", None, "error", ("ppo.adv_estimator.name=rloo",)),
    ("value-backend", None, "error", (f"{VALUE}._v2=false",)),
    ("value-backend", None, "error", (f"{VALUE}.context_parallel_size=2",)),
    ("value-backend", None, "error", ("value.sequence_packing={enabled: true, algorithm: x, train_mb_tokens: 4096}",)),
]
Compile = Callable[..., Plan]


def write_reward_model(folder: Path, vocabulary: dict[str, int] | None = None, **config: Any) -> None:
    """A model folder whose config says that it is a reward model."""
    write_model(folder)
    path = folder / "config.json"
    given = {"architectures": ["LlamaForSequenceClassification"], "reward_mean": 0.0, "reward_std": 1.0, **config}
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 512, **given}))
    if vocabulary:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"] = vocabulary
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def own_files(folder: Path) -> None:
    """``own.yaml``, and what it names."""
    write_rows(folder / "own.jsonl", [row(f"own {i}") for i in range(300)])
    write_rows(folder / "val.jsonl", [row(f"val {i}") for i in range(20)])
    write_model(folder / "model")
    write_reward_model(folder / "reward_model")
    write_reward_model(folder / "unmeasured", reward_std=None)
    write_reward_model(folder / "foreign", {"other": 0, "words": 1})
    (folder / "own.yaml").write_text(OWN)


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compile:
    """Compile ``own.yaml`` (default.yaml with local models and prompts) with overrides on a machine."""
    fill(tmp_path, own_files)
    monkeypatch.chdir(tmp_path)
    for name in ("RL_POLICY_MODEL", "RL_REWARD_MODEL", "RL_TRAIN_DATA", "RL_VALIDATION_DATA", "RL_PREP_MANIFEST"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NEMOTRON_CRITIC_TOKEN", "NEMOTRON_CRITIC_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def build(*overrides: str, place: Place = LAPTOP, config: str = "own.yaml") -> Plan:
        words = parse_overrides(list(enumerate(overrides, start=5)))
        resolved = load(STEP.config_dir, config, words, run_dir="runs/RUN_ID", model=DECLARED.config)
        return compile_job(
            STEP, resolved, driven(DECLARED), runs_dir=Path("runs"), place=place, env={"TORCH_CUDA_ARCH_LIST": "9.0"}
        )

    return build


def test_the_base_breaks_no_rule(compiled: Compile) -> None:
    assert [f.name for f in compiled().findings] == ["nemo-rl-settings"]
    on_node = compiled(*ON_NODE, place=NODE)
    assert [f.name for f in on_node.findings if f.severity != "note"] == []


@pytest.mark.parametrize("address", ["http://localhost:1", "http://127.0.0.9:1", "http://[::1]:1", "https://host:1"])
def test_a_token_that_nobody_can_read_on_its_way_is_not_spoken_of(compiled: Compile, address: str) -> None:
    actor = compiled(*APART[:2], f"critic.address={address}", SHARED)
    critic = compiled("only=critic", APART[1], "critic.host=127.0.0.1", SHARED)
    assert actor.ok
    assert critic.ok
    assert "critic-in-the-open" not in [finding.name for plan in (actor, critic) for finding in plan.findings]


def test_adapters_and_sides_apart_compile(compiled: Compile) -> None:
    assert compiled(LORA).ok
    actor = compiled(*APART, SHARED)
    assert actor.ok, actor.findings
    critic = compiled("only=critic", "critic.token=a-long-secret", "critic.host=0.0.0.0", SHARED)
    assert critic.ok, critic.findings
    for plan, roles in ((actor, ["policy", "critic"]), (critic, ["critic"])):
        assert [process.role for process in plan.processes] == roles
        assert "a-long-secret" not in json.dumps([plan.to_json(), plan.job().model_dump(mode="json")])


@pytest.mark.parametrize(
    ("name", "number", "severity", "overrides"), BROKEN, ids=lambda v: v if isinstance(v, str) else ""
)
def test_on_a_laptop(
    compiled: Compile, name: str, number: int | None, severity: str, overrides: tuple[str, ...]
) -> None:
    plan = compiled(*overrides)
    assert [(f.severity, f.rule) for f in named(plan, name)][:1] == [(severity, number)], plan.findings
    for finding in plan.findings:
        assert finding.origin is not None, finding
        assert not finding.message.endswith("."), finding


@pytest.mark.parametrize(
    ("name", "number", "severity", "overrides"), ON_CLUSTER, ids=lambda v: v if isinstance(v, str) else ""
)
def test_on_a_cluster(
    compiled: Compile, name: str, number: int | None, severity: str, overrides: tuple[str, ...]
) -> None:
    changed = {word.partition("=")[0] for word in overrides}
    plan = compiled(*(word for word in ON_NODE if word.partition("=")[0] not in changed), *overrides, place=NODE)
    assert [(f.severity, f.rule) for f in named(plan, name)][:1] == [(severity, number)], plan.findings


def test_every_rule_of_ppo_has_a_test() -> None:
    tested = {case[0] for case in [*BROKEN, *ON_CLUSTER]}
    assert {rule.name for rule in [*rules.members, *models.members]} <= tested


def test_what_the_embedded_engine_reads() -> None:
    assert embedded_reads(DECLARED.config, "ppo", "value.optimizer.kwargs.lr")
    assert not embedded_reads(DECLARED.config, "ppo", "value.megatron_cfg.enabled")


def test_the_plan_names_what_is_loaded(compiled: Compile) -> None:
    found = json.loads(json.dumps(compiled().to_json()))
    roles = [file["role"] for file in found["inputs"]]
    assert roles == ["policy model", "reward model", "critic model", "train data", "validation data"]
    assert found["work"]["updates"] == 4
    without = compiled("ppo.adv_estimator.name=rloo")
    assert [file.role for file in without.inputs][:3] == ["policy model", "reward model", "train data"]
