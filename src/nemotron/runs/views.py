"""What a run shows, by family of step: headline numbers, live columns and charts, declared here and nowhere else.

A step names its family in ``step.toml``::

    view = "dpo"

and that is all: ``launch`` writes it into ``job.json``; summary, live view, ``runs show`` and ``report.html`` read it
there. The step reports through :func:`nemotron.engines.recorder.recording`::

    with recording(run, total=steps, done=steps_of_the_checkpoint) as recorder:
        recorder.heldout("before", 0, measured)
        recorder.samples(step, rows)
        recorder.step(step, {"train/loss": 0.5, ...})

with metrics under NeMo-RL's names (those of its family below). A metric that a run does not report leaves a gap, never
an error: optional headlines and charts without data are left out. In a metric name ``*`` stands for any text, so
``validation-*_accuracy`` finds the validation set whatever it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nemotron.job import CompiledJob
from nemotron.manifest import ViewName
from nemotron.runs import charts as c
from nemotron.runs.charts import Chart
from nemotron.runs.headlines import Headline, estimate, heldout, kl_drift, level, share, share_trend, trend


@dataclass(frozen=True, slots=True)
class Number:
    """One figure of the summary, made from one metric."""

    key: str
    metric: str
    over: Literal["ends", "span", "last", "all"] = "ends"
    """``ends``: mean of the last steps, and of the first ones under ``<key>_before``; where the two would share steps,
    the mean of all steps, and no ``<key>_before``. ``span``: last known value, and the first one under
    ``<key>_before`` when it is another (for what is measured now and then). ``last``: last known value. ``all``: mean
    of all steps."""


@dataclass(frozen=True, slots=True)
class LiveColumn:
    """One column of the live view."""

    title: str
    metric: str
    form: str = ".3f"
    share: bool = False
    """A share from 0 to 1, shown as a percentage."""
    spread: str | None = None
    """Metric of the standard deviation, shown behind ±."""
    rare: bool = False
    """Not measured at every step: a line that has it is always printed."""


@dataclass(frozen=True, slots=True)
class View:
    """What one family of steps shows."""

    step_metric: str
    """Every finished training step has it; a row without is an evaluation."""
    numbers: tuple[Number, ...]
    """Beside those that every summary has (:data:`COMMON`)."""
    leading: tuple[Headline, ...]
    """To be read first."""
    other: tuple[Headline, ...]
    columns: tuple[LiveColumn, ...]
    charts: tuple[Chart, ...]
    """In reading order."""
    heldout: str = "fully_right"
    """The property of the held-out metric that is its headline."""
    best: str = "Judged best in the last steps"
    worst: str = "Judged worst in the last steps"


COMMON = (
    Number("reward", "train/reward"),
    Number("reward_std", "train/reward_std"),
    Number("response_length", "train/mean_gen_tokens_per_sample"),
    Number("truncation_rate", "train/truncation_rate"),
)
"""In every summary, None where a family has no such thing."""

_SPREAD = trend("reward_std", "reward spread", note="std of a step")
_LENGTH = trend("response_length", "response length", 1, unit="tokens")
_REWARD = trend("reward", "reward")
_TRUNCATED = share("truncation_rate", "truncated", "last steps", title="Truncated responses")
_MISSING = share("missing_share", "missing rewards", "all steps")

_REWARD_COLUMN = LiveColumn("reward", "train/reward", spread="train/reward_std")
_KL_COLUMN = LiveColumn("KL", "train/kl_penalty", ".4f")
_LENGTH_COLUMN = LiveColumn("length", "train/mean_gen_tokens_per_sample", ".1f")
_TRUNCATED_COLUMN = LiveColumn("truncated", "train/truncation_rate", share=True)
_HELDOUT_COLUMN = LiveColumn("held-out", "heldout/fully_right", share=True, rare=True)
_TIME_COLUMN = LiveColumn("s/step", "timing/train/total_step_time", ".2f")

JUDGED_GRPO = View(
    step_metric="train/reward",
    numbers=(),
    leading=(kl_drift(), _SPREAD, _LENGTH, heldout()),
    other=(_REWARD, _TRUNCATED, share("missing_share", "missing verdicts", "all steps")),
    columns=(_REWARD_COLUMN, _KL_COLUMN, _LENGTH_COLUMN, _TRUNCATED_COLUMN, _HELDOUT_COLUMN, _TIME_COLUMN),
    charts=(
        c.KL, c.REWARD, c.HELDOUT, c.VALIDATION, c.LENGTH, c.REWARD_LENGTH, c.CLIPPING, c.ENTROPY, c.OPTIMIZER,
        c.JUDGE_MISSING, c.JUDGE_POSITION, c.EXACTNESS,
    ),
)  # fmt: skip

VERIFIED_GRPO = View(
    step_metric="train/reward",
    numbers=(Number("pass_rate", "train/pass_rate"), Number("validation_reward", "validation/accuracy", "span")),
    leading=(share_trend("pass_rate", "pass rate"), heldout(), kl_drift(), _LENGTH),
    other=(
        _REWARD, _SPREAD, trend("validation_reward", "validation reward", measured=True, optional=True), _TRUNCATED,
        _MISSING,
    ),
    columns=(
        LiveColumn("passed", "train/pass_rate", share=True), _REWARD_COLUMN, _KL_COLUMN, _LENGTH_COLUMN,
        _TRUNCATED_COLUMN, _HELDOUT_COLUMN, _TIME_COLUMN,
    ),
    charts=(
        c.PASS_RATE, c.REWARD, c.VERIFIERS, c.HELDOUT, c.VALIDATION, c.KL, c.LENGTH, c.REWARD_LENGTH, c.CLIPPING,
        c.ENTROPY, c.OPTIMIZER, c.EXACTNESS,
    ),
    best="Rewarded most in the last steps",
    worst="Rewarded least in the last steps",
)  # fmt: skip

PPO = View(
    step_metric="train/reward",
    numbers=(
        Number("reward_minus_kl", "train/reward_minus_kl"),
        Number("explained_var", "critic/explained_var"),
        Number("critic_loss", "critic/loss"),
        Number("values_mean", "critic/values_mean"),
    ),
    leading=(
        kl_drift(), trend("reward_minus_kl", "reward minus KL"),
        trend("explained_var", "critic explains", note="1 is all of the variance", optional=True), heldout(),
    ),
    other=(
        _REWARD, _SPREAD, _LENGTH, trend("critic_loss", "critic loss", 4, optional=True),
        trend("values_mean", "mean value", optional=True), _TRUNCATED, _MISSING,
    ),
    columns=(
        _REWARD_COLUMN, LiveColumn("R−βKL", "train/reward_minus_kl"), _KL_COLUMN,
        LiveColumn("explained", "critic/explained_var", ".2f"), _LENGTH_COLUMN, _TRUNCATED_COLUMN, _HELDOUT_COLUMN,
        _TIME_COLUMN,
    ),
    charts=(
        c.KL, c.REWARD, c.REWARD_MINUS_KL, c.HELDOUT, c.CRITIC, c.VALIDATION, c.LENGTH, c.REWARD_LENGTH, c.CLIPPING,
        c.ENTROPY, c.OPTIMIZER, c.REWARD_MISSING, c.EXACTNESS,
    ),
    best="Rewarded most in the last steps",
    worst="Rewarded least in the last steps",
)  # fmt: skip

_PAIR_NUMBERS = (
    Number("loss", "train/loss"),
    Number("accuracy", "train/accuracy"),
    Number("margin", "train/margin"),
    Number("rewards_chosen", "train/rewards_chosen_mean"),
    Number("rewards_rejected", "train/rewards_rejected_mean"),
    Number("validation_accuracy", "validation-*_accuracy", "span"),
    Number("validation_loss", "validation-*_loss", "span"),
)
_PAIR_COLUMNS = (
    LiveColumn("loss", "train/loss", ".4f"),
    LiveColumn("accuracy", "train/accuracy", share=True),
    LiveColumn("margin", "train/margin"),
    LiveColumn("validation", "validation-*_accuracy", share=True, rare=True),
)

# Before training, policy and reference agree and every reward is 0: an accuracy of then would mean nothing.
DPO = View(
    step_metric="train/loss",
    numbers=(*_PAIR_NUMBERS, Number("sft_loss", "train/sft_loss")),
    leading=(
        share("validation_accuracy", "validation accuracy", "last validation; chance is 50%"), heldout(),
        trend("rewards_chosen", "reward of chosen", note="falling means that chosen answers get less likely"),
        trend("margin", "margin", note="chosen minus rejected"),
    ),
    other=(
        kl_drift(optional=True), share_trend("accuracy", "training accuracy"), trend("loss", "loss", 4),
        trend("validation_loss", "validation loss", 4, measured=True, optional=True),
        trend("sft_loss", "SFT loss", 4, optional=True),
    ),
    columns=(
        *_PAIR_COLUMNS[:3], LiveColumn("chosen", "train/rewards_chosen_mean"), _PAIR_COLUMNS[3], _HELDOUT_COLUMN,
        _TIME_COLUMN,
    ),
    charts=(c.PAIR_ACCURACY, c.PAIR_REWARDS, c.HELDOUT, c.PAIR_LOSS, c.KL, c.OPTIMIZER),
    best="Rewarded most in the last steps",
    worst="Rewarded least in the last steps",
)  # fmt: skip

REWARD_MODEL = View(
    step_metric="train/loss",
    numbers=_PAIR_NUMBERS,
    leading=(
        heldout(), share_trend("validation_accuracy", "validation accuracy", measured=True),
        trend("margin", "margin", note="chosen minus rejected"),
        trend("validation_loss", "validation loss", 4, measured=True),
    ),
    other=(share_trend("accuracy", "training accuracy"), trend("loss", "loss", 4)),
    columns=(
        *_PAIR_COLUMNS, LiveColumn("held-out", "heldout/accuracy", share=True, rare=True), _TIME_COLUMN,
    ),
    charts=(c.PAIR_ACCURACY, c.PAIR_LOSS, c.PAIR_REWARDS, c.HELDOUT_PAIRS, c.OPTIMIZER),
    heldout="accuracy",
    best="Rewarded most in the last steps",
    worst="Rewarded least in the last steps",
)  # fmt: skip

# The reward of a sample is the mean log-probability of its learned tokens.
SFT = View(
    step_metric="train/loss",
    numbers=(
        Number("loss", "train/loss"),
        Number("validation_loss", "validation/val_loss", "span"),
    ),
    leading=(
        heldout(), trend("validation_loss", "validation loss", 4, measured=True, optional=True),
        trend("loss", "loss", 4, note="nats a token"),
    ),
    other=(),
    columns=(
        LiveColumn("loss", "train/loss", ".4f"), LiveColumn("validation", "validation/val_loss", ".4f", rare=True),
        LiveColumn("tokens", "train/global_valid_toks", ",.0f"), LiveColumn("grad norm", "train/grad_norm", ".3f"),
        _HELDOUT_COLUMN, _TIME_COLUMN,
    ),
    charts=(c.SFT_LOSS, c.HELDOUT, c.OPTIMIZER),
    best="Most likely in the last steps",
    worst="Least likely in the last steps",
)  # fmt: skip

AUDIT = View(
    step_metric="audit/agreement",
    numbers=tuple(
        Number(f"audit_{name}", f"audit/{name}", "last")
        for name in (
            "agreement", "agreement_low", "agreement_high", "position_bias", "flip_share", "length_bias",
            "self_consistency", "missing_share", "unparseable_share", "extreme_score_share",
            "expected_calibration_error",
        )
    ),
    leading=(
        estimate("audit_agreement", "agreement with labels"),
        level("audit_position_bias", "position bias", 2, note="0 is none, 1 always the first answer"),
        share("audit_flip_share", "flips with the order", "of the pairs", optional=True),
        level("audit_length_bias", "length bias", 2, note="0 is none, 1 always the longer answer"),
        share("audit_missing_share", "missing", "of all comparisons"),
    ),
    other=(
        share("audit_self_consistency", "self-consistency", "same winner when asked again", optional=True),
        share("audit_unparseable_share", "unparseable", "of all answers", optional=True),
        share("audit_extreme_score_share", "saturation", "scores at the end of the scale", optional=True),
        share("audit_expected_calibration_error", "calibration error", "expected", optional=True),
    ),
    columns=(LiveColumn("agreement", "audit/agreement", share=True),),
    charts=(),
)  # fmt: skip

VIEWS: Mapping[ViewName, View] = {
    "judged_grpo": JUDGED_GRPO,
    "verified_grpo": VERIFIED_GRPO,
    "ppo": PPO,
    "dpo": DPO,
    "reward_model": REWARD_MODEL,
    "sft": SFT,
    "audit": AUDIT,
}


def view_of(job: CompiledJob) -> View | None:
    """The view of a job; None for a step that measures nothing while it works, such as a conversion."""
    return None if job.view is None else VIEWS[job.view]
