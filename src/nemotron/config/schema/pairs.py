"""What the configs of steps that learn from preference pairs have in common. Batches count pairs."""

from __future__ import annotations

from typing import Protocol

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import Probability
from nemotron.config.schema.training import Course, TrainingConfig


class PairLimitsConfig(Strict):
    """Bounds whose crossing stops the run with an error."""

    max_rejected_share: Probability
    """Largest share of the training pairs that may be left out because they are too long."""


class PairCourse(Course, Protocol):
    """What the section of such an algorithm says of validation."""

    @property
    def val_global_batch_size(self) -> int: ...
    @property
    def val_micro_batch_size(self) -> int: ...
    @property
    def val_batches(self) -> int: ...


class PairTrainingConfig(TrainingConfig):
    """A step that learns from pairs."""

    @property
    def pair_course(self) -> PairCourse:
        """The algorithm's section."""
        found: PairCourse = getattr(self, self.section)
        return found

    @property
    def validation_pairs(self) -> int | None:
        """Pairs of every validation set that are measured at most; None takes all."""
        course = self.pair_course
        return course.val_batches * course.val_global_batch_size if course.val_batches > 0 else None

    @property
    def longest_row(self) -> int:
        """Tokens of a prompt with its longer answer at most; longer pairs are left out."""
        longest = self.policy.max_total_sequence_length
        return min(self.data.max_input_seq_length or longest, longest)
