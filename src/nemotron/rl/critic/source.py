"""The critic server as a source of rewards; with each reward come the values of the response's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

import torch
from torch import Tensor

from nemotron.contracts.rewards import GroupRewards, first_failure, missing_share
from nemotron.contracts.samples import Completion, Group
from nemotron.data.rows import PromptRow
from nemotron.errors import NemotronError, RewardError
from nemotron.processes.futures import then
from nemotron.rl.chat import Chat
from nemotron.rl.critic.wire import padded


class Critic(Protocol):
    """What the loop needs of ``CriticClient``."""

    def infer(self, tensors: dict[str, Tensor]) -> Future[dict[str, Tensor]]:
        """Values and rewards of rows."""
        ...

    def train(self, tensors: dict[str, Tensor]) -> Future[dict[str, float]]:
        """One update of the critic."""
        ...


class CriticSource:
    """Sends every complete group to the critic; ``GroupRewards.raw`` holds one [L] tensor of values per response."""

    def __init__(self, critic: Critic, chat: Chat) -> None:
        self._critic, self._chat = critic, chat

    def submit(
        self, source: PromptRow, texts: Sequence[str], completions: Sequence[Completion], *, seed: int
    ) -> Future[GroupRewards]:
        """Start scoring. The future raises EngineError when the critic is gone; nothing here draws numbers."""
        group = Group(self._chat.encode(source.messages, f"prompt {source.id}"), list(completions))
        return then(self._critic.infer(padded([group])), lambda answer: _rewards(group, answer))

    def metrics(self, results: Sequence[GroupRewards]) -> dict[str, float]:
        """The share of responses that the reward model could not score."""
        return {"reward_model/missing_share": missing_share(results)}

    def too_many_missing(self, results: Sequence[GroupRewards], step: int, limit: float) -> NemotronError:
        """What ends the run when the reward model leaves too many responses without a score."""
        return RewardError(
            f"{missing_share(results):.0%} of the rewards in step {step} are missing, the limit is {limit:.0%}: "
            f"{first_failure(results)}",
            hint="`limits.max_missing_share` is the limit",
        )


def _rewards(group: Group, answer: dict[str, Tensor]) -> GroupRewards:
    start = len(group.prompt_ids)
    values = [
        answer["values"][row, start : start + len(completion.token_ids)]
        for row, completion in enumerate(group.completions)
    ]
    return GroupRewards(
        rewards=answer["rewards"].tolist(),
        details=[{"value": round(float(value[-1]), 6)} for value in values],
        asked=len(values),
        missing=0,
        raw=values,
    )


def full_rows(groups: Sequence[Group], columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """An update request: [N,S] response tensors (``batch.py``) moved behind their prompts, with the tokens.

    Column t + 1 of a response tensor belongs to response token t.
    """
    rows = padded(list(groups))
    moved = {name: torch.zeros(rows["tokens"].shape) for name in columns}
    for i, (start, end) in enumerate(zip(rows["prompt_lengths"].tolist(), rows["lengths"].tolist(), strict=True)):
        for name, values in columns.items():
            moved[name][i, start:end] = values[i, 1 : end - start + 1]
    return {"tokens": rows["tokens"], **moved}
