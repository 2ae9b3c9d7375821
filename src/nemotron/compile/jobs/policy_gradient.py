"""What the preflight knows of a job whose policy learns from its own responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from nemotron.compile.jobs import measured
from nemotron.compile.jobs.base import Batch, Job
from nemotron.compile.plan import Work
from nemotron.config.schema.extras import LimitsConfig
from nemotron.config.schema.grpo import LossFnConfig, RewardScalingConfig, RewardShapingConfig
from nemotron.config.schema.training import Course, TrainingConfig


class PolicyGradient(Course, Protocol):
    """What the sections of these algorithms share."""

    @property
    def num_prompts_per_step(self) -> int: ...
    @property
    def num_generations_per_prompt(self) -> int: ...
    @property
    def use_dynamic_sampling(self) -> bool: ...
    @property
    def batch_multiplier(self) -> float: ...
    @property
    def reward_scaling(self) -> RewardScalingConfig: ...
    @property
    def reward_shaping(self) -> RewardShapingConfig: ...
    @property
    def skip_reference_policy_logprobs_calculation(self) -> bool: ...
    @property
    def val_batch_size(self) -> int | None: ...
    @property
    def max_val_samples(self) -> int | None: ...


class PolicyGradientConfig(Protocol):
    """What their configs share."""

    @property
    def loss_fn(self) -> LossFnConfig: ...
    @property
    def limits(self) -> LimitsConfig: ...
    @property
    def responses_per_step(self) -> int: ...
    @property
    def needs_reference(self) -> bool: ...


P = TypeVar("P", bound=TrainingConfig, covariant=True)


@dataclass(frozen=True)
class PolicyGradientJob(Job[P]):
    """Sampling, rewards, and a gradient of the policy."""

    @property
    def algorithm(self) -> PolicyGradient:
        """The algorithm's section."""
        found: PolicyGradient = getattr(self.config, self.section)
        return found

    @property
    def shared(self) -> PolicyGradientConfig:
        """The config, as far as all of these algorithms have it."""
        return self.config  # type: ignore[return-value]

    @property
    def batch_key(self) -> str:
        """Prompts decide how many rows a step takes."""
        return f"{self.section}.num_prompts_per_step"

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """What is measured in validation."""
        return measured.VALIDATION

    @property
    def responses(self) -> int:
        """Responses per step."""
        return self.shared.responses_per_step

    @property
    def product(self) -> str:
        """How many they are, and why."""
        prompts, group = self.algorithm.num_prompts_per_step, self.algorithm.num_generations_per_prompt
        return f"{prompts} prompts x {group} generations = {self.responses}"

    @property
    def rows_at_once(self) -> int:
        """Responses of a step."""
        return self.responses

    @property
    def policy_loss(self) -> LossFnConfig:
        """``loss_fn``."""
        return self.shared.loss_fn

    @property
    def has_reference(self) -> bool:
        """Whether the KL to the policy before training is asked for."""
        return self.shared.needs_reference

    @property
    def estimator(self) -> str:
        """How rewards become advantages."""
        raise NotImplementedError

    @property
    def lonely_estimators(self) -> Sequence[str]:
        """Estimators for which a single response to a prompt has an advantage; the others compare it with its group."""
        raise NotImplementedError

    def rollout_batches(self) -> Iterator[Batch]:
        """Batches in which every response of a step lands exactly once."""
        return Job.batches(self)

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """Least and greatest reward that can come, where that is known."""
        return None

    @property
    def advantage_range(self) -> tuple[float | None, float | None]:
        """What advantages are clipped to."""
        return None, None

    @property
    def judge_tokens(self) -> tuple[int | None, int | None]:
        """Tokens that a judge reads and writes in a step at most."""
        return None, None

    @property
    def judge_calls(self) -> int | None:
        """Judge requests of one step; None without a judge."""
        return None

    def work(self) -> Work:
        """Sizes of the run."""
        prompts, group = self.algorithm.num_prompts_per_step, self.algorithm.num_generations_per_prompt
        response = self.generation.max_new_tokens if self.generation else 0
        prompt = max(0, self.config.policy.max_total_sequence_length - response)
        return Work(
            batch=f"{prompts} prompts x {group} generations",
            prompts=prompts,
            generations=group,
            updates=self.config.updates_per_step,
            steps=self.steps,
            data_steps=self.data_steps,
            tokens_per_step=self.responses * response + prompts * prompt,
            judge_calls=self.judge_calls,
            judge_reads=self.judge_tokens[0],
            judge_writes=self.judge_tokens[1],
        )


AnyPolicyGradientJob = PolicyGradientJob[TrainingConfig]
