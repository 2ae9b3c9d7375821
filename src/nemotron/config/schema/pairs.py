"""What the configs of steps that learn from preference pairs have in common. Batches count pairs."""

from __future__ import annotations

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import Probability
from nemotron.config.schema.rows import RowTrainingConfig


class PairLimitsConfig(Strict):
    """Bounds whose crossing stops the run with an error."""

    max_rejected_share: Probability
    """Largest share of the training pairs that may be left out because they are too long."""


class PairTrainingConfig(RowTrainingConfig):
    """A step that learns from pairs."""
