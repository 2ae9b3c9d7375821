"""The config of the reward model step; ``steps show`` and the validation read it, values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.config.schema.rm import RmRunConfig


class Config(RmRunConfig):
    """Bradley-Terry reward model."""
