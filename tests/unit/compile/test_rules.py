"""Every rule is broken once, on top of a config that breaks none."""

from __future__ import annotations

import pytest

from nemotron.compile.rules.doubts import rules as doubts
from nemotron.config.known import embedded_reads
from nemotron.config.schema.extras import JudgedGrpoConfig
from nemotron.manifest import declaration, find_step
from nemotron.place import Place
from nemotron.steps.rl.nemo_rl.rlhf.step import STEP
from tests.unit.compile.compile_world import LAPTOP, NODE, Compile, named

GEN = "policy.generation"
VLLM = f"{GEN}.vllm_cfg"
ASIDE = f"{GEN}.colocated"
MEG = "policy.megatron_cfg"
DT = "policy.dtensor_cfg"
GYM = "env.nemo_gym"
MODEL = f"{GYM}.genrm_model.responses_api_models.vllm_model"
COMPARE = f"{GYM}.genrm_compare_resources_server.resources_servers.genrm_compare"
DTENSOR = (
    f"{MEG}.enabled=false",
    f"{DT}={{enabled: true, _v2: true, tensor_parallel_size: 1, context_parallel_size: 1, sequence_parallel: false, "
    "activation_checkpointing: false, cpu_offload: false}",
    "policy.sequence_packing.enabled=false",
)
V1 = (*DTENSOR, f"{DT}._v2=false", "checkpointing.model_save_format=null")
LORA = (
    f"{DT}.lora_cfg={{enabled: true, dim: 8, alpha: 32, dropout: 0.0, dropout_position: post, target_modules: [], "
    "exclude_modules: [], lora_A_init: xavier, use_triton: false}"
)
DYNAMIC = "policy.dynamic_batching={enabled: true, train_mb_tokens: 8192, sequence_length_round: 64}"
PLAIN = "policy.sequence_packing.enabled=false"
ASYNC = "grpo.async_grpo.enabled=true"
SHAPING = "grpo.reward_shaping.enabled=true"

# name, number, severity, overrides; checked with NeMo-RL on a node of 8 GPUs
ON_CLUSTER: list[tuple[str, int | None, str, tuple[str, ...]]] = [
    ("batch-not-divisible", 22, "error", ("policy.train_global_batch_size=500",)),
    ("off-policy-updates", None, "warning", ("policy.train_global_batch_size=256",)),
    ("data-parallel-batch", 23, "error", ("cluster.gpus_per_node=7",)),
    ("data-parallel-batch", 23, "error", (PLAIN, "policy.train_micro_batch_size=3", "policy.logprob_batch_size=4")),
    ("data-parallel-batch", 23, "error", (PLAIN, "policy.logprob_batch_size=3")),
    ("async-batch", 24, "error", (ASYNC, "cluster.gpus_per_node=7")),
    (
        "on-policy-ratio-batch",
        25,
        "error",
        ("loss_fn.force_on_policy_ratio=true", "policy.train_global_batch_size=256"),
    ),
    ("batch-multiplier", 26, "error", ("grpo.batch_multiplier=2",)),
    ("dynamic-sampling-unit", None, "warning", ("grpo.use_dynamic_sampling=true",)),
    ("prompts-per-dataloader", 27, "error", ("data.use_multiple_dataloader=true",)),
    (
        "prompts-per-dataloader",
        27,
        "error",
        ("data.use_multiple_dataloader=true", "data.num_prompts_per_dataloader=30"),
    ),
    ("bin-too-small", 28, "error", ("policy.sequence_packing.train_mb_tokens=2047",)),
    ("bin-too-small", 28, "error", (PLAIN, DYNAMIC, "policy.dynamic_batching.train_mb_tokens=2047")),
    ("packing-algorithm", 28, "error", ("policy.sequence_packing.algorithm=first_fit",)),
    ("group-of-one", None, "error", ("grpo.num_generations_per_prompt=1", "policy.train_global_batch_size=64")),
    ("no-validation-data", 42, "error", ("data.validation=null",)),
    ("reference-kl-skipped", 44, "error", ("grpo.skip_reference_policy_logprobs_calculation=true",)),
    (
        "limit-unmeasured",
        None,
        "error",
        ("grpo.skip_reference_policy_logprobs_calculation=true", "loss_fn.reference_policy_kl_penalty=0"),
    ),
    ("advantage-estimator", 45, "error", ("grpo.adv_estimator.name=gdpo",)),
    ("advantage-estimator", 45, "error", ("grpo.adv_estimator.name=opd",)),
    ("estimator-settings-differ", None, "warning", ("grpo.adv_estimator.normalize_rewards=false",)),
    ("sequence-level-loss", 46, "error", ("loss_fn.sequence_level_importance_ratios=true",)),
    ("importance-sampling", 47, "error", ("loss_fn.truncated_importance_sampling_type=tis",)),
    (
        "importance-sampling",
        47,
        "error",
        (
            "loss_fn.truncated_importance_sampling_type=icepop",
            "loss_fn.truncated_importance_sampling_ratio=2",
            "loss_fn.use_importance_sampling_correction=true",
        ),
    ),
    ("importance-sampling", 47, "warning", ("loss_fn.truncated_importance_sampling_ratio=2",)),
    ("cispo", 49, "error", ("loss_fn.use_cispo=true", "loss_fn.ratio_clip_c=3")),
    ("cispo", 49, "error", ("loss_fn.use_cispo=true", "loss_fn.token_level_loss=false")),
    ("reward-shaping", 50, "error", (SHAPING, "grpo.reward_shaping.overlong_buffer_penalty=null")),
    ("overlong-buffer", None, "error", (SHAPING, "grpo.reward_shaping.overlong_buffer_length=2000")),
    ("async-grpo", 51, "error", (ASYNC,)),
    ("kl-in-reward", 53, "error", ("loss_fn.use_kl_in_reward=true",)),
    ("validation-of-nothing", None, "error", ("grpo.max_val_samples=16", "grpo.val_batch_size=32")),
    ("empty-range", None, "error", ("grpo.reward_scaling={enabled: true, source_min: 1.0, source_max: 1.0}",)),
    ("empty-range", None, "error", ("grpo.advantage_clip_low=1.0", "grpo.advantage_clip_high=-1.0")),
    ("reward-scale", None, "warning", ("grpo.reward_scaling.enabled=true",)),
    ("no-generation", 30, "error", (f"~{GEN}", "grpo.reward_shaping.max_response_length=null")),
    ("generation-backend", 31, "error", (f"{GEN}.backend=vlm",)),
    ("generation-backend", 31, "error", (f"~{VLLM}",)),
    ("generation-backend", 31, "error", (f"{GEN}.backend=megatron",)),
    ("generation-world", 32, "error", (f"{VLLM}.tensor_parallel_size=3",)),
    ("vllm-pipeline", 33, "error", (f"{VLLM}.pipeline_parallel_size=2", f"{VLLM}.async_engine=false")),
    ("vllm-experts", 34, "error", (f"{VLLM}.tensor_parallel_size=2", f"{VLLM}.expert_parallel_size=3")),
    ("vllm-experts", 34, "error", (f"{VLLM}.expert_parallel_size=2",)),
    ("top-k", 35, "error", (f"{GEN}.top_k=0",)),
    ("greedy-rollouts", 55, "error", (f"{GEN}.temperature=0.0",)),
    ("vllm-fp8", 36, "error", (f"{VLLM}.precision=fp8",)),
    ("vllm-fp8", 36, "error", (f"{VLLM}.kv_cache_dtype=fp8",)),
    ("vllm-metrics", 37, "error", (f"{VLLM}.async_engine=false",)),
    ("vllm-metrics", 37, "error", (f"{VLLM}.vllm_metrics_logger_interval=0.0",)),
    ("generation-gpus", 39, "error", (f"{ASIDE}.enabled=false",)),
    ("generation-gpus", 39, "error", (f"{ASIDE}.enabled=false", f"{ASIDE}.resources.gpus_per_node=8")),
    (
        "generation-gpus",
        39,
        "error",
        (f"{ASIDE}.enabled=false", f"{ASIDE}.resources.gpus_per_node=4", f"{ASIDE}.resources.num_nodes=2"),
    ),
    (
        "generation-gpus",
        39,
        "error",
        ("cluster.num_nodes=2", f"{ASIDE}.enabled=false", f"{ASIDE}.resources.gpus_per_node=8"),
    ),
    (
        "generation-gpus",
        39,
        "error",
        (
            "cluster.num_nodes=2",
            f"{ASIDE}.enabled=false",
            f"{ASIDE}.resources.gpus_per_node=4",
            f"{ASIDE}.resources.num_nodes=1",
        ),
    ),
    ("response-too-long", None, "error", (f"{GEN}.max_new_tokens=4096",)),
    ("response-too-long", None, "error", (f"{VLLM}.max_model_len=512",)),
    ("prompt-too-long", None, "error", ("data.max_input_seq_length=4096",)),
    ("training-backend", 1, "error", (f"{MEG}.enabled=false",)),
    ("training-backend", 1, "error", DTENSOR[1:2]),
    ("draft-model", 2, "error", ("policy.draft={enabled: true}",)),
    ("world-size", 4, "error", (f"{MEG}.tensor_model_parallel_size=3",)),
    ("world-size", 4, "error", (f"{MEG}.pipeline_model_parallel_size=16",)),
    ("tensor-parallel-accuracy", 5, "error", (f"{MEG}.tensor_model_parallel_size=4", "policy.logprob_batch_size=8")),
    ("lora", 6, "error", (*V1, LORA)),
    ("lora", 6, "error", (*DTENSOR, LORA, f"{DT}.lora_cfg.use_triton=true", f"{DT}.tensor_parallel_size=2")),
    ("save-format", 7, "error", V1[:-1]),
    ("batching-mode", 8, "error", (DYNAMIC,)),
    ("batching-mode", 8, "error", (PLAIN, DYNAMIC, f"{MEG}.pipeline_model_parallel_size=2")),
    ("context-parallel", 9, "error", (PLAIN, f"{MEG}.context_parallel_size=2")),
    ("context-parallel", 9, "error", (*DTENSOR[:2], f"{DT}.context_parallel_size=2")),
    (
        "context-parallel",
        9,
        "error",
        (*DTENSOR, f"{DT}.context_parallel_size=2", f"{DT}.sequence_parallel=true", f"{DT}.tensor_parallel_size=2"),
    ),
    ("attention-heads", 11, "error", (f"{MEG}.tensor_model_parallel_size=8",)),
    ("cpu-offload", 12, "error", (*DTENSOR, f"{DT}.cpu_offload=true", "cluster.gpus_per_node=1")),
    ("megatron-precision", 13, "error", ("policy.precision=float16",)),
    ("yarn", 14, "error", (*DTENSOR, "policy.hf_config_overrides={rope_scaling: {rope_type: yarn, factor: 4.0}}")),
    ("megatron-settings", 15, "error", (f"{MEG}.optimizer.optimizer_cpu_offload=true",)),
    ("megatron-settings", 15, "error", (f"{MEG}.attention_backend=flash3",)),
    ("megatron-settings", 15, "error", (f"{MEG}.moe_router_load_balancing_type=aux_loss",)),
    ("megatron-settings", 15, "warning", (f"{MEG}.train_iters=100",)),
    ("logprob-chunks", 16, "error", ("policy.logprob_chunk_size=128",)),
    (
        "padding-multiple",
        17,
        "error",
        (f"{MEG}.context_parallel_size=2", "policy.make_sequence_length_divisible_by=2"),
    ),
    ("linear-ce-fusion", 18, "error", (f"{MEG}.use_linear_ce_fusion_loss=true",)),
    ("schedulers", 19, "error", ("policy.scheduler=[{milestones: [5]}, {name: torch.x, kwargs: {}}]",)),
    ("schedulers", 19, "error", ("policy.scheduler=[{name: torch.x, kwargs: {}}, {name: torch.y, kwargs: {}}]",)),
    ("hybrid-sharding", 20, "error", (*V1, f"{DT}.dp_replicate_size=2")),
    ("hybrid-sharding", 20, "error", (*DTENSOR, f"{DT}.dp_replicate_size=3")),
    ("router-replay", 20, "error", (*DTENSOR, "policy.router_replay={enabled: true}")),
    (
        "filtered-logits",
        29,
        "error",
        (
            f"{GEN}.top_p=0.9",
            f"{MEG}.tensor_model_parallel_size=2",
            "policy.train_micro_batch_size=1",
            "policy.make_sequence_length_divisible_by=1",
        ),
    ),
    ("no-judge", None, "error", (f"~{GYM}.genrm_model",)),
    ("no-judge", None, "error", (f"~{GYM}.genrm_compare_resources_server",)),
    ("nemo-gym-off", 58, "error", ("env.should_use_nemo_gym=false",)),
    ("nemo-gym-endpoint", 54, "error", (f"{VLLM}.expose_http_server=false",)),
    ("nemo-gym-sampling", 55, "error", (f"{GEN}.top_k=40",)),
    ("nemo-gym-sampling", 55, "warning", (f"{GEN}.stop_strings=[END]",)),
    ("rollout-turns", 56, "warning", ("grpo.max_rollout_turns=3",)),
    ("validation-samples", 57, "error", ("grpo.max_val_samples=64",)),
    ("judge-group-size", None, "error", (f"{COMPARE}.num_rollouts_per_prompt=16",)),
    ("validation-groups", None, "error", ("data.validation.repeat=1",)),
    ("principle-role", None, "warning", (f"{COMPARE}.use_principle=true", f"{MODEL}.supports_principle_role=false")),
    ("dataset-kind", 71, "error", ("data.train.dataset_name=ResponseDataset",)),
    ("likely-typo", None, "warning", (f"+{COMPARE}.answer_bonuss=0.5",)),
    ("save-period", None, "error", ("checkpointing.save_period=0",)),
    ("keep-top-k", None, "error", ("checkpointing.keep_top_k=0",)),
    ("checkpoint-metric", 79, "error", ("checkpointing.metric_name=val_reward",)),
    ("checkpoint-metric", 79, "error", ("checkpointing.metric_name='val:acuracy'",)),
    ("checkpoint-metric", 79, "error", ("checkpointing.metric_name='val:accuracy'", "grpo.val_period=0")),
    ("checkpoint-metric", 79, "error", ("checkpointing.metric_name='train:rewrd'",)),
    ("checkpoint-metric", 79, "warning", ("checkpointing.metric_name='val:accuracy'", "checkpointing.save_period=15")),
    ("pretrained-checkpoint", 82, "error", ("policy.pretrained_checkpoint={path: nowhere, format: megatron_lm}",)),
    ("environment-name", 71, "error", ("data.default.env_name=nemo_gymm",)),
    ("prompt-file", 73, "error", ("data.train.prompt_file=nowhere.txt",)),
    ("judge-server", None, "error", ("judge.max_restarts=1",)),
    ("judge-endpoint", None, "error", (f"{MODEL}.base_url='localhost:8000'",)),
    ("judge-endpoint", None, "warning", (f"{MODEL}.base_url='http://localhost:8000'",)),
    (
        "judge-calls",
        None,
        "warning",
        (
            f"{COMPARE}.comparison_strategy=all_pairs",
            "grpo.num_generations_per_prompt=16",
            "policy.train_global_batch_size=1024",
        ),
    ),
]

# the same on a laptop with the embedded engine
ON_LAPTOP: list[tuple[str, int | None, str, tuple[str, ...]]] = [
    ("optimizer-offload-without-gpu", None, "warning", ("policy.offload_optimizer_for_logprob=true",)),
    ("judge-server", None, "error", ("judge.server=external",)),
    (
        "sampler-server",
        None,
        "error",
        ("sampler.server=vllm", "sampler.vllm_command=/nowhere", "policy.precision=float32"),
    ),
    ("sampler-server", None, "error", ("sampler.check_period=5",)),
    (
        "sampler-server",
        None,
        "error",
        ("sampler.server=vllm", "policy.precision=float32", "sampler.vllm_serve_kwargs={port: 1}"),
    ),
    (
        "sampler-server",
        None,
        "warning",
        ("sampler.server=vllm", "sampler.vllm_command=/nowhere", "policy.precision=bfloat16"),
    ),
    ("not-in-embedded", None, "error", (ASYNC,)),
    ("not-in-embedded", None, "error", ("grpo.max_rollout_turns=2",)),
    ("not-in-embedded", None, "error", (f"{GEN}.stop_strings=[END]",)),
    ("not-in-embedded", None, "error", ("policy.hf_config_overrides={rope_theta: 1.0}",)),
    ("not-in-embedded", None, "error", ("data.train.repeat=2",)),
    ("not-in-embedded", None, "error", ("data.train.prompt_file=x.txt",)),
    ("not-in-embedded", None, "error", ("data.use_multiple_dataloader=true",)),
    (
        "no-optimizer",
        None,
        "error",
        (
            "policy.optimizer=null",
            f"{MEG}.optimizer.lr=1e-6",
            f"{MEG}.optimizer.min_lr=1e-6",
            f"{MEG}.optimizer.weight_decay=0",
        ),
    ),
    ("logger-not-in-embedded", None, "warning", ("logger.mlflow_enabled=true",)),
    ("logger-not-installed", None, "error", ("logger.tensorboard_enabled=true",)),
    ("wandb-login", None, "error", ("logger.wandb_enabled=true",)),
    (
        "time-limit",
        None,
        "error",
        ("checkpointing.checkpoint_must_save_by='00:03:30:00'", "checkpointing.enabled=false"),
    ),
    ("several-gpus", None, "warning", (f"{MEG}.tensor_model_parallel_size=2",)),
    ("override-without-effect", None, "error", ("cluster.num_nodes=2",)),
    ("override-without-effect", None, "error", ("data.train.env_name=math",)),
    ("override-without-effect", None, "error", ("grpo.val_batch_size=4",)),
    ("adapters-switched-off", None, "error", ("policy.dtensor_cfg.lora_cfg.enabled=true",)),
    ("section-switched-off", None, "warning", ("checkpointing.enabled=false", "checkpointing.save_period=3")),
    ("nemo-rl-settings", None, "note", ()),
    ("no-checkpoints", None, "warning", ("checkpointing.enabled=false",)),
    ("password-in-url", None, "error", (f"{MODEL}.base_url=http://user:pw@localhost:1/v1",)),
    ("batch-not-divisible", 22, "error", ("policy.train_global_batch_size=500",)),
    ("pretrained-checkpoint", 82, "error", ("policy.pretrained_checkpoint={path: nowhere, format: megatron_lm}",)),
]

# Rules that need files, folders or another machine; each has a test of its own in this folder.
ELSEWHERE = {
    "gym-comparison",
    "limits-from-outside",
    "heldout-row",
    "rows-not-looked-at",
    "judge-turn-end",
    "turn-end",
    "no-end",
    "not-looked-at",
    "chat-template",
    "template-refuses-rows",
    "checkpoint-folder-owner",
    "contradictory-pairs",
    "cuda-arch-list",
    "data-file",
    "data-row",
    "data-tokens",
    "data-twice",
    "disk-space",
    "engine-not-installed",
    "host-memory",
    "manifest-kind",
    "manifest-missing",
    "manifest-shard",
    "manifest-split",
    "memory",
    "model-context",
    "model-files",
    "no-data-path",
    "not-a-language-model",
    "nsys-variables",
    "output-folder",
    "sample-data",
    "secret-elsewhere",
    "split-overlap",
    "tokenizer-files",
    "too-few-rows",
    "vocabulary",
    *(rule.name for rule in doubts.members),
    "judge-form",
    "judge-probe",
    "judge-roles",
    "judge-template",
    "slow-judge",
    "slow-precision",
    "optimizer",
    # what this step shares with others and cannot break
    "micro-batch",
    "no-steps",
    "not-in-nemo-rl",
    "adapter-targets",
    "gpu-memory",
    "vllm-memory",
}


def test_the_base_breaks_no_rule(compiled: Compile) -> None:
    plan = compiled("own.yaml", "engine=nemo_rl", place=NODE)
    assert {f.name for f in plan.findings} == {"limits-from-outside"}
    # Its sequences are longer than those that are computed by hand, which is no fault.
    assert {f.name for f in compiled("own.yaml").findings} == {"nemo-rl-settings", "slow-model"}


@pytest.mark.parametrize(
    ("name", "number", "severity", "overrides"), ON_CLUSTER, ids=lambda v: v if isinstance(v, str) else ""
)
def test_on_a_cluster(
    compiled: Compile, name: str, number: int | None, severity: str, overrides: tuple[str, ...]
) -> None:
    plan = compiled("own.yaml", "engine=nemo_rl", *overrides, place=NODE)
    assert [(f.severity, f.rule) for f in named(plan, name) if f.severity != "note"][:1] == [(severity, number)], (
        plan.findings
    )
    for finding in plan.findings:
        assert finding.origin is not None, finding
        assert not finding.message.endswith("."), finding


@pytest.mark.parametrize(
    ("name", "number", "severity", "overrides"), ON_LAPTOP, ids=lambda v: v if isinstance(v, str) else ""
)
def test_on_a_laptop(
    compiled: Compile, name: str, number: int | None, severity: str, overrides: tuple[str, ...]
) -> None:
    plan = compiled("own.yaml", *overrides, place=LAPTOP)
    assert [(f.severity, f.rule) for f in named(plan, name)][:1] == [(severity, number)], plan.findings


def test_who_samples_under_nemo_rl_is_said(compiled: Compile) -> None:
    plan = compiled("own.yaml", "engine=nemo_rl", "sampler.server=vllm", place=NODE)
    [finding] = named(plan, "sampler-server")
    assert (finding.severity, finding.key) == ("note", "sampler.server")
    assert "policy.generation.backend" in finding.message


def test_overrides_that_others_refer_to_have_an_effect(compiled: Compile) -> None:
    plan = compiled("own.yaml", "+env.mine={rows: 4}", "policy.train_micro_batch_size=${env.mine.rows}")
    assert plan.ok


@pytest.mark.parametrize("place", [LAPTOP, NODE], ids=["laptop", "node"])
def test_adapters_that_nobody_would_train_are_refused(compiled: Compile, place: Place) -> None:
    """Also where a file asks for them: on NeMo-RL, too, all weights would be trained."""
    asked = "policy.dtensor_cfg.lora_cfg.enabled=true"
    (finding,) = named(compiled("own.yaml", asked, place=place), "adapters-switched-off")
    assert finding.severity == "error"
    on = ("policy.dtensor_cfg.enabled=true", "policy.megatron_cfg.enabled=false")
    assert all(word in str(finding.hint) for word in on)
    assert not named(compiled("own.yaml", asked, *on, place=place), "adapters-switched-off")


@pytest.mark.parametrize(
    "words",
    [
        ("checkpointing.save_period=3",),
        ("checkpointing.enabled=false",),
        ("checkpointing={enabled: false, checkpoint_dir: x, save_period: 3}",),
        ("checkpointing.enabled=false", "checkpointing.save_period=3", "grpo.val_period=${checkpointing.save_period}"),
    ],
    ids=str,
)
def test_a_word_that_switches_off_or_that_others_refer_to_is_no_vain_one(
    compiled: Compile, words: tuple[str, ...]
) -> None:
    assert not named(compiled("own.yaml", *words), "section-switched-off")


def test_what_the_embedded_engine_reads() -> None:
    assert embedded_reads(JudgedGrpoConfig, "grpo", "policy")
    assert embedded_reads(JudgedGrpoConfig, "grpo", "grpo.seed")
    assert embedded_reads(JudgedGrpoConfig, "grpo", "data.train.0.data_path")
    assert not embedded_reads(JudgedGrpoConfig, "grpo", "policy.generation.vllm_cfg")
    assert not embedded_reads(JudgedGrpoConfig, "grpo", "grpo.val_batch_size")


def test_every_rule_has_a_test() -> None:
    names = {rule.name for stage in STEP.rules for rules in stage for rule in rules.members}
    tested = {case[0] for case in [*ON_CLUSTER, *ON_LAPTOP]} | ELSEWHERE
    assert names == tested


def test_a_rule_is_written_once() -> None:
    """The same name in two modules is the same thought twice: they drift apart, and one step forgets it."""
    places: dict[str, set[str]] = {}
    for step in ("rlhf", "rlvr", "dpo", "rm", "ppo"):
        for stage in declaration(find_step(step)).rules:
            for rule in (rule for rules in stage for rule in rules.members):
                places.setdefault(rule.name, set()).add(rule.check.__module__)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
