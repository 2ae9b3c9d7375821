"""Whether a sampler in another process still is the policy: its log-probabilities beside the policy's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nemotron.errors import LimitError
from nemotron.rl.rollout import Sample


@dataclass(frozen=True, slots=True)
class SamplerCheck:
    """When they are compared, and how far they may be apart."""

    period: int
    """Steps from one comparison to the next."""
    max_gap: float
    """Largest mean difference of a token's log-probability, in nats."""

    def due(self, step: int, first: int) -> bool:
        """Whether to compare in ``step``.

        The ``first`` of an attempt is, and the one after it: the first with weights that were handed over in between.
        """
        return step <= first + 1 or step % self.period == 0

    def measure(self, samples: Sequence[Sample], step: int) -> dict[str, float]:
        """Mean and largest difference, in nats, of samples that have the policy's own; none without them.

        Tokens that top-k or top-p cut off in one of the two arithmetics say nothing, and are left out.

        Raises:
            LimitError: the mean is above ``max_gap``: these are not samples of the policy.
        """
        known = [(one.completion.logprobs, one.previous) for one in samples if one.previous is not None]
        if not known:
            return {}
        gaps = torch.cat([(torch.tensor(theirs) - ours).abs() for theirs, ours in known])
        gaps = gaps[gaps.isfinite()]
        mean, largest = (float(gaps.mean()), float(gaps.max())) if len(gaps) else (float("inf"), float("inf"))
        if mean > self.max_gap:
            raise LimitError(
                f"the sampler's log-probabilities are {mean:.3g} nats from the policy's in step {step}, on the mean of "
                f"all tokens; `sampler.max_gap` is {self.max_gap:g}",
                hint="compute both in one number type (`policy.precision=float32`), or sample with "
                "`sampler.server=embedded`; with a low precision that is meant, raise the limit",
            )
        return {"sampler/logprob_gap_mean": mean, "sampler/logprob_gap_max": largest}
