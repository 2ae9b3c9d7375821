"""``dpo``: direct preference optimisation, under NeMo-RL v0.7.0's names. Batches count pairs."""

from __future__ import annotations

from typing import ClassVar

from nemotron.config.schema.base import Strict
from nemotron.config.schema.extras import EngineChoice, EvalConfig
from nemotron.config.schema.fields import Count, NonNegativeFloat, NonNegativeInt, PositiveFloat, Seed
from nemotron.config.schema.pairs import PairLimitsConfig, PairTrainingConfig
from nemotron.config.schema.reads import Read


class DpoLossConfig(Strict):
    """The keys of ``dpo`` that the loss reads."""

    reference_policy_kl_penalty: PositiveFloat = 0.05
    """Beta: how strongly the policy is held to its reference; rewards are multiplied by it before they are compared."""
    preference_average_log_probs: bool = False
    """Reward of an answer is the mean over its tokens instead of the sum; raise the penalty by about the mean length
    with it."""
    sft_average_log_probs: bool = False
    """The SFT term is a mean over the tokens of an answer instead of a sum."""
    preference_loss_weight: NonNegativeFloat = 1.0
    """Weight of the preference loss."""
    sft_loss_weight: NonNegativeFloat = 0.0
    """Weight of the negative log-likelihood of the chosen answers; 0 leaves it out."""


class DpoConfig(DpoLossConfig):
    """The algorithm: schedule of the run, validation, loss."""

    max_num_epochs: Count = 1
    """Passes over the training pairs."""
    max_num_steps: int = 150
    """Optimizer steps at most; NeMo-RL makes none at all with -1."""
    val_period: NonNegativeInt = 25
    """Steps between validations; 0 validates only at start and end, when asked to."""
    val_batches: int = 8
    """Batches per validation; 0 or less takes all pairs."""
    val_global_batch_size: Count = 8
    """Pairs per validation batch."""
    val_micro_batch_size: Count = 1
    """Pairs per forward pass in validation."""
    val_at_start: bool = True
    """Validate before the first step."""
    val_at_end: bool = False
    """Validate after the last step."""
    seed: Seed = 42
    """Order of the pairs, and every other random number of the run."""


class DpoRunConfig(PairTrainingConfig):
    """DPO with NeMo-RL's tree and our sections."""

    section: ClassVar[str] = "dpo"

    engine: Read[EngineChoice]
    """What runs the job: the embedded engine, NeMo-RL, or (``auto``) whichever of them can run here."""
    dpo: Read[DpoConfig]
    """The algorithm: loss, schedule of the run, validation."""
    eval: Read[EvalConfig]
    """Measurements that are independent of the preferences."""
    limits: Read[PairLimitsConfig]
    """Bounds whose crossing stops the run."""
