"""What the configs of steps that learn from rows as they are (pairs, conversations) have in common."""

from __future__ import annotations

from typing import Protocol

from nemotron.config.schema.training import Course, TrainingConfig


class RowCourse(Course, Protocol):
    """What the section of such an algorithm says of validation."""

    @property
    def val_global_batch_size(self) -> int: ...
    @property
    def val_micro_batch_size(self) -> int: ...
    @property
    def val_batches(self) -> int: ...


class RowTrainingConfig(TrainingConfig):
    """A step that learns from rows as they are; nothing is sampled to train on."""

    @property
    def row_course(self) -> RowCourse:
        """The algorithm's section."""
        found: RowCourse = getattr(self, self.section)
        return found

    @property
    def validation_rows(self) -> int | None:
        """Rows of every validation set that are measured at most; None takes all."""
        course = self.row_course
        return course.val_batches * course.val_global_batch_size if course.val_batches > 0 else None

    @property
    def longest_row(self) -> int:
        """Tokens of a row (of a prompt with its longer answer) at most; longer ones are left out."""
        longest = self.policy.max_total_sequence_length
        return min(self.data.max_input_seq_length or longest, longest)
