"""What the preflight knows of a PPO job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from nemotron.compile.jobs import measured
from nemotron.compile.jobs.base import Batch, Optimizer
from nemotron.compile.jobs.policy_gradient import PolicyGradientJob
from nemotron.compile.jobs.step import ModelRef, NumberType
from nemotron.compile.plan import Process
from nemotron.config.schema.ppo import PpoMasterConfig
from nemotron.promises import Promise


@dataclass(frozen=True)
class PpoJob(PolicyGradientJob[PpoMasterConfig]):
    """PPO with a critic and a reward model, or one side of it."""

    @property
    def estimator(self) -> str:
        """`ppo.adv_estimator`."""
        return self.config.ppo.adv_estimator.name

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """What PPO measures in a step; values only where there is a critic."""
        critic = self.estimator == "gae"
        return tuple(name for name in measured.PPO if critic or name != "values_mean")

    @property
    def lonely_estimators(self) -> Sequence[str]:
        """The critic stands in for the group."""
        return ("gae",)

    @property
    def has_critic(self) -> bool:
        """Whether values are learned at all."""
        return self.config.learns_values

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

    def batches(self) -> Iterator[Batch]:
        """The policy's, and the critic's."""
        yield from super().batches()
        value = self.config.value
        if self.has_critic:
            sizes = value.train_global_batch_size, value.train_micro_batch_size
            yield Batch("value.train_global_batch_size", sizes[0], "value.train_micro_batch_size", sizes[1])

    def rollout_batches(self) -> Iterator[Batch]:
        """Both."""
        return self.batches()

    def models(self) -> Iterator[ModelRef]:
        """The models of the sides that run here."""
        config = self.config
        if config.only != "critic":
            yield from super().models()
        if config.only != "actor":
            yield ModelRef("reward model", "reward_model.model_name", config.reward_model.model_name)
            if self.has_critic:
                yield ModelRef("critic", "value.model_name", config.value.model_name)

    def promises(self) -> Iterator[Promise]:
        """Those of the actor, who writes the checkpoints of both."""
        return super().promises() if self.config.only != "critic" else iter(())

    def missing_features(self) -> Iterator[tuple[str, str, object]]:
        """What PPO in NeMo-RL can and the embedded engine cannot."""
        ppo, value = self.config.ppo, self.config.value
        checks = (
            ("ppo.max_rollout_turns", "rollouts of several turns", ppo.max_rollout_turns != 1),
            ("ppo.use_dynamic_sampling", "dynamic sampling in PPO", ppo.use_dynamic_sampling),
            (
                "value.hf_config_overrides",
                "overrides of the critic's `config.json`",
                value.hf_config_overrides,
            ),
        )
        yield from checks

    def processes(self) -> Iterator[Process]:
        """The actor, and the critic where it runs."""
        only, critic = self.config.only, self.config.critic
        if only != "critic":
            yield from super().processes()
        if self.engine != "embedded":
            if self.has_critic:
                yield Process("critic", "NeMo-RL: a value worker on the policy's GPUs")
            nodes, gpus = self.reward_model_resources
            yield Process("reward model", f"NeMo-RL: on {nodes} x {gpus} GPU(s) of its own")
            return
        holds = "serves reward model and critic" if self.has_critic else "serves the reward model"
        if only == "actor":
            yield Process("critic", f"{critic.address}: {holds}")
        elif only == "critic":
            yield Process("critic", f"child process on {critic.host}:{critic.port or 'a free port'}: {holds}")
        else:
            yield Process("critic", f"child process: {holds} on a free loopback port")

    def missing_in_nemo_rl(self) -> Iterator[tuple[str, str, str]]:
        """`rloo`, sides that run apart, and what our actor and reward model do beside NeMo-RL's."""
        yield from super().missing_in_nemo_rl()
        config, embedded = self.config, "or `engine=embedded`"
        if self.estimator != "gae":
            message = f"NeMo-RL's PPO has no estimator `{self.estimator}`"
            yield "ppo.adv_estimator.name", message, "set `engine=embedded`, or use `gae`"
        if config.only is not None:
            yield "only", "NeMo-RL has no sides that run apart", f"set `only=null`, {embedded}"
        if config.reward_model.standardize:
            message = "NeMo-RL takes the reward model's numbers as they are"
            yield "reward_model.standardize", message, f"set `reward_model.standardize=false`, {embedded}"
        actor = config.actor
        if actor.exclude_truncated:
            hint = f"set `actor.exclude_truncated=false` and `ppo.overlong_filtering=true`, {embedded}"
            yield "actor.exclude_truncated", "NeMo-RL's PPO has no `exclude_truncated`", hint
        for name, on in (("absolute_kl", actor.absolute_kl), ("entropy_bonus", actor.entropy_bonus)):
            if on:
                yield f"actor.{name}", f"NeMo-RL's PPO has no `{name}`", f"leave it out, {embedded}"
        block = config.env.reward_model
        named = block.model_name if block else None
        if named is not None and named != config.reward_model.model_name:
            message = f"`env.reward_model.model_name` is `{named}`, and `reward_model.model_name` is another model"
            yield "env.reward_model.model_name", message, "set it to `${reward_model.model_name}`"

    @property
    def reward_model_resources(self) -> tuple[int, int]:
        """Nodes and GPUs of each that NeMo-RL's reward model takes: one GPU unless `env.reward_model` says more."""
        block = self.config.env.reward_model
        resources = block.resources if block else None
        return (resources.num_nodes or 1, resources.gpus_per_node or 1) if resources else (1, 1)

    @cached_property
    def training_gpus(self) -> int:
        """GPUs of policy and critic. The reward model has its own: some of the only node, or whole nodes of several."""
        cluster, (nodes, gpus) = self.config.cluster, self.reward_model_resources
        if cluster.num_nodes == 1:
            return cluster.gpus_per_node - gpus
        return (cluster.num_nodes - nodes) * cluster.gpus_per_node
