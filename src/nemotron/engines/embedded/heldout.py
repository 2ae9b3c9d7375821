"""The held-out metric of a run: the same prompts answered before and after training, checked by a program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice

from nemotron.config.schema.data import DataConfig
from nemotron.config.schema.extras import HeldoutConfig
from nemotron.contracts.heldout import Check
from nemotron.contracts.samples import SamplingParams
from nemotron.data.inputs import heldout_paths
from nemotron.data.rows import PromptRow, read_prompts
from nemotron.errors import RewardError
from nemotron.rewards import VERIFIERS, build_rewards, scorable
from nemotron.rewards.heldout import by_rewards, by_verifier
from nemotron.rl.chat import Chat
from nemotron.rl.evaluate import HeldOut, evaluate_heldout
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import PolicySampler

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
    max_missing_share: float = 0.05
    """Largest share of the answers that may stay unchecked."""

    @cached_property
    def rows(self) -> list[PromptRow]:
        """The first ``max_samples`` prompts that can be checked, or that are not said to be left out when they cannot.

        Raises:
            DataError: they cannot be read.
        """
        rows = chain.from_iterable(map(read_prompts, heldout_paths(self.data, self.config, verify=True)))
        rewards = self.config.rewards
        if rewards is None or rewards.unusable_rows == "refuse":
            return list(islice(rows, self.config.max_samples))
        return scorable(rewards, list(rows))[: self.config.max_samples]

    def measure(self, policy: Policy) -> HeldOut:
        """Answer the prompts and check the answers; the same seed draws with the same numbers every time.

        Raises:
            RewardError: too many answers could not be checked.
        """
        rewards = self.config.rewards
        if rewards is None:
            return self._measure(policy, by_verifier(VERIFIERS[self.config.verifier or "tiny_world"]))
        with build_rewards(rewards) as scorer:
            return self._measure(policy, by_rewards(scorer, rewards))

    def _measure(self, policy: Policy, check: Check) -> HeldOut:
        limit = self.config.max_new_tokens
        found = evaluate_heldout(
            PolicySampler(policy),
            self.chat,
            self.rows,
            check,
            self.sampling if limit is None else replace(self.sampling, max_new_tokens=limit),
            seed=self.seed,
            batch_size=HELDOUT_BATCH,
        )
        if found.missing > self.max_missing_share * len(self.rows):
            raise RewardError(
                f"{found.missing} of {len(self.rows)} held-out answers could not be checked, the limit is "
                f"{self.max_missing_share:.0%}",
                hint="see whether the held-out rows have what `eval.heldout.rewards` needs",
            )
        return found
