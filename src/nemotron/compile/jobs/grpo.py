"""What the preflight knows of a GRPO job: with a judge, and with rewards that can be verified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from nemotron.compile.jobs import measured
from nemotron.compile.jobs.base import COMMON_READS, SAMPLING_READS, Job, ModelRef, NumberType, Portion
from nemotron.compile.plan import Process, Work
from nemotron.config.schema.extras import GrpoRunConfig, JudgedGrpoConfig
from nemotron.config.schema.grpo import LossFnConfig
from nemotron.config.schema.judge import JUDGE_MODEL
from nemotron.config.schema.policy import PolicyConfig
from nemotron.config.schema.verified import VerifiedGrpoConfig

G = TypeVar("G", bound=GrpoRunConfig, covariant=True)


@dataclass(frozen=True)
class GrpoJob(Job[G]):
    """GRPO, wherever its rewards come from."""

    section: ClassVar[str] = "grpo"
    reads: ClassVar[tuple[str, ...]] = (*COMMON_READS, *SAMPLING_READS, "grpo", "loss_fn")
    skips: ClassVar[tuple[str, ...]] = (
        "grpo.calculate_advantages_on_gpu",
        "grpo.invalid_tool_call_advantage",
        "grpo.invalid_tool_call_strategy",
        "grpo.malformed_thinking_advantage",
        "grpo.penalize_invalid_tool_call",
        "grpo.penalize_malformed_thinking",
        "grpo.val_batch_size",
    )
    batch_key: ClassVar[str] = "grpo.num_prompts_per_step"

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """What GRPO measures in validation."""
        return measured.VALIDATION

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """What GRPO measures in a step of this config."""
        grpo = self.config.grpo
        optional = {
            "num_masked_seqs_by_logprob_error": grpo.seq_logprob_error_threshold is not None,
            "reward_clamped_share": grpo.reward_scaling.enabled,
        }
        return (*measured.GRPO, *(name for name, on in optional.items() if on))

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """Least and greatest reward that can come, where that is known."""
        return None

    @property
    def responses(self) -> int:
        """Responses per step: prompts times generations."""
        return self.config.grpo.num_prompts_per_step * self.config.grpo.num_generations_per_prompt

    @property
    def rows_per_step(self) -> int:
        """Prompts that one step takes."""
        return int(self.config.grpo.num_prompts_per_step * self.config.grpo.batch_multiplier)

    @property
    def rows_at_once(self) -> int:
        """Responses of a step."""
        return self.responses

    @property
    def judge_calls(self) -> int | None:
        """Judge requests of one step; None without a judge."""
        return None

    def work(self) -> Work:
        """Sizes of the run."""
        grpo, policy = self.config.grpo, self.config.policy
        response = self.generation.max_new_tokens if self.generation else 0
        prompt = max(0, policy.max_total_sequence_length - response)
        return Work(
            batch=f"{grpo.num_prompts_per_step} prompts x {grpo.num_generations_per_prompt} generations",
            prompts=grpo.num_prompts_per_step,
            generations=grpo.num_generations_per_prompt,
            updates=max(1, self.responses // policy.train_global_batch_size),
            steps=self.steps,
            data_steps=self.data_steps,
            tokens_per_step=self.responses * response + grpo.num_prompts_per_step * prompt,
            judge_calls=self.judge_calls,
        )

    def portions(self) -> Iterator[Portion]:
        """As everywhere, and the responses whose log-probabilities are computed at once."""
        yield from super().portions()
        yield from logprob_portion(self.config.policy, self.responses)

    @property
    def samples_asynchronously(self) -> bool:
        """Asynchronous GRPO."""
        return bool(self.config.grpo.async_grpo and self.config.grpo.async_grpo.enabled)

    @property
    def policy_loss(self) -> LossFnConfig | None:
        """``loss_fn``."""
        return self.config.loss_fn

    @property
    def has_reference(self) -> bool:
        """Whether loss or limits ask for the KL to the policy before training."""
        return self.config.needs_reference

    def missing_features(self) -> Iterator[tuple[str, str]]:
        """What GRPO in NeMo-RL can and the embedded engine cannot."""
        grpo = self.config.grpo
        gym = self.config.env.nemo_gym
        checks = (
            ("grpo.async_grpo.enabled", "asynchronous GRPO", grpo.async_grpo and grpo.async_grpo.enabled),
            ("grpo.max_rollout_turns", "rollouts of several turns", grpo.max_rollout_turns != 1),
            ("grpo.adv_estimator.name", "teachers", grpo.adv_estimator and grpo.adv_estimator.name == "opd"),
            (
                "env.nemo_gym.is_trajectory_collection",
                "collection of rollouts without training",
                gym and gym.is_trajectory_collection,
            ),
            (
                "grpo.invalid_tool_call_advantage",
                "penalty for tool calls",
                grpo.invalid_tool_call_advantage is not None,
            ),
            (
                "grpo.malformed_thinking_advantage",
                "penalty for malformed thinking",
                grpo.malformed_thinking_advantage is not None,
            ),
        )
        yield from ((key, what) for key, what, on in checks if on)


AnyGrpoJob = GrpoJob[GrpoRunConfig]


def logprob_portion(policy: PolicyConfig, responses: int) -> Iterator[Portion]:
    """`policy.logprob_batch_size` as part of a rollout, where it is not the micro-batch size by another name."""
    size = policy.logprob_batch_size
    if size is not None and size != policy.train_micro_batch_size:
        yield Portion("policy.logprob_batch_size", size, f"the {responses} responses of a step", responses)


@dataclass(frozen=True)
class JudgedJob(GrpoJob[JudgedGrpoConfig]):
    """GRPO whose rewards come from a judge."""

    reads: ClassVar[tuple[str, ...]] = (
        *AnyGrpoJob.reads,
        "env.nemo_gym.genrm_compare_resources_server",
        "env.nemo_gym.genrm_model",
        "env.should_use_nemo_gym",
        "judge",
    )

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """The judge's scores, before bonuses."""
        return 1.0, 5.0

    def number_types(self) -> Iterator[NumberType]:
        """The policy's, and the judge's where we serve it."""
        yield from super().number_types()
        judge = self.config.env.judge_model
        if judge and judge.base_url is None:
            yield NumberType("judge.dtype", self.config.judge.dtype)

    def models(self) -> Iterator[ModelRef]:
        """The policy, and the judge where we serve it."""
        yield from super().models()
        judge = self.config.env.judge_model
        if judge and judge.base_url is None:
            yield ModelRef("judge", f"{JUDGE_MODEL}.model", judge.model)

    def processes(self) -> Iterator[Process]:
        """The policy and its judge."""
        yield from super().processes()
        model = self.config.env.judge_model
        if model is None:
            return
        if model.base_url is not None:
            yield Process("judge", f"endpoint {model.base_url}")
        elif self.engine == "embedded":
            yield Process("judge", "child process: serves the judge model on a free loopback port")
        else:
            yield Process("judge", "NeMo-Gym: starts the judge model with vLLM on further GPUs")

    @property
    def judge_calls(self) -> int:
        """Judge requests of one step when every verdict can be read."""
        block, grpo = self.config.env.comparison, self.config.grpo
        group = grpo.num_generations_per_prompt
        if block is None or group < 2:
            return 0
        pairs = group if block.comparison_strategy == "circular" else group * (group - 1) // 2
        return pairs * block.num_judges_per_comparison * grpo.num_prompts_per_step


@dataclass(frozen=True)
class VerifiedJob(GrpoJob[VerifiedGrpoConfig]):
    """GRPO with reward functions or resources servers."""

    reads: ClassVar[tuple[str, ...]] = (*AnyGrpoJob.reads, "rewards", "gym")

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """GRPO's, and the share of answers that pass."""
        return (*super().train_metrics, "pass_rate")

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """Least and greatest reward of the functions; a server may give anything."""
        rewards = self.config.rewards
        if rewards is None:
            return None
        weights = [function.weight for function in rewards.functions]
        return sum(min(weight, 0.0) for weight in weights), sum(max(weight, 0.0) for weight in weights)

    def processes(self) -> Iterator[Process]:
        """The policy, and where rewards are computed."""
        yield from super().processes()
        if self.config.rewards is not None:
            labels = ", ".join(function.shown for function in self.config.rewards.functions)
            yield Process("rewards", f"{labels}: in worker processes on this machine")
        for name, server in (self.config.gym.servers if self.config.gym else {}).items():
            place = f"server {server.base_url}" if server.base_url else f"our own `{server.kind}` server on loopback"
            yield Process(f"server {name}", place)
