"""`grpo.*` and `loss_fn.*`: every key of NeMo-RL v0.7.0, its bounds and what it does.

Only what one key can decide alone is checked here; rules between keys belong to the preflight.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import (
    Count,
    NonNegativeFloat,
    NonNegativeInt,
    Omittable,
    PositiveFloat,
    Probability,
    Seed,
)
from nemotron.config.schema.reads import Read

KlType = Literal["k1", "k2", "k3"]
EstimatorName = Literal["grpo", "reinforce_plus_plus", "gdpo", "raw_reward", "opd"]
TruncationType = Literal["tis", "icepop", "seq-mask-tis"]


class LossFnConfig(Strict):
    """`loss_fn`: the clipped policy-gradient loss."""

    reference_policy_kl_penalty: NonNegativeFloat = 0.01
    """Weight of the KL term that holds the policy near the reference; loss = actor + weight * KL. 0 turns it off."""
    reference_policy_kl_type: KlType = "k3"
    """Estimator of the per-token KL in nats: `k1` log-ratio, `k2` half its square, `k3` unbiased and never negative."""
    kl_input_clamp_value: PositiveFloat | None = 20.0
    """Bound on the absolute log-ratio before the KL is computed, nats. null: no bound."""
    kl_output_clamp_value: PositiveFloat | None = 10.0
    """Bound on the absolute per-token KL, nats. null: no bound."""
    ratio_clip_min: NonNegativeFloat = 0.2
    """The probability ratio is clipped below at 1 minus this."""
    ratio_clip_max: NonNegativeFloat = 0.2
    """The probability ratio is clipped above at 1 plus this; larger than `ratio_clip_min` is DAPO's clip-higher."""
    ratio_clip_c: FiniteFloat | None = Field(default=None, gt=1)
    """Dual clip: where the advantage is negative, the ratio counts for at most this much. null: off; 3 is usual."""
    use_on_policy_kl_approximation: bool = False
    """Weight the KL of each token by its probability under the current policy over that under the sampler."""
    use_importance_sampling_correction: bool = False
    """Weight the loss by trainer over sampler probability: corrects for a sampler that computes a little otherwise."""
    truncated_importance_sampling_type: TruncationType | None = None
    """How that weight is bounded: `tis` clamps, `icepop` drops tokens outside, `seq-mask-tis` drops whole responses."""
    truncated_importance_sampling_ratio: PositiveFloat | None = None
    """Upper bound of the importance weight."""
    truncated_importance_sampling_ratio_min: NonNegativeFloat | None = None
    """Lower bound of the importance weight. null means 0 for `tis`; the other types need a value."""
    sequence_level_importance_ratios: bool = False
    """GSPO: one ratio per response, the geometric mean over its tokens. Needs `token_level_loss: false`."""
    token_level_loss: bool = True
    """true: mean over all tokens of the batch. false: mean over the tokens of each response, then over responses."""
    force_on_policy_ratio: bool = False
    """Take the ratio as exactly 1 (its gradient stays): right only with one optimizer step per rollout batch."""
    disable_ppo_ratio: bool = False
    """REINFORCE: loss is minus advantage times log-probability, no ratio and no clip."""
    use_cispo: bool = False
    """CISPO: the clipped ratio is a constant weight on the log-probability, so clipped tokens keep a gradient."""
    use_kl_in_reward: bool = False
    """Subtract the KL from the advantages (`reinforce_plus_plus`) instead of adding it to the loss."""
    positive_example_nll_weight: NonNegativeFloat = 0.0
    """Weight of an added negative log-likelihood, in nats per token, on responses with reward above 0. 0: off."""


class RewardScalingConfig(Strict):
    """`grpo.reward_scaling`: map rewards linearly from a source range to a target range."""

    enabled: bool
    """Scale the rewards."""
    source_min: FiniteFloat = 0.0
    """Rewards below are clamped to this before scaling."""
    source_max: FiniteFloat = 1.0
    """Rewards above are clamped to this before scaling."""
    target_min: FiniteFloat = 0.0
    """Where `source_min` lands."""
    target_max: FiniteFloat = 1.0
    """Where `source_max` lands; may lie below `target_min`, which turns the reward round."""


class RewardShapingConfig(Strict):
    """`grpo.reward_shaping`: penalise responses that are too long (DAPO) or were cut off."""

    enabled: bool
    """Shape the rewards."""
    overlong_buffer_length: Count | None = None
    """Tokens before `max_response_length` over which the penalty grows linearly."""
    overlong_buffer_penalty: NonNegativeFloat | None = None
    """Penalty reached at `max_response_length`; it keeps growing beyond."""
    max_response_length: Count | None = None
    """Response length in tokens at which the full penalty is reached."""
    stop_properly_penalty_coef: Probability | None = None
    """Factor on the reward of a truncated response; when set, the three overlong keys are not used. null: off."""


class AdvEstimatorConfig(Strict):
    """`grpo.adv_estimator`: how rewards become advantages."""

    name: EstimatorName
    """`grpo` group-relative, `reinforce_plus_plus` over the batch, `gdpo` several rewards, `opd` distillation."""
    normalize_rewards: bool = True
    """Divide by the standard deviation of the group (`grpo`, `gdpo`)."""
    use_leave_one_out_baseline: bool = True
    """The baseline of a response is the mean of the others of its group, itself left out."""
    minus_baseline: bool = True
    """Subtract the group mean before normalising over the batch (`reinforce_plus_plus`)."""


class AsyncGrpoConfig(Strict):
    """`grpo.async_grpo`: generate while training, with trajectories up to a given age."""

    enabled: bool
    """Run generation and training at the same time."""
    max_trajectory_age_steps: Count
    """Trajectories older than this many training steps are not used."""
    in_flight_weight_updates: bool = False
    """Update the weights without waiting for running generations."""
    recompute_kv_cache_after_weight_updates: bool = False
    """Drop the KV cache after a weight update, so running generations see only new weights."""


class GrpoConfig(Strict):
    """`grpo`: the training loop."""

    num_prompts_per_step: Read[Count]
    """Prompts per training step."""
    num_generations_per_prompt: Read[Count]
    """Responses per prompt: the size of a group. A leave-one-out baseline needs at least 2."""
    max_num_epochs: Read[Count]
    """The loop ends after this many passes over the training data."""
    max_num_steps: Read[Count]
    """The loop ends after this many training steps."""
    max_rollout_turns: Count
    """Turns of a conversation with the environment per response."""
    normalize_rewards: Read[bool]
    """Divide advantages by the standard deviation of the group."""
    use_leave_one_out_baseline: Read[bool]
    """The baseline of a response is the mean of the others of its group, itself left out."""
    use_dynamic_sampling: Read[bool]
    """Train only on groups whose rewards differ; sample further prompts until the batch is full (DAPO)."""
    dynamic_sampling_max_gen_batches: Read[Count] = 10
    """With dynamic sampling: the run fails when filling one batch takes more than this many generation batches."""
    dynamic_sampling_unit: Read[Literal["group", "row"]] = "group"
    """With dynamic sampling: what is kept or dropped. `group`: whole groups whose valid rewards differ. `row`: as
    NeMo-RL v0.7.0, where a row's own std decides; with a leave-one-out baseline the only row that differs goes."""
    batch_multiplier: Read[FiniteFloat] = Field(default=1.0, ge=1)
    """With dynamic sampling: prompts generated at once, as a multiple of `num_prompts_per_step`."""
    overlong_filtering: Read[bool] = False
    """Leave truncated responses out of the loss."""
    seq_logprob_error_threshold: Read[NonNegativeFloat | None]
    """Leave out responses whose mean of exp|sampler - trainer log-prob| exceeds this (1 = no error). null: off."""
    reward_scaling: Read[RewardScalingConfig]
    """Linear map of the rewards, before shaping."""
    reward_shaping: Read[RewardShapingConfig]
    """Length and truncation penalties on the rewards."""
    adv_estimator: Read[Omittable[AdvEstimatorConfig]] = None
    """How rewards become advantages. Omitted: `grpo` with the two keys of the same name above."""
    advantage_clip_low: Read[FiniteFloat | None] = None
    """Advantages below are raised to this. null: no bound."""
    advantage_clip_high: Read[FiniteFloat | None] = None
    """Advantages above are lowered to this. null: no bound."""
    invalid_tool_call_advantage: FiniteFloat | None = None
    """NeMo-Gym: advantage given to the tokens of a message with an invalid tool call. null: off."""
    malformed_thinking_advantage: FiniteFloat | None = None
    """NeMo-Gym: advantage given to the tokens of a message with malformed thinking. null: off."""
    async_grpo: Omittable[AsyncGrpoConfig] = None
    """Asynchronous generation. Omitted: synchronous."""
    skip_reference_policy_logprobs_calculation: Read[bool] = False
    """Do not compute reference log-probs; only with `loss_fn.reference_policy_kl_penalty: 0`."""
    calculate_advantages_on_gpu: bool = False
    """Compute advantages on the accelerator instead of the host."""
    seed: Read[Seed]
    """Seed of data order, sampling and initialisation."""
    val_period: Read[NonNegativeInt]
    """Validate every this many training steps. 0: never."""
    val_at_start: Read[bool]
    """Validate before the first step."""
    val_at_end: Read[bool]
    """Validate after the last step."""
    val_batch_size: Count | None
    """Prompts per validation batch."""
    max_val_samples: Read[NonNegativeInt | None]
    """Validation prompts used, rounded down to whole batches. null: all (needed with NeMo-Gym)."""
    num_val_generations_per_prompt: Read[Omittable[Count]] = None
    """Carried by NeMo-Gym recipes; no code of NeMo-RL v0.7.0 reads it."""
    invalid_tool_call_strategy: Omittable[str] = None
    """Carried by NeMo-Gym recipes; no code of NeMo-RL v0.7.0 reads it."""
    penalize_invalid_tool_call: Omittable[bool] = None
    """Carried by NeMo-Gym recipes; no code of NeMo-RL v0.7.0 reads it."""
    penalize_malformed_thinking: Omittable[bool] = None
    """Carried by NeMo-Gym recipes; no code of NeMo-RL v0.7.0 reads it."""

    @property
    def estimator(self) -> AdvEstimatorConfig:
        """The advantage estimator in force: `adv_estimator`, or `grpo` built from the two top-level keys."""
        if self.adv_estimator is not None:
            return self.adv_estimator
        return AdvEstimatorConfig(
            name="grpo",
            normalize_rewards=self.normalize_rewards,
            use_leave_one_out_baseline=self.use_leave_one_out_baseline,
        )
