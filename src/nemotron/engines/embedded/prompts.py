"""The parts of algorithms that sample answers to prompts: the prompts in their order, validation, held-out metric."""

from __future__ import annotations

from typing import Protocol

from nemotron.config.schema.data import DataConfig
from nemotron.config.schema.extras import HeldoutConfig
from nemotron.config.schema.training import TrainingConfig
from nemotron.data.inputs import training_prompts
from nemotron.data.rows import PromptRow
from nemotron.data.stream import PromptStream
from nemotron.engines.embedded.heldout import HeldoutMetric
from nemotron.engines.embedded.parts import TrainingParts
from nemotron.errors import DataError


class Course(Protocol):
    """What the algorithm's section says of prompts and validation."""

    @property
    def max_num_steps(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def val_period(self) -> int: ...
    @property
    def val_at_start(self) -> bool: ...
    @property
    def val_at_end(self) -> bool: ...
    @property
    def max_val_samples(self) -> int | None: ...


def prompt_stream(
    parts: TrainingParts[TrainingConfig], course: Course, *, batch_size: int, batch_key: str
) -> PromptStream:
    """The training prompts in their order.

    A prompt that leaves no room for an answer is refused now, not in the step that meets it.

    Raises:
        DataError: rows are missing, broken, too few or too long.
    """
    data, longest = parts.config.data, parts.config.policy.max_total_sequence_length
    stream = PromptStream(training_prompts(data, "train"), batch_size, course.seed, data.shuffle, batch_key=batch_key)
    answer = parts.sampling.max_new_tokens
    for row in stream.upcoming(course.max_num_steps * batch_size):
        length = len(parts.chat.encode(row.messages))
        if length > longest - answer:
            raise DataError(
                f"prompt {row.id} has {length} tokens; with {answer} new ones it exceeds "
                f"`policy.max_total_sequence_length` ({longest})",
                hint="drop or shorten it, or raise the limit",
            )
    return stream


def validation_prompts(data: DataConfig, course: Course) -> list[PromptRow]:
    """As many validation prompts as one validation uses; none when nothing is validated. Raises DataError."""
    if not (course.val_period or course.val_at_start or course.val_at_end):
        return []
    return training_prompts(data, "validation")[: course.max_val_samples]


def heldout_metric(
    parts: TrainingParts[TrainingConfig], wanted: HeldoutConfig | None, seed: int, max_missing_share: float = 0.05
) -> HeldoutMetric | None:
    """The metric of `eval.heldout`; ``None`` without one. Raises ConfigError without `policy.generation`."""
    if wanted is None:
        return None
    return HeldoutMetric(wanted, parts.config.data, parts.chat, parts.sampling, seed, max_missing_share)
