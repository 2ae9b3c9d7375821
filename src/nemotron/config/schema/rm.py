"""``rm``: reward models, under NeMo-RL v0.7.0's names. Batches count pairs."""

from __future__ import annotations

from typing import ClassVar

from nemotron.config.schema.base import Strict
from nemotron.config.schema.extras import EngineChoice
from nemotron.config.schema.fields import Count, DiskPath, Name, NonNegativeFloat, NonNegativeInt, Omittable, Seed
from nemotron.config.schema.pairs import PairLimitsConfig, PairTrainingConfig
from nemotron.config.schema.reads import Read


class RmConfig(Strict):
    """Schedule of the run and validation."""

    max_num_epochs: Count
    """Passes over the training pairs."""
    max_num_steps: int
    """Optimizer steps at most; -1: the epochs alone end the run."""
    val_period: NonNegativeInt
    """Steps between validations; 0 validates only at start and end, when asked to."""
    val_batches: int
    """Batches per validation; 0 or less takes all pairs."""
    val_global_batch_size: Count
    """Pairs per validation batch."""
    val_micro_batch_size: Count
    """Pairs per forward pass in validation."""
    val_at_start: bool
    """Validate before the first step."""
    val_at_end: bool
    """Validate after the last step."""
    seed: Seed
    """Order of the pairs, and the first weights of the reward head."""


class BradleyTerryConfig(Strict):
    """What the embedded engine adds to NeMo-RL's reward model."""

    margin_key: Name | None
    """Field of a row with the margin by which the chosen answer should lead at least; null: no margin."""
    center_rewards_coefficient: NonNegativeFloat
    """Weight of the squared sum of a pair's rewards, which holds their level at 0 (TRL's name; 0.01 is usual)."""
    statistics_pairs: Count | None
    """Training pairs whose rewards give the mean and standard deviation that are stored with the model; null: all."""


class HeldoutPairsConfig(Strict):
    """Pairs that are never trained on, and on which no checkpoint is chosen."""

    data_path: Omittable[DiskPath] = None
    """JSONL file of the held-out pairs; needed unless ``split`` is given."""
    split: Omittable[Name] = None
    """Split of ``data.manifest_path`` that holds them instead, such as ``heldout`` or ``test``."""
    max_samples: Count
    """Pairs that are compared before and after training."""


class PairEvalConfig(Strict):
    """Measurements beside validation."""

    heldout: HeldoutPairsConfig | None
    """Accuracy on held-out pairs, before and after training; null measures none."""


class RmMasterConfig(PairTrainingConfig):
    """Every section that NeMo-RL's ``run_rm.py`` reads."""

    section: ClassVar[str] = "rm"

    rm: Read[RmConfig]
    """The algorithm."""


class RmRunConfig(RmMasterConfig):
    """NeMo-RL's tree and our sections."""

    engine: Read[EngineChoice]
    """What runs the job: the embedded engine, NeMo-RL, or (``auto``) whichever of them can run here."""
    bradley_terry: Read[BradleyTerryConfig]
    """Margin, centring, and the statistics that are stored with the model."""
    eval: Read[PairEvalConfig]
    """Measurements beside validation."""
    limits: Read[PairLimitsConfig]
    """Bounds whose crossing stops the run."""
