"""Settings that are slow, or have no effect, or one that nobody wants: each is said once, and only where it is true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.declaration import TrainingStep
from nemotron.compile.plan import Plan, compile_job
from nemotron.compile.rules.doubts import rules, speed
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.manifest import declaration, find_step
from nemotron.place import bf16_of
from tests.unit.compile.compile_world import LAPTOP, NODE, Compile, driven, named, write_model

OLD = replace(LAPTOP, has_bf16=False)
NEW = replace(LAPTOP, has_bf16=True)
RATE = "policy.optimizer.kwargs.lr"
JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
PRINCIPLE = "env.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare.use_principle=true"
HELDOUT = "eval.heldout={data_path: val.jsonl, verifier: tiny_world, max_samples: 20}"
MEGATRON = "policy.megatron_cfg.optimizer"
OWN_RATE = (f"{MEGATRON}.lr=1e-6", f"{MEGATRON}.min_lr=1e-6")
STEPS = ("sft", "rlhf", "rlvr", "dpo", "rm", "ppo")
ADAPTERS = "policy.dtensor_cfg.lora_cfg"
NO_HEADS = f"{ADAPTERS}.exclude_modules=[lm_head,embed_tokens]"
LORA = ("policy.dtensor_cfg.enabled=true", f"{ADAPTERS}.enabled=true")

CYCLE = "torch.optim.lr_scheduler.OneCycleLR"


def cycle(words: str, *more: str) -> tuple[str, ...]:
    """A one-cycle schedule with these arguments, and what follows it."""
    entries = ", ".join([f"{{name: {CYCLE}, kwargs: {{max_lr: 1.0e-6, {words}}}}}", *more])
    return (f"policy.scheduler=[{entries}]",)


THEN = "{name: torch.optim.lr_scheduler.ConstantLR, kwargs: {factor: 1.0}}"

# name, severity, key, overrides; own.yaml makes 15 steps
CASES: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("slow-adapters", "warning", f"{ADAPTERS}.target_modules", (*LORA, f"{ADAPTERS}.target_modules=[lm_head,q_proj]")),
    ("slow-adapters", "warning", f"{ADAPTERS}.target_modules", (*LORA, f"{ADAPTERS}.target_modules=['*']")),
    ("adapter-targets", "error", f"{ADAPTERS}.target_modules", (*LORA, f"{ADAPTERS}.target_modules=[q_proj,no_such]")),
    ("adapter-targets", "error", f"{ADAPTERS}.target_modules", (*LORA, f"{ADAPTERS}.target_modules=['*.layers.2.*']")),
    ("adapter-targets", "error", f"{ADAPTERS}.target_modules", (*LORA, f"{ADAPTERS}.match_all_linear=false")),
    ("adapter-targets", "error", f"{ADAPTERS}.exclude_modules", (*LORA, f"{ADAPTERS}.exclude_modules=[qproj]")),
    ("adapter-targets", "error", f"{ADAPTERS}.exclude_modules", (*LORA, f"{ADAPTERS}.exclude_modules=['*_proj']")),
    ("learning-rate", "error", RATE, (f"{RATE}=1e6",)),
    ("learning-rate", "error", RATE, (*OWN_RATE, f"{RATE}=-1e-5")),
    ("learning-rate", "error", RATE, (*OWN_RATE, f"{RATE}=1e-5x")),
    ("learning-rate", "error", RATE, (*OWN_RATE, f"{RATE}=.nan")),
    ("learning-rate", "warning", RATE, (f"{RATE}=0.2",)),
    ("learning-rate", "warning", RATE, (*OWN_RATE, f"{RATE}=0")),
    ("micro-batch-larger", "warning", "policy.train_micro_batch_size", ("policy.train_micro_batch_size=513",)),
    ("micro-batch-larger", "warning", "policy.logprob_batch_size", ("policy.logprob_batch_size=513",)),
    ("hot-rollouts", "warning", "policy.generation.temperature", ("policy.generation.temperature=10",)),
    ("heldout-samples", "note", "eval.heldout.max_samples", (HELDOUT, "eval.heldout.max_samples=21")),
    ("epochs-end-first", "warning", "grpo.max_num_steps", ("grpo.max_num_steps=16",)),
    ("validation-never-due", "warning", "grpo.val_period", ("grpo.val_period=16",)),
    ("saved-at-the-end-only", "note", "checkpointing.save_period", ("checkpointing.save_period=16",)),
    ("warm-up-longer", "warning", "policy.scheduler", ("grpo.max_num_steps=9",)),
    ("schedule-ends", "error", "policy.scheduler", cycle("total_steps: 14")),
    ("schedule-ends", "error", "policy.scheduler", cycle("epochs: 7, steps_per_epoch: 2")),
    ("schedule-ends", "error", "policy.scheduler", cycle("total_steps: 7", THEN, "{milestones: [9]}")),
    ("matrices-alone", "error", "policy.optimizer.name", ("policy.optimizer.name=torch.optim.Muon",)),
    (
        "no-time",
        "warning",
        "checkpointing.checkpoint_must_save_by",
        ("checkpointing.checkpoint_must_save_by='00:00:00:00'",),
    ),
    ("response-too-long", "error", "policy.generation.max_new_tokens", ("policy.generation.max_new_tokens=2048",)),
    ("greedy-rollouts", "error", "policy.generation.top_k", ("policy.generation.top_k=1",)),
    ("greedy-rollouts", "error", "policy.generation.temperature", ("policy.generation.temperature=1e-40",)),
]
NEARLY: list[tuple[str, tuple[str, ...]]] = [
    ("adapter-targets", LORA),
    ("adapter-targets", (*LORA, f"{ADAPTERS}.target_modules=['*.layers.1.*', embed_tokens]")),
    ("slow-adapters", (*LORA, f"{ADAPTERS}.target_modules=['*.layers.1.*']")),
    (
        "slow-adapters",
        (*LORA, f"{ADAPTERS}.target_modules=['*']", f"{ADAPTERS}.exclude_modules=[lm_head,embed_tokens]"),
    ),
    ("learning-rate", (f"{RATE}=1.0e-2",)),
    ("learning-rate", (f"{RATE}=5", "policy.optimizer.name=torch.optim.SGD")),
    ("micro-batch-larger", ("policy.train_micro_batch_size=512",)),
    ("hot-rollouts", ("policy.generation.temperature=2",)),
    ("heldout-samples", (HELDOUT,)),
    ("epochs-end-first", ("grpo.max_num_steps=15",)),
    ("validation-never-due", ("grpo.val_period=16", "grpo.val_at_end=true")),
    ("validation-never-due", ("grpo.val_period=15",)),
    ("saved-at-the-end-only", ("checkpointing.save_period=15",)),
    ("warm-up-longer", ("grpo.max_num_steps=9", "policy.scheduler=null")),
    ("schedule-ends", cycle("total_steps: 15")),
    ("schedule-ends", cycle("epochs: 5, steps_per_epoch: 3")),
    ("schedule-ends", cycle("total_steps: 8", THEN, "{milestones: [9]}")),
    ("matrices-alone", (*LORA, "policy.optimizer.name=torch.optim.Muon")),
    ("no-time", ("checkpointing.checkpoint_must_save_by='00:00:00:01'",)),
    ("response-too-long", ("policy.generation.max_new_tokens=2047",)),
    ("greedy-rollouts", ("policy.generation.top_k=2",)),
]


@pytest.mark.parametrize(
    ("name", "severity", "key", "overrides"), CASES, ids=lambda v: v if isinstance(v, str) else " ".join(v)
)
def test_it_is_said(compiled: Compile, name: str, severity: str, key: str, overrides: tuple[str, ...]) -> None:
    (finding,) = named(compiled("own.yaml", *overrides), name)
    assert (finding.severity, finding.key) == (severity, key)
    assert finding.origin is not None
    assert finding.hint or severity == "note"
    assert not finding.message.endswith(".")


@pytest.mark.parametrize(("name", "overrides"), NEARLY, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_the_value_beside_it_is_fine(compiled: Compile, name: str, overrides: tuple[str, ...]) -> None:
    assert not named(compiled("own.yaml", *overrides), name)


@pytest.mark.parametrize(
    ("config", "targets", "refused"),
    [
        ({"tie_word_embeddings": True}, "[lm_head,q_proj]", True),
        ({"tie_word_embeddings": True}, "['*']", True),
        ({"tie_word_embeddings": True}, "[q_proj]", False),
        ({"tie_word_embeddings": False}, "[lm_head,embed_tokens]", False),
        ({"model_type": "gemma3_text"}, "[embed_tokens]", True),
    ],
    ids=str,
)
def test_one_matrix_for_two_tasks_gets_no_adapter(
    compiled: Compile, world: Path, config: dict[str, Any], targets: str, refused: bool
) -> None:
    write_model(world / "other", **config)
    words = ("policy.model_name=other", *LORA, f"{ADAPTERS}.target_modules={targets}")
    found = named(compiled("own.yaml", *words), "adapter-targets")
    assert ["one matrix as embedding and as output layer" in finding.message for finding in found] == [True] * refused


def test_bfloat16_is_slow_where_the_processor_lacks_it(compiled: Compile) -> None:
    (finding,) = named(compiled("own.yaml", place=OLD), "slow-precision")
    assert (finding.severity, finding.key, finding.hint) == (
        "warning",
        "policy.precision",
        "set `policy.precision=float32`",
    )
    for place in (NEW, replace(OLD, has_cuda=True), replace(LAPTOP, has_bf16=None)):
        assert not named(compiled("own.yaml", place=place), "slow-precision")
    assert not named(compiled("own.yaml", "policy.precision=float32", place=OLD), "slow-precision")


def test_a_judge_that_we_serve_is_slow_as_well(compiled: Compile) -> None:
    words = ("policy.precision=float32", "judge.dtype=bfloat16")
    assert [f.key for f in named(compiled("own.yaml", *words, place=OLD), "slow-precision")] == ["judge.dtype"]
    elsewhere = (*words, f"{JUDGE}.base_url='http://host/v1'")
    assert not named(compiled("own.yaml", *elsewhere, place=OLD), "slow-precision")


def test_a_large_judge_in_float64_is_slow(compiled: Compile, world: Path) -> None:
    write_model(world / "large", vocabulary=1_000_000)
    large, exact = f"{JUDGE}.model=large", "judge.dtype=float64"
    (finding,) = named(compiled("own.yaml", large, exact), "slow-judge")
    assert (finding.severity, finding.key) == ("warning", "judge.dtype")
    assert "64M parameters" in finding.message
    assert "`judge.dtype=auto`" in str(finding.hint)
    for words in ((large,), (exact,), (large, exact, f"{JUDGE}.base_url='http://host/v1'")):
        assert not named(compiled("own.yaml", *words), "slow-judge")


SLOW: list[tuple[dict[str, Any], str, str | None]] = [
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "warning", "rotary embedding is `dynamic`"),
    ({"model_type": "gemma3_text", "hidden_activation": "relu"}, "warning", "gate is `relu`"),
    ({"model_type": "qwen3", "max_position_embeddings": 4096}, "note", "more than 1,024 tokens"),
    ({"model_type": "mamba"}, "warning", "every token of an answer is sampled by computing the whole answer again"),
    ({"model_type": "gpt_neox"}, "", None),
]


@pytest.mark.parametrize(("config", "severity", "text"), SLOW, ids=str)
def test_a_model_off_the_fast_path_is_said(
    compiled: Compile, world: Path, config: dict[str, Any], severity: str, text: str | None
) -> None:
    write_model(world / "other", **config)
    found = named(compiled("own.yaml", "policy.model_name=other"), "slow-model")
    assert [finding.severity for finding in found] == ([severity] if text else [])
    assert text is None or text in found[0].message
    short = ("policy.max_total_sequence_length=1024", "policy.generation.max_new_tokens=64")
    assert bool(named(compiled("own.yaml", "policy.model_name=other", *short), "slow-model")) == (severity == "warning")


def test_passes_of_few_tokens_are_slow(compiled: Compile) -> None:
    small = ("policy.train_micro_batch_size=1", "policy.generation.max_new_tokens=100")
    (finding,) = named(compiled("own.yaml", *small), "small-passes")
    assert (finding.severity, finding.key) == ("warning", "policy.train_micro_batch_size")
    assert "512 passes of at most 100 tokens" in finding.message
    assert "`policy.train_micro_batch_size=11`" in str(finding.hint)
    assert not named(compiled("own.yaml", "policy.train_micro_batch_size=11", small[1]), "small-passes")
    assert not named(compiled("own.yaml", small[0], "policy.generation.max_new_tokens=1000"), "small-passes")


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx512f avx512_bf16\n", True),
        ("processor\t: 0\nflags\t\t: fpu sse2 amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f\n\nprocessor\t: 1\nflags\t\t: amx_bf16\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd svebf16x\n", False),
        ("processor\t: 0\nisa\t: rv64imafdc\n", None),
    ],
)
def test_what_the_processor_says(text: str, known: bool | None, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert bf16_of(tmp_path / "cpuinfo") is known


def test_a_system_without_such_a_file_says_nothing(tmp_path: Path) -> None:
    assert bf16_of(tmp_path / "cpuinfo") is None


def template(world: Path, text: str) -> None:
    (write_model(world / "model") / "chat_template.jinja").write_text(text)


PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"


def judge_of(plan: Plan) -> str:
    (process,) = (process for process in plan.processes if process.role == "judge")
    return process.where


def test_an_instruct_model_is_asked_in_one_turn(compiled: Compile, world: Path) -> None:
    template(world, PLAIN)
    plan = compiled("own.yaml")
    assert not named(plan, "judge-roles")
    assert "asked in one turn of the user (its chat template does not know `response_1`)" in judge_of(plan)
    assert "verdict: the probabilities of the scores" in judge_of(plan)
    calls = plan.work.judge_calls if plan.work else None
    (finding,) = named(compiled("own.yaml", "judge.prompt=genrm"), "judge-roles")
    assert (finding.severity, finding.key) == ("warning", f"{JUDGE}.model")
    assert "`response_1`, `response_2`, but" in finding.message
    as_text = compiled("own.yaml", "judge.verdict=text")
    assert as_text.work is not None
    assert calls == 2 * (as_text.work.judge_calls or 0)


def test_an_endpoint_is_asked_by_the_template_that_can_be_seen(compiled: Compile, world: Path) -> None:
    template(world, PLAIN)
    seen = judge_of(compiled("own.yaml", f"{JUDGE}.base_url='http://host/v1'"))
    assert "one turn of the user" in seen
    assert "JSON held to its schema" in seen
    words = (f"{JUDGE}.base_url='http://host/v1'", f"{JUDGE}.model=name-there")
    assert "in a GenRM's roles (its chat template cannot be seen)" in judge_of(compiled("own.yaml", *words))


def test_words_of_a_user_s_own_are_looked_at(compiled: Compile, world: Path) -> None:
    template(world, PLAIN)
    own = world / "own.jinja"
    own.write_text("{{ response_1 }} or {{ response_2 }}?")
    key = "judge.instruct_template"
    plan = compiled("own.yaml", f"{key}={own}")
    assert not named(plan, "judge-template")
    assert [ref.path for ref in plan.inputs if ref.key == key] == [str(own)]
    (finding,) = named(compiled("own.yaml", f"{key}={own}", "judge.prompt=genrm"), "judge-template")
    assert (finding.severity, finding.key) == ("warning", key)
    own.write_text("{{ response_1 }}")
    (finding,) = named(compiled("own.yaml", f"{key}={own}"), "judge-template")
    assert (finding.severity, finding.key) == ("error", key)
    assert "does not show `response_2`" in finding.message


def test_a_probe_without_pairs_is_an_error(compiled: Compile, world: Path) -> None:
    key = "judge.probe.data_path"
    (finding,) = named(compiled("own.yaml", f"{key}={world / 'nowhere.jsonl'}"), "judge-probe")
    assert (finding.severity, finding.key) == ("error", key)
    assert not named(
        compiled("own.yaml", f"{key}={world / 'nowhere.jsonl'}", "judge.probe.enabled=false"), "judge-probe"
    )


def test_a_form_that_cannot_be_asked_is_an_error(compiled: Compile) -> None:
    (finding,) = named(compiled("own.yaml", "judge.prompt=genrm", "judge.verdict=logits"), "judge-form")
    assert (finding.severity, finding.key) == ("error", "judge.verdict")


def test_a_judge_without_a_role_for_the_principle(compiled: Compile, world: Path) -> None:
    template(world, "{% if m.role in ['response_1', 'response_2'] %}{% endif %}")
    assert not named(compiled("own.yaml"), "judge-roles")
    (finding,) = named(compiled("own.yaml", PRINCIPLE), "judge-roles")
    assert "does not know `principle`" in finding.message
    assert not named(compiled("own.yaml", PRINCIPLE, f"{JUDGE}.supports_principle_role=false"), "judge-roles")


def test_held_out_answers_fit_the_model(compiled: Compile, world: Path) -> None:
    words = (f"policy.model_name={write_model(world / 'short', max_position_embeddings=2048)}", HELDOUT)
    limit = "eval.heldout.max_new_tokens"
    (finding,) = named(compiled("own.yaml", *words, f"{limit}=2048"), "heldout-without-room")
    assert (finding.severity, finding.key) == ("error", limit)
    assert not named(compiled("own.yaml", *words, f"{limit}=2047"), "heldout-without-room")


def shipped(step: str, config: str, *overrides: str) -> Plan:
    """A config of another step, compiled as it is shipped on a machine where everything is fast."""
    found = find_step(step)
    code = declaration(found)
    words = parse_overrides(list(enumerate(overrides, start=5)))
    resolved = load(found.config_dir, config, words, run_dir="runs/RUN_ID", model=code.config)
    place = NODE if config == "nemo_gym" and step == "rlhf" else NEW
    return compile_job(
        found,
        resolved,
        driven(code) if isinstance(code, TrainingStep) else code,
        runs_dir=Path("runs"),
        place=place,
        env={},
    )


@pytest.mark.parametrize("step", [*STEPS, "reward_audit"])
@pytest.mark.parametrize("config", ["tiny", "default", "nemo_gym"])
def test_shipped_configs_leave_no_doubt(step: str, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if config not in find_step(step).configs:
        return
    for name in ("RL_POLICY_MODEL", "RL_REWARD_MODEL", "RL_TRAIN_DATA", "RL_TRAIN_PAIRS", "RL_PREP_MANIFEST"):
        monkeypatch.delenv(name, raising=False)
    doubts = {rule.name for rule in [*rules.members, *speed.members]} | {"judge-roles"}
    assert [f for f in shipped(step, config).findings if f.name in doubts] == []


@pytest.mark.parametrize("step", STEPS)
def test_every_training_step_has_the_rules(step: str) -> None:
    plan = shipped(step, "tiny", f"{RATE}=0.5")
    assert [f.key for f in named(plan, "learning-rate")] == [RATE]


def test_the_critic_of_ppo_is_looked_at_too() -> None:
    words = ("value.optimizer.kwargs.lr=7", "value.train_micro_batch_size=1000", "value.precision=bfloat16")
    plan = shipped("ppo", "tiny", *words)
    assert [f.key for f in named(plan, "learning-rate")] == ["value.optimizer.kwargs.lr"]
    assert [f.key for f in named(plan, "micro-batch-larger")] == ["value.train_micro_batch_size"]
    assert not named(plan, "slow-precision")
    found = find_step("ppo")
    code = declaration(found)
    resolved = load(found.config_dir, "tiny", parse_overrides([(5, words[2])]), run_dir="r", model=code.config)
    slow = compile_job(found, resolved, code, runs_dir=Path("runs"), place=OLD, env={})
    assert [f.key for f in named(slow, "slow-precision")] == ["value.precision"]


def test_an_audit_looks_at_its_judge(tmp_path: Path) -> None:
    judge = write_model(tmp_path / "judge")
    (judge / "chat_template.jinja").write_text("{{ messages }}")
    found = find_step("reward_audit")
    code = declaration(found)
    words = parse_overrides([(5, f"{JUDGE}.model={judge}"), (6, "judge.dtype=bfloat16"), (7, "judge.prompt=genrm")])
    resolved = load(found.config_dir, "tiny", words, run_dir="r", model=code.config)
    plan = compile_job(found, resolved, code, runs_dir=tmp_path, place=OLD, env={})
    assert len(named(plan, "judge-roles")) == len(named(plan, "slow-precision")) == 1
