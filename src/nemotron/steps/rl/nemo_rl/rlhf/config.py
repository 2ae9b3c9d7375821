"""The config of the RLHF step; ``steps show`` and the validation read it, values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.config.schema.extras import JudgedGrpoConfig


class Config(JudgedGrpoConfig):
    """GRPO with a generative reward judge."""
