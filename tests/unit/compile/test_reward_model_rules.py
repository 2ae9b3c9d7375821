"""Every rule of reward model training is broken once, on top of a config that breaks none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.plan import Plan, compile_job
from nemotron.compile.rules.reward_model import rules
from nemotron.config.known import Standing, embedded_reads, look_up
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.config.schema.rm import RmConfig
from nemotron.manifest import find_step
from nemotron.place import Place
from nemotron.steps.rl.nemo_rl.rlhf import step as rlhf
from nemotron.steps.rl.nemo_rl.rm.step import STEP as DECLARED
from tests.unit.compile.compile_world import CONFIGS, LAPTOP, NODE, driven, fill, named, write_model, write_rows

STEP = find_step("rl/nemo_rl/rm")
OWN = """\
defaults: default
rm:
  max_num_epochs: 25
policy:
  model_name: model
data:
  train:
    data_path: own.jsonl
  validation:
    data_path: val.jsonl
"""
MEGATRON = json.dumps(
    load(CONFIGS, "default", [], run_dir="r", model=rlhf.STEP.config).values["policy"]["megatron_cfg"]
)
PACK = "policy.sequence_packing={enabled: true, algorithm: first_fit_shuffle, train_mb_tokens: 16384}"
KIND = "policy.reward_model_cfg"
DTENSOR = "policy.dtensor_cfg"

# name, number, severity, overrides
BROKEN: list[tuple[str, int | None, str, tuple[str, ...]]] = [
    ("reward-model-type", 65, "error", (f"{KIND}.enabled=false",)),
    ("reward-model-type", 65, "error", (f"~{KIND}",)),
    ("reward-model-type", 65, "error", (f"{KIND}.reward_model_type=regression",)),
    ("no-validation-data", 64, "error", ("data.validation=null", "rm.val_at_start=false", "rm.val_at_end=false")),
    ("no-validation-data", 64, "error", ("data.validation=null", "rm.val_period=0", "rm.val_at_end=false")),
    ("no-steps", None, "error", ("rm.max_num_steps=0",)),
    ("no-steps", None, "error", ("rm.max_num_steps=-2",)),
    ("schedulers", 19, "error", ("policy.scheduler=[{milestones: [3]}]",)),
    ("prompt-too-long", None, "error", ("data.max_input_seq_length=100000",)),
    ("micro-batch", None, "error", ("policy.train_micro_batch_size=3",)),
    ("micro-batch", None, "error", ("rm.val_micro_batch_size=5",)),
    ("data-tokens", None, "error", ("data.use_tokens=true",)),
    ("margin-in-tokens", None, "error", ("data.use_tokens=true", "bradley_terry.margin_key=m")),
    ("too-few-rows", None, "error", ("policy.train_global_batch_size=400",)),
    ("checkpoint-metric", 79, "error", ("checkpointing.metric_name=val:validation-default_los",)),
    ("override-without-effect", None, "error", ("data.num_workers=3",)),
]
ON_CLUSTER = [
    ("data-parallel-batch", 23, "error", ("cluster.gpus_per_node=7",)),
    ("data-parallel-batch", 23, "error", ("rm.val_global_batch_size=4",)),
    ("batching-mode", 63, "error", (PACK,)),
    ("reward-model-backend", 65, "error", (f"{DTENSOR}.context_parallel_size=2",)),
    ("reward-model-backend", 65, "error", (f"{DTENSOR}={{enabled: false}}", f"policy.megatron_cfg={MEGATRON}")),
    ("not-in-nemo-rl", None, "error", ("bradley_terry.margin_key=margin",)),
    ("not-in-nemo-rl", None, "error", ("bradley_terry.center_rewards_coefficient=0.01",)),
]
Compile = Callable[..., Plan]


def pair(prompt: str, chosen: str = "good", rejected: str = "bad") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def own_files(folder: Path) -> None:
    """``own.yaml``, and what it names."""
    write_rows(folder / "own.jsonl", [pair(f"own {i}") for i in range(300)])
    write_rows(folder / "val.jsonl", [pair(f"val {i}") for i in range(20)])
    write_rows(folder / "held.jsonl", [pair(f"held {i}") for i in range(4)])
    write_model(folder / "model")
    (folder / "own.yaml").write_text(OWN)


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compile:
    """Compile ``own.yaml`` (default.yaml with a local model and pairs) with overrides on a machine."""
    fill(tmp_path, own_files)
    monkeypatch.chdir(tmp_path)
    for name in ("RL_POLICY_MODEL", "RL_TRAIN_PAIRS", "RL_VALIDATION_PAIRS", "RL_PREP_MANIFEST"):
        monkeypatch.delenv(name, raising=False)

    def build(*overrides: str, place: Place = LAPTOP, config: str = "own.yaml") -> Plan:
        words = parse_overrides(list(enumerate(overrides, start=5)))
        resolved = load(STEP.config_dir, config, words, run_dir="runs/RUN_ID", model=DECLARED.config)
        return compile_job(
            STEP, resolved, driven(DECLARED), runs_dir=Path("runs"), place=place, env={"TORCH_CUDA_ARCH_LIST": "9.0"}
        )

    return build


def test_the_base_breaks_no_rule(compiled: Compile) -> None:
    # Its sequences are longer than those that are computed by hand, which is no fault.
    assert {f.name for f in compiled().findings} == {"nemo-rl-settings", "slow-model"}
    on_node = compiled("engine=nemo_rl", place=NODE)
    assert [f.name for f in on_node.findings if f.severity != "note"] == []


def test_the_tiny_config_would_start(compiled: Compile) -> None:
    plan = compiled(config="tiny")
    assert [f.name for f in plan.findings] == ["nemo-rl-settings"]
    assert plan.work is not None
    assert (plan.work.pairs, plan.work.steps, plan.work.updates) == (16, 372, 1)


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
    plan = compiled("engine=nemo_rl", *overrides, place=NODE)
    assert [(f.severity, f.rule) for f in named(plan, name)][:1] == [(severity, number)], plan.findings


def test_every_rule_of_reward_models_has_a_test() -> None:
    assert {rule.name for rule in rules.members} <= {case[0] for case in [*BROKEN, *ON_CLUSTER]}


def test_held_out_rows_are_pairs_too(compiled: Compile, tmp_path: Path) -> None:
    assert compiled("eval.heldout={data_path: held.jsonl, max_samples: 2}").ok
    write_rows(tmp_path / "held.jsonl", [{"prompt": "no answers"}])
    plan = compiled("eval.heldout={data_path: held.jsonl, max_samples: 2}")
    assert [f.key for f in named(plan, "data-row")] == ["eval.heldout.data_path"]


def test_what_the_embedded_engine_reads() -> None:
    assert embedded_reads(DECLARED.config, "rm", "rm.seed")
    assert embedded_reads(DECLARED.config, "rm", "data.train.0.chosen_key")
    assert not embedded_reads(DECLARED.config, "rm", "data.num_workers")


def test_every_key_of_nemo_rl_is_accepted_and_needed_alike() -> None:
    keys = json.loads((Path(__file__).parent / "nemo_rl_rm_v0.7.0.json").read_text())["keys"]
    keys.pop("policy.activation_checkpointing_enabled")  # in NeMo-RL's example alone, no class declares it
    for key in keys:
        assert look_up(DECLARED.config, key.split(".")) is not Standing.UNKNOWN, key
    required = {key.removeprefix("rm.") for key, (_, needed) in keys.items() if key.startswith("rm.") and needed}
    assert required == {name for name, field in RmConfig.model_fields.items() if field.is_required()}


def test_the_plan_is_json_and_names_files(compiled: Compile) -> None:
    found = json.loads(json.dumps(compiled().to_json()))
    assert [file["role"] for file in found["inputs"]] == ["policy model", "train data", "validation data"]
    assert (found["work"]["pairs"], found["work"]["steps"]) == (128, 50)


def test_auto_takes_nemo_rl_beside_a_gpu(compiled: Compile) -> None:
    assert compiled(place=NODE).engine == "nemo_rl"
    assert compiled(place=replace(NODE, has_cuda=False)).engine == "embedded"
