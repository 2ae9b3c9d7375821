"""The config of the DPO step; ``steps show`` and the validation read it, values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.config.schema.dpo import DpoRunConfig


class Config(DpoRunConfig):
    """Direct preference optimisation on pairs."""
