"""Dynamic sampling (DAPO): train only on responses whose group has something to tell apart.

Responses of a group with equal rewards have zero advantage and only thin out the batch. They are dropped, and further
prompts are generated until the batch is full again.

Whole groups are kept or dropped. NeMo-RL v0.7.0 asks each row for its own std, which with a leave-one-out baseline
leaves the row itself out: the one response that differs from all others of its group has 0 and goes, and its equal
siblings, which then have nothing to differ from, stay (NVIDIA-NeMo/RL#3469). `group_spread` and `Sample.std` are the
two ways to ask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nemotron.errors import EngineError

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Selection(Generic[Row]):
    """The state of the batch after a generation batch has been added."""

    rows: tuple[Row, ...]
    """Surviving rows so far; exactly the batch to train on when ``complete``."""
    rewards: tuple[float, ...]
    """Rewards before filtering of the generation batches that had survivors, at most one batch of them when
    ``complete``: their mean is the reported reward. Of this generation batch alone when nothing of it survived."""
    complete: bool
    num_gen_batches: int
    """Generation batches used for this training batch so far."""
    num_discarded: int | None
    """Survivors beyond the batch size, thrown away; ``None`` until complete."""


def group_spread(rewards: Tensor, valid: Tensor, size: int) -> Tensor:
    """Largest minus smallest valid reward of each row's group [N]: ``size`` neighbours each; ``valid`` is bool."""
    grouped, counts = rewards.view(-1, size), valid.view(-1, size)
    most = torch.where(counts, grouped, -math.inf).amax(1)
    least = torch.where(counts, grouped, math.inf).amin(1)
    return torch.where(counts.any(1), most - least, 0.0).repeat_interleave(size)


class DynamicSampler(Generic[Row]):
    """Collects surviving rows over generation batches until one training batch is full, then starts afresh.

    Example: ``DynamicSampler(target_rows=128, max_gen_batches=10)``, then ``add`` until ``.complete``.
    """

    def __init__(self, target_rows: int, max_gen_batches: int) -> None:
        self._target = target_rows
        self._max_batches = max_gen_batches
        self._start_afresh()

    def add(self, rows: Sequence[Row], std: Tensor, rewards: Tensor) -> Selection[Row]:
        """Keep the rows whose ``std`` [N] is not 0; `group_spread` makes these whole groups.

        Raises ``EngineError`` when the batch is still not full after more than ``max_gen_batches`` generation batches.
        """
        self._num_batches += 1
        survivors = [row for row, spread in zip(rows, std.tolist(), strict=True) if spread != 0]
        self._rows += survivors
        if survivors:
            self._rewards += rewards.tolist()
        count = self._num_batches
        if len(self._rows) < self._target:
            if count > self._max_batches:
                raise EngineError(
                    f"dynamic sampling found {len(self._rows)} of {self._target} responses "
                    f"with differing rewards in {count} generation batches",
                    hint="use prompts of mixed difficulty, raise `grpo.num_generations_per_prompt`, "
                    "or raise `grpo.dynamic_sampling_max_gen_batches`",
                )
            shown = self._rewards if survivors else rewards.tolist()
            return Selection(tuple(self._rows), tuple(shown), False, count, None)
        full = Selection(
            rows=tuple(self._rows[: self._target]),
            rewards=tuple(self._rewards[: self._target]),
            complete=True,
            num_gen_batches=count,
            num_discarded=len(self._rows) - self._target,
        )
        self._start_afresh()
        return full

    def _start_afresh(self) -> None:
        self._rows: list[Row] = []
        self._rewards: list[float] = []
        self._num_batches = 0
