"""The parts of algorithms that sample answers to prompts: the prompts in their order, validation, held-out metric."""

from __future__ import annotations

from functools import cached_property
from typing import TypeVar

from nemotron.config.schema.extras import HeldoutConfig
from nemotron.config.schema.rewards import RewardConfig
from nemotron.config.schema.training import TrainingConfig
from nemotron.config.schema.verified import VerifiedGrpoConfig
from nemotron.data.inputs import origin_of, training_prompts
from nemotron.data.rows import PromptRow
from nemotron.data.stream import PromptStream
from nemotron.engines.embedded.heldout import HeldoutMetric
from nemotron.engines.embedded.parts import TrainingParts
from nemotron.errors import DataError
from nemotron.rewards import scorable
from nemotron.runs.health import Bounds, Watch
from nemotron.runs.metrics import by_step

C = TypeVar("C", bound=TrainingConfig, covariant=True)


class PromptParts(TrainingParts[C]):
    """The parts of an algorithm that samples answers to prompts."""

    @cached_property
    def prompts(self) -> list[PromptRow]:
        """The training prompts as they lie on disk; those that cannot be scored may be left out. Raises DataError when
        rows are missing or broken."""
        return scorable(_rewards(self.config), training_prompts(self.config.data, "train"))

    @property
    def watch(self) -> Watch:
        """Minds `limits`, having seen what earlier attempts did; rows after the checkpoint are gone already."""
        rows = by_step(self.attempt.run.read_metrics())
        return Watch(Bounds.of(getattr(self.config, "limits", None)), rows)


def _rewards(config: TrainingConfig) -> RewardConfig | None:
    return config.rewards if isinstance(config, VerifiedGrpoConfig) else None


def prompt_stream(parts: TrainingParts[TrainingConfig], prompts: list[PromptRow], *, batch_key: str) -> PromptStream:
    """The training prompts in their order.

    A prompt that leaves no room for an answer, or that NeMo-RL would mask, is refused now and not by the step that
    meets it.

    Raises:
        DataError: too few rows, or one that is too long, or that the chat template refuses.
    """
    config, longest = parts.config, parts.config.policy.max_total_sequence_length
    bound = config.data.max_input_seq_length
    size, seed = config.rows_per_step, config.course.seed
    stream = PromptStream(prompts, size, seed, config.data.shuffle, batch_key=batch_key)
    answer = parts.sampling.max_new_tokens
    for row in stream.upcoming(config.steps(len(prompts)) * size):
        length = len(parts.chat.encode(row.messages, f"prompt {row.id}"))
        if length > longest - answer:
            raise DataError(
                f"prompt {row.id} has {length} tokens; with {answer} new ones it exceeds "
                f"`policy.max_total_sequence_length` ({longest})",
                hint="drop or shorten it, or raise the limit",
                origin=origin_of(config.data, "train", row.id),
            )
        if bound is not None and length > bound:
            raise DataError(
                f"prompt {row.id} has {length} tokens, more than `data.max_input_seq_length` ({bound}): NeMo-RL would "
                "cut it and learn nothing from it",
                hint="drop or shorten it, or raise the limit",
                origin=origin_of(config.data, "train", row.id),
            )
    return stream


def validation_prompts(config: TrainingConfig, most: int | None) -> list[PromptRow]:
    """As many validation prompts as one validation uses, ``most`` or all; none when nothing is validated.

    Raises:
        DataError: rows are missing or broken.
    """
    return scorable(_rewards(config), training_prompts(config.data, "validation"))[:most] if config.validates else []


def heldout_metric(
    parts: TrainingParts[TrainingConfig], wanted: HeldoutConfig | None, seed: int, max_missing_share: float = 0.05
) -> HeldoutMetric | None:
    """The metric of `eval.heldout`; ``None`` without one. Raises ConfigError without `policy.generation`."""
    if wanted is None:
        return None
    return HeldoutMetric(wanted, parts.config.data, parts.chat, parts.sampling, seed, max_missing_share)
