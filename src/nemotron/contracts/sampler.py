"""Whatever draws responses from the policy: our own code in the training process, or a server fed with its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from nemotron.contracts.samples import Group, SamplingParams

OnGroup = Callable[[int, Group], None]
"""Gets (prompt index, group) as soon as all responses of a prompt have ended, on the calling thread."""


class Sampler(Protocol):
    """Draws responses. Rollouts and held-out checks use nothing else of it."""

    @property
    def exact_logprobs(self) -> bool:
        """Whether the log-probabilities that come with a response are those of the trained weights, in the same
        arithmetic. Where they are not, they are compared with the policy's own now and then. The loss takes the
        policy's own as those before the update in any case."""

    def wait(self, tell: Callable[[str], None]) -> None:
        """Wait until it can draw; ``tell`` hears what it does meanwhile.

        Raises:
            EngineError: it cannot be started.
        """

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        seeds: Sequence[Sequence[int]],
        *,
        on_group: OnGroup | None = None,
    ) -> list[Group]:
        """Draw ``n`` responses to each prompt.

        Args:
            prompts: P lists of token ids, none empty.
            n: responses to each.
            params: how to draw.
            seeds: [P][n] non-negative integers below 2**64, one for each response: equal seeds draw equal responses
                where the sampler promises bitwise resume.
            on_group: told of every complete group before ``generate`` returns; groups may end in any order.

        Returns:
            One group per prompt, in order.

        Raises:
            DataError: an empty prompt, or one that leaves no room for ``max_new_tokens``.
            EngineError: the sampler cannot be reached.
        """

    def refresh(self) -> None:
        """Take over the weights of the policy: called after every update, before the next ``generate``.

        Raises:
            EngineError: the sampler cannot be reached.
        """
