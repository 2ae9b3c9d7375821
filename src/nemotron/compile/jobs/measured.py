"""What each embedded loop measures in a step, without torch: names that `checkpointing.metric_name` may have.

`tests/unit/rl/test_measured.py` holds them against what the loops write.
"""

from __future__ import annotations

_UPDATE = ("global_valid_seqs", "global_valid_toks", "grad_norm", "loss", "lr", "num_valid_samples")
_POLICY_GRADIENT = (
    *_UPDATE,
    "advantages/max",
    "advantages/mean",
    "advantages/min",
    "approx_entropy",
    "clip_fraction",
    "dynamic_sampling_num_gen_batches",
    "gen_kl_error",
    "js_divergence_error",
    "kl_penalty",
    "kl_sum_per_response",
    "max_gen_tokens_per_sample",
    "mean_gen_tokens_per_sample",
    "mean_prompt_length",
    "missing_share",
    "policy_kl_error",
    "positive_nll_loss",
    "probs_ratio",
    "probs_ratio_clamped",
    "probs_ratio_clamped_max",
    "probs_ratio_clamped_min",
    "probs_ratio_max",
    "probs_ratio_min",
    "reward",
    "reward_length_correlation",
    "reward_minus_kl",
    "reward_std",
    "sampling_importance_ratio",
    "token_mult_prob_error",
    "total_num_tokens",
    "truncation_rate",
)
_PAIRS = (*_UPDATE, "accuracy", "margin", "rewards_chosen_mean", "rewards_rejected_mean")

GRPO = (*_POLICY_GRADIENT, "filtered_reward", "groups_without_signal")
PPO = (*_POLICY_GRADIENT, "steps_without_a_valid_token", "trained_share", "values_mean")
DPO = (
    *_PAIRS,
    "logps_chosen_mean",
    "logps_rejected_mean",
    "mean_gen_tokens_per_sample",
    "preference_loss",
    "sft_loss",
)
REWARD_MODEL = (*_PAIRS, "reward_length_correlation", "reward_mean_of_set", "reward_std", "reward_std_of_set")
SFT = (*_UPDATE, "num_unmasked_tokens")
VALIDATION = ("accuracy", "avg_length", "missing_share")
"""Of GRPO and PPO."""
