"""The sections that every algorithm of NeMo-RL v0.7.0 has."""

from __future__ import annotations

from nemotron.config.schema.base import Strict
from nemotron.config.schema.checkpointing import CheckpointingConfig
from nemotron.config.schema.cluster import ClusterConfig
from nemotron.config.schema.data import DataConfig
from nemotron.config.schema.logger import LoggerConfig
from nemotron.config.schema.policy import PolicyConfig


class TrainingConfig(Strict):
    """A training job; each algorithm adds its own sections."""

    policy: PolicyConfig
    """The model that is trained."""
    data: DataConfig
    """Rows of training and validation."""
    logger: LoggerConfig
    """Loggers."""
    cluster: ClusterConfig
    """GPUs of a NeMo-RL job."""
    checkpointing: CheckpointingConfig
    """Checkpoints."""
