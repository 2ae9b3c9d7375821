"""What the preflight knows of a GRPO job, with and without a judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from nemotron.compile.job import COMMON_READS, SAMPLING_READS, Job, ModelRef, NumberType, Portion
from nemotron.config.schema.extras import GrpoRunConfig, JudgedGrpoConfig
from nemotron.config.schema.grpo import LossFnConfig
from nemotron.config.schema.judge import JUDGE_MODEL
from nemotron.config.schema.policy import PolicyConfig

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
        return ("accuracy", "avg_length")

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
