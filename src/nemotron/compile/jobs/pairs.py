"""What the preflight knows of a job that learns from preference pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from nemotron.compile.jobs import measured
from nemotron.compile.jobs.base import COMMON_READS, SAMPLING_READS, Job, Portion
from nemotron.compile.plan import Work
from nemotron.compile.probes.survey import RowKind
from nemotron.config.schema.dpo import DpoRunConfig
from nemotron.config.schema.rm import RmRunConfig
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
    step_metrics: ClassVar[tuple[str, ...]] = ()
    """What is measured in every step."""

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """NeMo-RL's names, for every validation set."""
        sets = self.config.data.named_validation_sets()
        return tuple(f"validation-{name}_{metric}" for name in sets for metric in self.metrics)

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """What a step on pairs measures."""
        return self.step_metrics

    def work(self) -> Work:
        """Sizes of the run."""
        pairs = self.config.policy.train_global_batch_size
        return Work(
            batch=f"{pairs} pairs",
            pairs=pairs,
            updates=1,
            steps=self.steps,
            data_steps=self.data_steps,
            tokens_per_step=2 * pairs * self.config.policy.max_total_sequence_length,
        )


@dataclass(frozen=True)
class DpoJob(PairJob[DpoRunConfig]):
    """DPO on preference pairs."""

    section: ClassVar[str] = "dpo"
    policy_does: ClassVar[str] = "scores pairs and trains"
    reads: ClassVar[tuple[str, ...]] = (*COMMON_READS, *SAMPLING_READS, *PAIR_READS, "dpo")
    metrics: ClassVar[tuple[str, ...]] = (
        *("loss", "preference_loss", "sft_loss", "accuracy", "margin", "num_valid_samples"),
        *("rewards_chosen_mean", "rewards_rejected_mean", "logps_chosen_mean", "logps_rejected_mean"),
    )
    step_metrics: ClassVar[tuple[str, ...]] = measured.DPO

    def portions(self) -> Iterator[Portion]:
        """As everywhere, and those of validation."""
        yield from super().portions()
        dpo = self.config.dpo
        whole = f"`dpo.val_global_batch_size` {dpo.val_global_batch_size}"
        yield Portion("dpo.val_micro_batch_size", dpo.val_micro_batch_size, whole, dpo.val_global_batch_size)

    @property
    def validates(self) -> bool:
        """Whether the run measures anything on validation pairs."""
        dpo = self.config.dpo
        return bool(dpo.val_period or dpo.val_at_start or dpo.val_at_end)


@dataclass(frozen=True)
class RmJob(PairJob[RmRunConfig]):
    """Training a reward model."""

    section: ClassVar[str] = "rm"
    policy_does: ClassVar[str] = "trains the reward model"
    heldout_kind: ClassVar[RowKind] = "preference"
    reads: ClassVar[tuple[str, ...]] = (
        *COMMON_READS,
        "bradley_terry",
        *PAIR_READS,
        "data.use_tokens",
        "policy.reward_model_cfg",
        "rm",
    )
    trains_reward_model: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = (
        *("loss", "accuracy", "margin", "rewards_chosen_mean", "rewards_rejected_mean", "num_valid_samples"),
    )
    step_metrics: ClassVar[tuple[str, ...]] = measured.REWARD_MODEL

    def portions(self) -> Iterator[Portion]:
        """None: the rule `micro-batch` asks for more than that, whole micro-batches."""
        return iter(())
