"""The order in which rows reach the training: seeded, resumable, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar

from nemotron.data.rows import PromptRow
from nemotron.errors import DataError

R = TypeVar("R")


class StreamState(TypedDict):
    """Position in the data: whole epochs done, and rows taken in the current one."""

    epoch: int
    index: int


@dataclass
class RowStream(Generic[R]):
    """Batches of rows, epoch after epoch; a rest smaller than a batch is dropped (NeMo-RL's ``drop_last``).

    Raises:
        DataError: fewer rows than one batch, which upstream turns into zero steps and a clean exit.
    """

    rows: Sequence[R]
    batch_size: int
    seed: int
    shuffle: bool
    epoch: int = 0
    index: int = 0
    kind: str = "prompts"
    """What the rows are, for messages."""
    batch_key: str = "grpo.num_prompts_per_step"
    """The config key of the batch size, for messages."""

    def __post_init__(self) -> None:
        if len(self.rows) < self.batch_size:
            raise DataError(
                f"{len(self.rows)} {self.kind} are fewer than one batch of {self.batch_size}",
                hint=f"add rows, or lower `{self.batch_key}`",
            )
        self._order = self._permutation()

    @property
    def next_epoch(self) -> int:
        """The pass over the data, from 0, that the next batch belongs to."""
        return self.epoch + (self.index + self.batch_size > len(self.rows))

    def next_batch(self) -> list[R]:
        """The next ``batch_size`` rows."""
        if self.next_epoch != self.epoch:
            self.epoch, self.index = self.next_epoch, 0
            self._order = self._permutation()
        chosen = self._order[self.index : self.index + self.batch_size]
        self.index += self.batch_size
        return [self.rows[i] for i in chosen]

    def upcoming(self, rows: int) -> list[R]:
        """The next ``rows`` rows of this pass, without moving on; all that are left when there are fewer."""
        return [self.rows[i] for i in self._order[self.index : self.index + rows]]

    def state_dict(self) -> StreamState:
        """What a checkpoint must keep."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: StreamState) -> None:
        """Go back to a saved position."""
        self.epoch, self.index = state["epoch"], state["index"]
        self._order = self._permutation()

    def _permutation(self) -> list[int]:
        order = list(range(len(self.rows)))
        if self.shuffle:
            # A string seed is hashed with SHA-512 by `random`, so the order is the same in every process.
            random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        return order


PromptStream = RowStream[PromptRow]
