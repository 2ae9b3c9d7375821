"""The config of the audit step; values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.config.schema.reward_audit import RewardAuditConfig


class Config(RewardAuditConfig):
    """A judge or a reward model, measured on labelled pairs."""
