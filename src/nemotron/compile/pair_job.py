"""What the preflight knows of a job that learns from preference pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

from nemotron.compile.estimate import Work, steps, steps_of_data
from nemotron.compile.job import Job
from nemotron.compile.survey import RowKind
from nemotron.config.schema.training import TrainingConfig

T = TypeVar("T", bound=TrainingConfig, covariant=True)
PAIR_READS = (
    "data.add_bos",
    "data.add_eos",
    "data.max_input_seq_length",
    *(f"data.{role}.{key}_key" for role in ("train", "validation") for key in ("prompt", "chosen", "rejected")),
)
"""Keys of preference data that the embedded engine reads."""


@dataclass(frozen=True)
class PairJob(Job[T]):
    """Training on pairs. All batch sizes count pairs."""

    row_kind: ClassVar[RowKind] = "preference"
    metrics: ClassVar[tuple[str, ...]] = ()
    """What is measured on every validation set."""

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """NeMo-RL's names, for every validation set."""
        sets = self.config.data.named_validation_sets()
        return tuple(f"validation-{name}_{metric}" for name in sets for metric in self.metrics)


def pair_work(job: PairJob[TrainingConfig]) -> Work:
    """Sizes of the run."""
    pairs = job.config.policy.train_global_batch_size
    return Work(
        batch=f"{pairs} pairs",
        pairs=pairs,
        updates=1,
        steps=steps(job),
        data_steps=steps_of_data(job),
        tokens_per_step=2 * pairs * job.config.policy.max_total_sequence_length,
    )
