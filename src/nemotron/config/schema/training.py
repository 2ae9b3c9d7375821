"""The sections that every algorithm of NeMo-RL v0.7.0 has, and what follows from them for the course of a run."""

from __future__ import annotations

from typing import ClassVar, Protocol

from nemotron.config.schema.base import Strict
from nemotron.config.schema.checkpointing import CheckpointingConfig
from nemotron.config.schema.cluster import ClusterConfig
from nemotron.config.schema.data import DataConfig
from nemotron.config.schema.logger import LoggerConfig
from nemotron.config.schema.policy import PolicyConfig
from nemotron.config.schema.reads import Read


class Course(Protocol):
    """What the section of every algorithm says about the course of a run."""

    @property
    def max_num_steps(self) -> int: ...
    @property
    def max_num_epochs(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def val_period(self) -> int: ...
    @property
    def val_at_start(self) -> bool: ...
    @property
    def val_at_end(self) -> bool: ...


class TrainingConfig(Strict):
    """A training job; each algorithm adds its own sections."""

    section: ClassVar[str] = ""
    """The key of the algorithm's section."""

    policy: Read[PolicyConfig]
    """The model that is trained."""
    data: Read[DataConfig]
    """Rows of training and validation."""
    logger: Read[LoggerConfig]
    """Loggers."""
    cluster: ClusterConfig
    """GPUs of a NeMo-RL job."""
    checkpointing: Read[CheckpointingConfig]
    """Checkpoints."""

    @property
    def course(self) -> Course:
        """The algorithm's section."""
        found: Course = getattr(self, self.section)
        return found

    @property
    def rows_per_step(self) -> int:
        """Training rows that one step takes; fewer make no step at all."""
        return self.policy.train_global_batch_size

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of the policy in one step of the run."""
        return 1

    @property
    def validates(self) -> bool:
        """Whether the run measures anything on validation rows."""
        return bool(self.course.val_period or self.course.val_at_start or self.course.val_at_end)

    def steps_of_data(self, rows: int) -> int:
        """Steps after which the epochs over ``rows`` training rows end, whatever `max_num_steps` says."""
        return self.course.max_num_epochs * (rows // self.rows_per_step)

    def steps(self, rows: int) -> int:
        """Steps of a run with ``rows`` training rows; a limit below 1 (NeMo-RL's -1) counts as none.

        With dynamic sampling a step may take more rows, and the run ends sooner.
        """
        by_data, most = self.steps_of_data(rows), self.course.max_num_steps
        return by_data if most < 1 else min(most, by_data)
