"""``sft``: supervised fine-tuning, under NeMo-RL v0.7.0's names. Batches count conversations."""

from __future__ import annotations

from typing import ClassVar

from nemotron.config.schema.base import Strict
from nemotron.config.schema.extras import EngineChoice, EvalConfig
from nemotron.config.schema.fields import Count, NonNegativeInt, Probability, Seed
from nemotron.config.schema.reads import Read
from nemotron.config.schema.rows import RowTrainingConfig


class SftConfig(Strict):
    """The algorithm: schedule of the run, validation, what is learned."""

    max_num_epochs: Count = 1
    """Passes over the training conversations."""
    max_num_steps: int = 60
    """Optimizer steps at most; NeMo-RL makes none at all with -1."""
    val_period: NonNegativeInt = 10
    """Steps between validations; 0 validates only at start and end, when asked to."""
    val_batches: int = 8
    """Batches per validation; 0 or less takes all conversations."""
    val_global_batch_size: Count = 32
    """Conversations per validation batch."""
    val_micro_batch_size: Count = 1
    """Conversations per forward pass in validation."""
    val_at_start: bool = True
    """Validate before the first step."""
    val_at_end: bool = False
    """Validate after the last step."""
    seed: Seed = 42
    """Order of the conversations, and every other random number of the run."""
    only_unmask_final: bool = False
    """Learn the last answer of a conversation alone, not all of them."""


class SftLimitsConfig(Strict):
    """Bounds whose crossing stops the run with an error."""

    max_rejected_share: Probability
    """Largest share of the training conversations that may be left out because they are too long, or because the chat
    template writes an answer otherwise once others follow."""


class SftMasterConfig(RowTrainingConfig):
    """Every section that NeMo-RL's ``run_sft.py`` reads."""

    section: ClassVar[str] = "sft"

    sft: Read[SftConfig]
    """The algorithm: what is learned, schedule of the run, validation."""


class SftRunConfig(SftMasterConfig):
    """NeMo-RL's tree and our sections."""

    engine: Read[EngineChoice]
    """What runs the job: the embedded engine, NeMo-RL, or (``auto``) whichever of them can run here."""
    eval: Read[EvalConfig]
    """Measurements that are independent of the loss."""
    limits: Read[SftLimitsConfig]
    """Bounds whose crossing stops the run."""
