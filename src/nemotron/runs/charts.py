"""What a report plots of the metrics: which numbers share a chart, and what a reader should look for.

A colour is a name with an ``@`` (``@blue``): the page puts in the value of its light or dark theme.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One metric."""

    metric: str
    """Its name. A `*` in it stands for any text: each metric that fits is a line of its own, called after that text."""
    name: str
    color: str
    share: bool = False
    """A share from 0 to 1, drawn as a percentage."""
    spread: str | None = None
    """Metric of the standard deviation around it, drawn as a band."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Metrics of one unit, on one y axis."""

    label: str
    lines: tuple[Line, ...]
    mark: tuple[str, float, str] | None = None
    """(name, value, colour) of a bound or a neutral value, drawn as a dashed line."""
    from_zero: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Panels above one another, on one step axis."""

    id: str
    title: str
    note: str
    panels: tuple[Panel, ...] = ()


KL = Chart(
    "kl",
    "KL to the reference",
    "How far the policy has drifted, in nats per token. A steady climb means reward is bought with drift.",
    (Panel("nats per token", (Line("train/kl_penalty", "KL", "@blue"),), from_zero=True),),
)
REWARD = Chart(
    "reward",
    "Reward",
    "Mean of a step with one standard deviation of its responses around it.",
    (Panel("reward", (Line("train/reward", "mean", "@blue", spread="train/reward_std"),)),),
)
VALIDATION = Chart(
    "validation",
    "Validation during training",
    "Mean reward (NeMo-RL calls it accuracy) and length on the validation prompts.",
    (
        Panel("mean reward", (Line("validation/accuracy", "accuracy", "@green"),)),
        Panel("tokens", (Line("validation/avg_length", "length", "@blue"),)),
    ),
)
LENGTH = Chart(
    "length",
    "Response length and truncation",
    "Length that grows together with reward is the classic way to please a judge.",
    (
        Panel("tokens", (Line("train/mean_gen_tokens_per_sample", "length", "@blue"),)),
        Panel("truncated", (Line("train/truncation_rate", "truncated", "@orange", share=True),), from_zero=True),
    ),
)
REWARD_LENGTH = Chart(
    "reward-length",
    "Correlation of reward and length",
    "Near 0 is healthy; towards 1 the judge rewards length, towards −1 brevity.",
    (Panel("correlation", (Line("train/reward_length_correlation", "correlation", "@violet"),)),),
)
CLIPPING = Chart(
    "clipping",
    "Policy update",
    "Share of clipped tokens, and the mean ratio of new to old token probability (1 means no change).",
    (
        Panel("clipped", (Line("train/clip_fraction", "clipped", "@orange", share=True),), from_zero=True),
        Panel("ratio", (Line("train/probs_ratio", "ratio", "@blue"),)),
    ),
)
ENTROPY = Chart(
    "entropy",
    "Entropy",
    "Of the next-token distribution. A fall towards 0 means responses become all alike.",
    (Panel("nats", (Line("train/approx_entropy", "entropy", "@violet"),)),),
)
OPTIMIZER = Chart(
    "optimizer",
    "Gradient norm and learning rate",
    "Spikes of the gradient norm go before unstable runs.",
    (
        Panel("gradient norm", (Line("train/grad_norm", "gradient norm", "@blue"),), from_zero=True),
        Panel("learning rate", (Line("train/lr", "learning rate", "@green"),), from_zero=True),
    ),
)
JUDGE_MISSING = Chart(
    "missing",
    "Judge: missing and unparseable",
    "Missing comparisons are left out of the reward, not scored; retries are counted below.",
    (
        Panel("share missing", (Line("train/missing_share", "missing", "@red", share=True),), from_zero=True),
        Panel(
            "per step",
            (
                Line("judge/unparseable", "unparseable", "@orange"),
                Line("judge/out_of_scale", "out of scale", "@violet"),
                Line("judge/retries", "retries", "@blue"),
            ),
            from_zero=True,
        ),
    ),
)
JUDGE_POSITION = Chart(
    "position",
    "Judge: ties and position bias",
    "An unbiased judge prefers the first of two responses in half of the comparisons that are not ties.",
    (
        Panel("ties", (Line("judge/tie_share", "ties", "@violet", share=True),), from_zero=True),
        Panel(
            "first preferred",
            (Line("judge/first_position_share", "first preferred", "@blue", share=True),),
            mark=("unbiased", 0.5, "@muted-ink"),
        ),
    ),
)
EXACTNESS = Chart(
    "exactness",
    "Sampler against trainer",
    "Both compute the same probabilities, so the error multiplier stays at 1 and the KL between them at 0.",
    (
        Panel("multiplier", (Line("train/token_mult_prob_error", "multiplier", "@blue"),)),
        Panel("nats", (Line("train/gen_kl_error", "KL", "@violet"),)),
    ),
)
HELDOUT = Chart(
    "heldout",
    "Held-out answers before and after",
    "Share of answers to unseen prompts, in percent, by a program that neither the judge nor the loss sees.",
)
"""Drawn from the status, not from metrics: what is measured twice is two bars, not a line."""

# A reward that a program computes.
PASS_RATE = Chart(
    "pass-rate",
    "Pass rate",
    "Share of responses that pass every check; groups that all pass or all fail teach nothing.",
    (Panel("passed", (Line("train/pass_rate", "passed", "@green", share=True),)),),
)
VERIFIERS = Chart(
    "verifiers",
    "Reward by verifier",
    "Mean of each verifier before weights; below, the responses that none could be given for.",
    (
        Panel("mean", (Line("reward/*/mean", "", "@blue"),)),
        Panel(
            "share missing",
            (
                Line("train/missing_share", "missing", "@red", share=True),
                Line("reward/*/missing_share", "", "@orange", share=True),
            ),
            from_zero=True,
        ),
    ),
)

# A learned reward and a critic.
REWARD_MINUS_KL = Chart(
    "reward-minus-kl",
    "Reward minus KL",
    "What the loss maximises: the reward of a response less its weighted KL. Below, the KL summed over a response.",
    (
        Panel("R − β·KL", (Line("train/reward_minus_kl", "R − β·KL", "@green"),)),
        Panel("nats per response", (Line("train/kl_sum_per_response", "KL", "@blue"),), from_zero=True),
    ),
)
CRITIC = Chart(
    "critic",
    "Critic",
    "Explained variance near 1: the critic foresees returns; at or below 0 it knows less than their mean does.",
    (
        Panel(
            "explained",
            (
                Line("critic/explained_var", "while learning", "@green"),
                Line("critic/explained_var_before", "before the update", "@blue"),
            ),
        ),
        Panel("loss", (Line("critic/loss", "loss", "@orange"),), from_zero=True),
        Panel("value", (Line("critic/values_mean", "mean value", "@blue"),)),
    ),
)
REWARD_MISSING = Chart(
    "missing",
    "Missing rewards",
    "Responses without reward are masked, not scored.",
    (Panel("share missing", (Line("train/missing_share", "missing", "@red", share=True),), from_zero=True),),
)

# Labelled pairs.
PAIR_ACCURACY = Chart(
    "accuracy",
    "Preference accuracy",
    "Share of pairs whose chosen answer gets the higher reward. 50% is chance.",
    (
        Panel(
            "accuracy",
            (
                Line("train/accuracy", "training", "@blue", share=True),
                Line("validation-*_accuracy", "validation", "@green", share=True),
            ),
            mark=("chance", 0.5, "@muted-ink"),
        ),
    ),
)
PAIR_LOSS = Chart(
    "loss",
    "Loss",
    "Validation that rises while training falls: the pairs are being learned by heart.",
    (
        Panel(
            "loss",
            (Line("train/loss", "training", "@blue"), Line("validation-*_loss", "validation", "@green")),
        ),
        Panel(
            "terms",
            (Line("train/preference_loss", "preference", "@orange"), Line("train/sft_loss", "SFT", "@violet")),
        ),
    ),
)
SFT_LOSS = Chart(
    "loss",
    "Loss",
    "Validation that rises while training falls: the answers are being learned by heart.",
    (
        Panel(
            "nats a token",
            (Line("train/loss", "training", "@blue"), Line("validation/val_loss", "validation", "@green")),
        ),
    ),
)
PAIR_REWARDS = Chart(
    "rewards",
    "Rewards of chosen and rejected",
    "Both falling together means the margin is bought by making every answer less likely.",
    (
        Panel(
            "reward",
            (
                Line("train/rewards_chosen_mean", "chosen", "@green"),
                Line("train/rewards_rejected_mean", "rejected", "@red"),
            ),
        ),
        Panel("margin", (Line("train/margin", "chosen − rejected", "@blue"),), mark=("", 0.0, "@muted-ink")),
    ),
)
HELDOUT_PAIRS = Chart("heldout", "Held-out pairs before and after", "Share of unseen pairs, in percent, ranked right.")
