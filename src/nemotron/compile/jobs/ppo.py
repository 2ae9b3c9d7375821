"""What the preflight knows of a PPO job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from nemotron.compile.jobs import measured
from nemotron.compile.jobs.base import COMMON_READS, SAMPLING_READS, Job, ModelRef, NumberType, Optimizer, Portion
from nemotron.compile.jobs.grpo import logprob_portion
from nemotron.compile.plan import Process, Work
from nemotron.config.schema.dtensor import LoraConfig
from nemotron.config.schema.grpo import LossFnConfig
from nemotron.config.schema.ppo import PpoMasterConfig


@dataclass(frozen=True)
class PpoJob(Job[PpoMasterConfig]):
    """PPO with a critic and a reward model, or one side of it."""

    section: ClassVar[str] = "ppo"
    reads: ClassVar[tuple[str, ...]] = (
        *COMMON_READS,
        *SAMPLING_READS,
        "actor",
        "critic",
        "loss_fn",
        "only",
        "policy.dtensor_cfg.enabled",
        "policy.dtensor_cfg.lora_cfg",
        "ppo",
        "reward_model",
        "value.logprob_batch_size",
        "value.max_grad_norm",
        "value.model_name",
        "value.optimizer",
        "value.precision",
        "value.scheduler",
        "value.tokenizer.name",
        "value.train_global_batch_size",
        "value.train_micro_batch_size",
        "value_loss_fn",
    )
    skips: ClassVar[tuple[str, ...]] = (
        "policy.dtensor_cfg.lora_cfg.dropout_position",
        "policy.dtensor_cfg.lora_cfg.use_triton",
        "ppo.batch_multiplier",
        "ppo.calculate_advantages_on_gpu",
        "ppo.dynamic_sampling_max_gen_batches",
    )
    batch_key: ClassVar[str] = "ppo.num_prompts_per_step"
    trains_adapters: ClassVar[bool] = True

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """What PPO measures in validation."""
        return measured.VALIDATION

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """What PPO measures in a step; values only where there is a critic."""
        critic = self.config.ppo.adv_estimator.name == "gae"
        return tuple(name for name in measured.PPO if critic or name != "values_mean")

    @property
    def responses(self) -> int:
        """Responses per step: prompts times generations."""
        return self.config.ppo.num_prompts_per_step * self.config.ppo.num_generations_per_prompt

    @property
    def rows_per_step(self) -> int:
        """Prompts that one step takes."""
        return self.config.ppo.num_prompts_per_step

    @property
    def rows_at_once(self) -> int:
        """Responses of a step."""
        return self.responses

    @property
    def policy_loss(self) -> LossFnConfig:
        """``loss_fn``."""
        return self.config.loss_fn

    @property
    def has_reference(self) -> bool:
        """Whether rewards, loss or limits ask for the KL to the policy before training."""
        return self.config.needs_reference

    @property
    def has_critic(self) -> bool:
        """Whether values are learned at all."""
        return self.config.ppo.adv_estimator.name == "gae"

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that are trained, if any."""
        return self.config.policy.lora

    def number_types(self) -> Iterator[NumberType]:
        """Those of the sides that run here."""
        if self.config.only != "critic":
            yield from super().number_types()
        if self.config.only != "actor":
            yield NumberType("value.precision", self.config.value.precision)

    def optimizers(self) -> Iterator[Optimizer]:
        """The policy's and the critic's; both schedules move with every pass over a batch."""
        value, passes = self.config.value, self.config.ppo.ppo_epochs
        for found in super().optimizers():
            yield replace(found, steps_per_step=passes)
        if self.has_critic:
            yield Optimizer("value", value.optimizer, value.scheduler or (), passes)

    def portions(self) -> Iterator[Portion]:
        """As everywhere, the responses whose log-probabilities are computed at once, and the critic's."""
        yield from super().portions()
        yield from logprob_portion(self.config.policy, self.responses)
        value = self.config.value
        of = value.train_global_batch_size
        if self.has_critic:
            yield Portion(
                "value.train_micro_batch_size",
                value.train_micro_batch_size,
                f"`value.train_global_batch_size` {of}",
                of,
            )

    def models(self) -> Iterator[ModelRef]:
        """The models of the sides that run here."""
        config = self.config
        if config.only != "critic":
            yield ModelRef("policy", "policy.model_name", config.policy.model_name)
        if config.only != "actor":
            yield ModelRef("reward model", "reward_model.model_name", config.reward_model.model_name)
            if self.has_critic:
                yield ModelRef("critic", "value.model_name", config.value.model_name)

    def missing_features(self) -> Iterator[tuple[str, str]]:
        """What PPO in NeMo-RL can and the embedded engine cannot."""
        ppo, value, lora = self.config.ppo, self.config.value, self.lora
        checks = (
            ("ppo.max_rollout_turns", "rollouts of several turns", ppo.max_rollout_turns != 1),
            ("ppo.use_dynamic_sampling", "dynamic sampling in PPO", ppo.use_dynamic_sampling),
            (
                "value.hf_config_overrides",
                "overrides of the critic's `config.json`",
                value.hf_config_overrides,
            ),
            ("policy.dtensor_cfg.lora_cfg.dropout", "dropout in adapters", lora is not None and lora.dropout > 0),
        )
        yield from ((key, what) for key, what, on in checks if on)

    def processes(self) -> Iterator[Process]:
        """The actor, and the critic where it runs."""
        only, critic = self.config.only, self.config.critic
        if only != "critic":
            yield from super().processes()
        if self.engine != "embedded":
            if self.has_critic:
                yield Process("critic", "NeMo-RL: a value worker on the policy's GPUs")
            return
        holds = "serves reward model and critic" if self.has_critic else "serves the reward model"
        if only == "actor":
            yield Process("critic", f"{critic.address}: {holds}")
        elif only == "critic":
            yield Process("critic", f"child process on {critic.host}:{critic.port or 'a free port'}: {holds}")
        else:
            yield Process("critic", f"child process: {holds} on a free loopback port")

    def work(self) -> Work:
        """Sizes of the run."""
        ppo, policy = self.config.ppo, self.config.policy
        response = self.generation.max_new_tokens if self.generation else 0
        prompt = max(0, policy.max_total_sequence_length - response)
        return Work(
            batch=f"{ppo.num_prompts_per_step} prompts x {ppo.num_generations_per_prompt} generations",
            prompts=ppo.num_prompts_per_step,
            generations=ppo.num_generations_per_prompt,
            updates=ppo.ppo_epochs * max(1, self.responses // policy.train_global_batch_size),
            steps=self.steps,
            data_steps=self.data_steps,
            tokens_per_step=self.responses * response + ppo.num_prompts_per_step * prompt,
        )
