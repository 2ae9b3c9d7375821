"""What the preflight knows of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nemotron.compile.jobs import measured
from nemotron.compile.jobs.rows import RowJob
from nemotron.compile.plan import Work
from nemotron.compile.probes.survey import RowKind
from nemotron.config.schema.sft import SftRunConfig


@dataclass(frozen=True)
class SftJob(RowJob[SftRunConfig]):
    """Supervised fine-tuning on conversations."""

    row_kind: ClassVar[RowKind] = "conversation"
    policy_does: ClassVar[str] = "learns the answers of the conversations"

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """NeMo-RL's name."""
        return ("val_loss",)

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """What a step measures."""
        return measured.SFT

    def work(self) -> Work:
        """Sizes of the run."""
        rows = self.config.policy.train_global_batch_size
        return Work(
            batch=f"{rows} conversations",
            updates=1,
            steps=self.steps,
            data_steps=self.data_steps,
            tokens_per_step=rows * self.config.policy.max_total_sequence_length,
        )
