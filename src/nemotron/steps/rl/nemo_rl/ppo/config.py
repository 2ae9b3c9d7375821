"""The config of the PPO step; ``steps show`` and the validation read it, values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.config.schema.ppo import PpoMasterConfig


class Config(PpoMasterConfig):
    """PPO with a trained reward model and a critic."""
