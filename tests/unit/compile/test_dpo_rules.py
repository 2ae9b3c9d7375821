"""Every rule of DPO is broken once, on top of a config that breaks none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.plan import Plan, compile_job
from nemotron.compile.rules.dpo import rules
from nemotron.config.known import embedded_reads
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.manifest import find_step
from nemotron.place import Place
from nemotron.steps.rl.nemo_rl.dpo.step import STEP as DECLARED
from tests.unit.compile.compile_world import LAPTOP, NODE, driven, fill, named, write_model, write_rows

STEP = find_step("rl/nemo_rl/dpo")
OWN = """\
defaults: default
dpo:
  max_num_epochs: 25
policy:
  model_name: model
data:
  train:
    data_path: own.jsonl
  validation:
    data_path: val.jsonl
"""
GENERATION = (
    "policy.generation={backend: embedded, max_new_tokens: 8, temperature: 1.0, top_p: 1.0, top_k: null, "
    "stop_token_ids: null, stop_strings: null}"
)
PACK = "policy.sequence_packing={enabled: true, algorithm: first_fit_shuffle, train_mb_tokens: 4096}"
DYNAMIC = "policy.dynamic_batching={enabled: true, train_mb_tokens: 8192, sequence_length_round: 64}"
HELDOUT = "eval.heldout={data_path: held.jsonl, verifier: tiny_world, max_samples: 2}"

# name, number, severity, overrides
BROKEN: list[tuple[str, int | None, str, tuple[str, ...]]] = [
    ("no-steps", None, "error", ("dpo.max_num_steps=-1",)),
    ("schedulers", 19, "error", ("policy.scheduler=[{milestones: [3]}]",)),
    ("top-k", 35, "error", (GENERATION, "policy.generation.top_k=0")),
    ("no-loss", None, "error", ("dpo.preference_loss_weight=0",)),
    ("sft-average-unused", None, "warning", ("dpo.sft_average_log_probs=true",)),
    ("no-validation-data", 64, "error", ("data.validation=null",)),
    ("no-generation", 30, "error", (HELDOUT,)),
    ("micro-batch-larger", None, "warning", ("policy.train_micro_batch_size=129",)),
    ("micro-batch-larger", None, "warning", ("dpo.val_micro_batch_size=33",)),
    ("prompt-too-long", None, "error", ("data.max_input_seq_length=4096",)),
    ("too-few-rows", None, "error", ("policy.train_global_batch_size=400",)),
    ("checkpoint-metric", 79, "error", ("checkpointing.metric_name=val:validation-default_los",)),
    ("checkpoint-metric", 79, "error", ("dpo.val_period=0",)),
    ("checkpoint-metric", 79, "error", ("checkpointing.metric_name=val:accuracy",)),
    ("checkpoint-metric", 79, "error", ("checkpointing.metric_name=train:lss",)),
    ("override-without-effect", None, "error", ("data.num_workers=3",)),
]
ON_CLUSTER = [
    ("data-parallel-batch", 23, "error", ("cluster.gpus_per_node=7",)),
    ("data-parallel-batch", 23, "error", ("policy.train_global_batch_size=100",)),
    ("batching-mode", 63, "error", (PACK,)),
    ("batching-mode", 63, "error", (DYNAMIC,)),
]
Compile = Callable[..., Plan]


def pair(prompt: str, chosen: str = "good", rejected: str = "bad") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def own_files(folder: Path) -> None:
    """``own.yaml``, and what it names."""
    write_rows(folder / "own.jsonl", [pair(f"own {i}") for i in range(300)])
    write_rows(folder / "val.jsonl", [pair(f"val {i}") for i in range(20)])
    write_rows(folder / "held.jsonl", [{"prompt": "held"}])
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
    assert (plan.work.pairs, plan.work.steps, plan.work.updates) == (64, 60, 1)


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


def test_every_rule_of_dpo_has_a_test() -> None:
    assert {rule.name for rule in rules.members} <= {case[0] for case in [*BROKEN, *ON_CLUSTER]}


def test_pairs_that_say_nothing_or_the_opposite_are_found(compiled: Compile, tmp_path: Path) -> None:
    rows = [pair(f"own {i}") for i in range(300)]
    rows[3] = pair("own 3", "same", "same")
    rows[4] = pair("own 4", "good", "  ")
    rows[9] = pair("own 2", "bad", "good")
    write_rows(tmp_path / "own.jsonl", rows)
    plan = compiled()
    lines = [f.origin.line for f in named(plan, "data-row") if f.origin]
    assert lines == [4, 5]
    assert [str(f.origin) for f in named(plan, "contradictory-pairs")] == ["own.jsonl:10"]
    assert not plan.ok


def test_several_validation_sets_are_ranked_by_their_own_names(compiled: Compile, tmp_path: Path) -> None:
    write_rows(tmp_path / "other.jsonl", [pair(f"other {i}") for i in range(20)])
    sets = ("~data.validation", "+data.validation=[{data_path: val.jsonl}, {data_path: other.jsonl}]")
    assert not named(compiled(*sets, "checkpointing.metric_name=val:validation-other_loss"), "checkpoint-metric")
    [found] = named(compiled(*sets, "checkpointing.metric_name=val:validation-othr_loss"), "checkpoint-metric")
    assert str(found.hint).startswith("did you mean `val:validation-other_loss`? validation measures ")


def test_fields_may_have_other_names(compiled: Compile, tmp_path: Path) -> None:
    write_rows(tmp_path / "own.jsonl", [{"question": f"own {i}", "good": "a", "bad": "b"} for i in range(300)])
    assert named(compiled(), "data-row")
    keys = ("data.train.prompt_key=question", "data.train.chosen_key=good", "data.train.rejected_key=bad")
    assert compiled(*keys).ok


def test_what_the_embedded_engine_reads() -> None:
    assert embedded_reads(DECLARED.config, "dpo", "dpo.seed")
    assert embedded_reads(DECLARED.config, "dpo", "data.train.0.chosen_key")
    assert not embedded_reads(DECLARED.config, "dpo", "data.num_workers")


def test_the_plan_is_json_and_names_files(compiled: Compile) -> None:
    found = json.loads(json.dumps(compiled().to_json()))
    assert [file["role"] for file in found["inputs"]] == ["policy model", "train data", "validation data"]
    assert found["work"]["pairs"] == 128


def test_auto_takes_nemo_rl_beside_a_gpu(compiled: Compile) -> None:
    assert compiled(place=NODE).engine == "nemo_rl"
    assert compiled(place=replace(NODE, has_cuda=False)).engine == "embedded"
