"""The held-out metric of a run: the same prompts answered before and after training, checked by a program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice

from nemotron.config.schema.data import DataConfig
from nemotron.config.schema.extras import HeldoutConfig
from nemotron.data.inputs import heldout_paths
from nemotron.data.rows import PromptRow, read_prompts
from nemotron.rewards import VERIFIERS
from nemotron.rl.chat import Chat
from nemotron.rl.evaluate import HeldOut, evaluate_heldout
from nemotron.rl.policy import Policy
from nemotron.rl.types import SamplingParams

HELDOUT_BATCH = 256
"""Held-out prompts answered at a time: large enough that a step of the sampler is all arithmetic."""


@dataclass(frozen=True)
class HeldoutMetric:
    """What `eval.heldout` asks for."""

    config: HeldoutConfig
    data: DataConfig
    """Holds the manifest that `eval.heldout.split` is a split of."""
    chat: Chat
    sampling: SamplingParams
    seed: int

    @cached_property
    def rows(self) -> list[PromptRow]:
        """The first ``max_samples`` prompts. Raises DataError when they cannot be read."""
        paths = heldout_paths(self.data, self.config, verify=True)
        return list(islice(chain.from_iterable(map(read_prompts, paths)), self.config.max_samples))

    def measure(self, policy: Policy) -> HeldOut:
        """Answer the prompts and check the answers; the same seed draws with the same numbers every time."""
        limit = self.config.max_new_tokens
        return evaluate_heldout(
            policy,
            self.chat,
            self.rows,
            VERIFIERS[self.config.verifier],
            self.sampling if limit is None else replace(self.sampling, max_new_tokens=limit),
            seed=self.seed,
            batch_size=HELDOUT_BATCH,
        )
