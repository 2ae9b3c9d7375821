"""What the preflight knows of a GRPO job whose rewards can be verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nemotron.compile.grpo_job import AnyGrpoJob, GrpoJob
from nemotron.config.schema.verified import VerifiedGrpoConfig


@dataclass(frozen=True)
class VerifiedJob(GrpoJob[VerifiedGrpoConfig]):
    """GRPO with reward functions or resources servers."""

    reads: ClassVar[tuple[str, ...]] = (*AnyGrpoJob.reads, "rewards", "gym")

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """Least and greatest reward of the functions; a server may give anything."""
        rewards = self.config.rewards
        if rewards is None:
            return None
        weights = [function.weight for function in rewards.functions]
        return sum(min(weight, 0.0) for weight in weights), sum(max(weight, 0.0) for weight in weights)
