"""The config of the RLVR step; ``steps show`` and the validation read it, values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.config.schema.verified import VerifiedGrpoConfig


class Config(VerifiedGrpoConfig):
    """GRPO with verifiable rewards."""
