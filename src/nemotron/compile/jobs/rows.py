"""What the preflight knows of a job that learns from rows as they are: pairs, conversations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from nemotron.compile.jobs.base import Batch, Job
from nemotron.config.schema.rows import RowTrainingConfig

T = TypeVar("T", bound=RowTrainingConfig, covariant=True)


@dataclass(frozen=True)
class RowJob(Job[T]):
    """Training on rows as they are. All batch sizes count rows."""

    def batches(self) -> Iterator[Batch]:
        """Training, and validation."""
        yield from super().batches()
        keys = f"{self.section}.val_global_batch_size", f"{self.section}.val_micro_batch_size"
        course = self.config.row_course
        yield Batch(keys[0], course.val_global_batch_size, keys[1], course.val_micro_batch_size)
