"""Sections of our own beside NeMo-RL's: the engine, the held-out metric and the limits of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from nemotron.config.schema.base import Strict
from nemotron.config.schema.env import EnvConfig
from nemotron.config.schema.fields import Count, DiskPath, Name, Omittable, PositiveFloat, Probability
from nemotron.config.schema.judge import ProbedJudgeConfig
from nemotron.config.schema.master import GrpoMasterConfig
from nemotron.config.schema.reads import Read
from nemotron.config.schema.rewards import RewardConfig
from nemotron.config.schema.sampler import SamplerConfig

EngineChoice = Literal["auto", "embedded", "nemo_rl"]


class HeldoutConfig(Strict):
    """Prompts with a programmatic answer check, which neither judge nor loss ever sees."""

    data_path: Omittable[DiskPath] = None
    """JSONL file of the held-out prompts; needed unless ``split`` is given."""
    split: Omittable[Name] = None
    """Split of ``data.manifest_path`` that holds them instead, such as ``heldout`` or ``test``."""
    verifier: Omittable[Literal["tiny_world"]] = None
    """Program that checks an answer; either this or ``rewards``."""
    rewards: Omittable[RewardConfig] = None
    """Reward functions that check an answer: it is fully right where each of them has its best value."""
    max_samples: Count
    """Prompts that are answered before and after training."""
    max_new_tokens: Omittable[Count] = None
    """Longest answer in tokens; left out means ``policy.generation.max_new_tokens``."""

    @model_validator(mode="after")
    def _one_check(self) -> HeldoutConfig:
        if (self.verifier is None) == (self.rewards is None):
            raise ValueError("give either `verifier` or `rewards`")
        return self


class EvalConfig(Strict):
    """Measurements that are independent of the reward."""

    heldout: HeldoutConfig | None
    """Held-out metric; null measures none."""


class LimitsConfig(Strict):
    """Bounds whose crossing stops the run with an error."""

    max_kl: PositiveFloat | None
    """Largest mean per-token KL to the reference policy in nats; null sets no bound."""
    max_missing_share: Probability
    """Largest share of a step's judge comparisons (of its responses, where no judge compares) that may stay without a
    result after all retries."""
    max_dead_groups: Probability | None = None
    """Largest share of groups in which all answers have one reward, and nothing is learned: mean of ten steps."""
    min_entropy: PositiveFloat | None = None
    """Least entropy of the policy in nats a token, mean of ten steps: below, all its answers are one."""
    max_grad_spike: PositiveFloat | None = None
    """Largest norm of a gradient, as a multiple of the median of the twenty steps before."""
    max_sampler_drift: PositiveFloat | None = None
    """Largest mean factor (from 1.0) between the probability of a token in the sampler and in training."""


class GrpoRunConfig(GrpoMasterConfig):
    """GRPO with NeMo-RL's tree and our sections, wherever rewards come from."""

    engine: Read[EngineChoice]
    """What runs the job: the embedded engine, NeMo-RL, or (``auto``) whichever of them can run here."""
    eval: Read[EvalConfig]
    """Measurements that are independent of the reward."""
    limits: Read[LimitsConfig]
    """Bounds whose crossing stops the run."""
    sampler: Read[SamplerConfig] = SamplerConfig()
    """Who draws responses for the embedded engine."""

    @property
    def needs_reference(self) -> bool:
        """Whether loss or limits ask for the KL to the policy before training."""
        wanted = self.loss_fn.reference_policy_kl_penalty > 0 or self.limits.max_kl is not None
        return wanted and not self.grpo.skip_reference_policy_logprobs_calculation


class JudgedGrpoConfig(GrpoRunConfig):
    """GRPO whose rewards come from a generative judge."""

    env: Read[EnvConfig]
    """Where rewards come from: the judge, at NeMo-Gym's places."""
    judge: Read[ProbedJudgeConfig]
    """How the judge is served and asked, and what it must be able to do before the run starts."""
