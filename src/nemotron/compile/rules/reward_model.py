"""Rules that training of reward models alone has."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.pairs import RmJob
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.errors import Finding

KIND = "policy.reward_model_cfg"


rules: Rules[RmJob] = Rules("reward-model")


@rules.rule("reward-model-type", number=65)
def bradley_terry_is_asked_for(job: RmJob) -> Iterator[Finding]:
    """The policy becomes a reward model only when the config says so, and pairs teach one kind only."""
    section = job.config.policy.reward_model_cfg
    if section is None or not section.enabled:
        yield job.error(
            f"{KIND}.enabled", f"`{KIND}.enabled` must be true: this step trains a reward model", hint="set it to true"
        )
    elif section.reward_model_type != "bradley_terry":
        yield job.error(
            f"{KIND}.reward_model_type",
            f"pairs train a `bradley_terry` reward model, not `{section.reward_model_type}`",
            hint=f"set `{KIND}.reward_model_type=bradley_terry`",
        )


@rules.rule("reward-model-backend", number=65, engines=NEMO_RL)
def backend_trains_reward_models(job: RmJob) -> Iterator[Finding]:
    """NeMo-RL v0.7.0 has reward models with DTensor alone and without context parallelism."""
    policy = job.config.policy
    if policy.megatron:
        yield job.error(
            "policy.megatron_cfg.enabled",
            "NeMo-RL trains reward models with DTensor only",
            hint="set `policy.megatron_cfg.enabled=false` and `policy.dtensor_cfg.enabled=true`",
        )
    if policy.dtensor and policy.dtensor.context_parallel_size > 1:
        yield job.error(
            "policy.dtensor_cfg.context_parallel_size", "NeMo-RL trains reward models with context-parallel size 1"
        )


@rules.rule("margin-in-tokens")
def tokens_hold_no_margins(job: RmJob) -> Iterator[Finding]:
    """Token shards hold ids and lengths, no other fields."""
    if job.config.data.use_tokens and job.config.bradley_terry.margin_key:
        yield job.error(
            "bradley_terry.margin_key",
            "token ids come without margins",
            hint="set `data.use_tokens=false` to read the rows",
        )
