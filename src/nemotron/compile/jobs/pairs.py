"""What the preflight knows of a job that learns from preference pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from nemotron.compile.jobs import measured
from nemotron.compile.jobs.rows import RowJob
from nemotron.compile.plan import Work
from nemotron.compile.probes.model_files import read_model
from nemotron.compile.probes.survey import RowKind
from nemotron.config.schema.dpo import DpoRunConfig
from nemotron.config.schema.pairs import PairTrainingConfig
from nemotron.config.schema.rm import RmRunConfig

T = TypeVar("T", bound=PairTrainingConfig, covariant=True)


@dataclass(frozen=True)
class PairJob(RowJob[T]):
    """Training on pairs. All batch sizes count pairs."""

    row_kind: ClassVar[RowKind] = "preference"
    packs_rows: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ()
    """What is measured on every validation set."""
    step_metrics: ClassVar[tuple[str, ...]] = ()
    """What is measured in every step."""

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """NeMo-RL's names, for every validation set."""
        sets = self.config.data.named_validation_sets()
        return tuple(f"validation-{name}_{metric}" for name in sets for metric in self.metrics)

    def missing_in_nemo_rl(self) -> Iterator[tuple[str, str, str]]:
        """Pairs without their first or last token: its processor of pairs takes neither switch."""
        yield from super().missing_in_nemo_rl()
        for name, token in (("add_bos", "BOS"), ("add_eos", "EOS")):
            if getattr(self.config.data, name) is False:
                message = f"NeMo-RL adds the {token} token to every pair where the template does not"
                yield f"data.{name}", message, "leave it out, or run with `engine=embedded`"

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

    policy_does: ClassVar[str] = "scores pairs and trains"
    metrics: ClassVar[tuple[str, ...]] = (
        *("loss", "preference_loss", "sft_loss", "accuracy", "margin", "num_valid_samples"),
        *("rewards_chosen_mean", "rewards_rejected_mean", "logps_chosen_mean", "logps_rejected_mean"),
    )
    step_metrics: ClassVar[tuple[str, ...]] = measured.DPO


@dataclass(frozen=True)
class RmJob(PairJob[RmRunConfig]):
    """Training a reward model."""

    policy_does: ClassVar[str] = "trains the reward model"
    heldout_kind: ClassVar[RowKind] = "preference"
    trains_reward_model: ClassVar[bool] = True
    whole_micro_batches: ClassVar[bool] = True
    steps_may_be_endless: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = (
        *("loss", "accuracy", "margin", "rewards_chosen_mean", "rewards_rejected_mean", "num_valid_samples"),
    )
    step_metrics: ClassVar[tuple[str, ...]] = measured.REWARD_MODEL

    @property
    def saves_megatron(self) -> bool:
        """Megatron-Core's format has no place for the head."""
        return False

    def changes(self) -> dict[str, Any]:
        """A head with one output, and what the rewards of the training pairs are like."""
        model = read_model(self.config.policy.model_name, self.place)
        kinds = (model.config.get("architectures") if model else None) or ["ForCausalLM"]
        names = [str(kind).replace("ForCausalLM", "ForSequenceClassification") for kind in kinds]
        measured = {"reward_mean": 0.0, "reward_std": 1.0} if self.engine == "embedded" else {}
        return {"architectures": names, "num_labels": 1, **measured}

    def missing_in_nemo_rl(self) -> Iterator[tuple[str, str, str]]:
        """Margin and centring are ours."""
        yield from super().missing_in_nemo_rl()
        section = self.config.bradley_terry
        for name in ("margin_key", "center_rewards_coefficient"):
            if getattr(section, name):
                yield f"bradley_terry.{name}", f"NeMo-RL has no `{name}`", "leave it out, or run with `engine=embedded`"
