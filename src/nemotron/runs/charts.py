"""What a report plots of the metrics: which numbers share a chart, and what a reader should look for.

A colour is a name with an ``@`` (``@blue``): the page puts in the value of its light or dark theme.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One metric."""

    metric: str
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


CHARTS = (
    Chart(
        "kl",
        "KL to the reference",
        "How far the policy has drifted, in nats per token. A steady climb means reward is bought with drift.",
        (Panel("nats per token", (Line("train/kl_penalty", "KL", "@blue"),), from_zero=True),),
    ),
    Chart(
        "reward",
        "Reward",
        "Mean of a step with one standard deviation of its responses around it.",
        (Panel("reward", (Line("train/reward", "mean", "@blue", spread="train/reward_std"),)),),
    ),
    Chart(
        "validation",
        "Held-out and validation during training",
        "Share of fully right held-out answers; mean reward (NeMo-RL calls it accuracy) and length on validation.",
        (
            Panel("fully right", (Line("heldout/fully_right", "held-out fully right", "@violet", share=True),)),
            Panel("mean reward", (Line("validation/accuracy", "accuracy", "@green"),)),
            Panel("tokens", (Line("validation/avg_length", "length", "@blue"),)),
        ),
    ),
    Chart(
        "length",
        "Response length and truncation",
        "Length that grows together with reward is the classic way to please a judge.",
        (
            Panel("tokens", (Line("train/mean_gen_tokens_per_sample", "length", "@blue"),)),
            Panel("truncated", (Line("train/truncation_rate", "truncated", "@orange", share=True),), from_zero=True),
        ),
    ),
    Chart(
        "reward-length",
        "Correlation of reward and length",
        "Near 0 is healthy; towards 1 the judge rewards length, towards −1 brevity.",
        (Panel("correlation", (Line("train/reward_length_correlation", "correlation", "@violet"),)),),
    ),
    Chart(
        "clipping",
        "Policy update",
        "Share of clipped tokens, and the mean ratio of new to old token probability (1 means no change).",
        (
            Panel("clipped", (Line("train/clip_fraction", "clipped", "@orange", share=True),), from_zero=True),
            Panel("ratio", (Line("train/probs_ratio", "ratio", "@blue"),)),
        ),
    ),
    Chart(
        "entropy",
        "Entropy",
        "Of the next-token distribution. A fall towards 0 means responses become all alike.",
        (Panel("nats", (Line("train/approx_entropy", "entropy", "@violet"),)),),
    ),
    Chart(
        "optimizer",
        "Gradient norm and learning rate",
        "Spikes of the gradient norm go before unstable runs.",
        (
            Panel("gradient norm", (Line("train/grad_norm", "gradient norm", "@blue"),), from_zero=True),
            Panel("learning rate", (Line("train/lr", "learning rate", "@green"),), from_zero=True),
        ),
    ),
    Chart(
        "missing",
        "Judge: missing and unparseable",
        "Missing comparisons are left out of the reward, not scored; retries are counted below.",
        (
            Panel("share missing", (Line("train/missing_share", "missing", "@red", share=True),), from_zero=True),
            Panel(
                "per step",
                (
                    Line("judge/unparseable", "unparseable", "@orange"),
                    Line("judge/retries", "retries", "@blue"),
                ),
                from_zero=True,
            ),
        ),
    ),
    Chart(
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
    ),
    Chart(
        "exactness",
        "Sampler against trainer",
        "Both compute the same probabilities, so the error multiplier stays at 1 and the KL between them at 0.",
        (
            Panel("multiplier", (Line("train/token_mult_prob_error", "multiplier", "@blue"),)),
            Panel("nats", (Line("train/gen_kl_error", "KL", "@violet"),)),
        ),
    ),
)
"""In reading order."""
