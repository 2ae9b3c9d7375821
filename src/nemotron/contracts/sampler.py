"""Whatever draws responses from the policy: our own code in the training process, or a server fed with its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from nemotron.contracts.samples import Group, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

OnGroup = Callable[[int, Group], None]
"""Gets (prompt index, group) as soon as all responses of a prompt have ended, on the calling thread."""
Pass: TypeAlias = "Callable[[], Tensor]"
"""Gives the log-probabilities of responses [N,T] float32 under the weights that drew them, differentiable, once."""


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
        keep: bool = False,
    ) -> list[Group]:
        """Draw ``n`` responses to each prompt.

        Args:
            prompts: P lists of token ids, none empty.
            n: responses to each.
            params: how to draw.
            seeds: [P][n] non-negative integers below 2**64, one for each response: equal seeds draw equal responses
                where the sampler promises bitwise resume.
            on_group: told of every complete group before ``generate`` returns; groups may end in any order.
            keep: leave what ``take_pass`` gives, if the sampler can.

        Returns:
            One group per prompt, in order.

        Raises:
            DataError: an empty prompt, or one that leaves no room for ``max_new_tokens``.
            EngineError: the sampler cannot be reached.
        """

    def take_pass(self) -> Pass | None:
        """The pass through the policy that drew the last responses, for training on them, and forget it; None where
        nothing was kept."""

    def refresh(self) -> None:
        """Take over the weights of the policy: called after every update, before the next ``generate``.

        Raises:
            EngineError: the sampler cannot be reached.
        """
