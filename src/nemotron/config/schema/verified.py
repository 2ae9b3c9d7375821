"""The config of GRPO whose rewards can be verified: by programs in this project, or by servers of NeMo-Gym."""

from __future__ import annotations

from nemotron.config.schema.extras import GrpoRunConfig
from nemotron.config.schema.gym import GymConfig
from nemotron.config.schema.reads import Read
from nemotron.config.schema.rewards import RewardConfig


class VerifiedGrpoConfig(GrpoRunConfig):
    """NeMo-RL's tree and our sections; exactly one of ``rewards`` and ``gym`` gives the rewards."""

    rewards: Read[RewardConfig | None]
    """Reward functions; null where servers score."""
    gym: Read[GymConfig | None]
    """Resources servers that speak NeMo-Gym's protocol; null where functions score."""
