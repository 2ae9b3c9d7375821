"""The config of the data preparation; ``steps show`` and the validation read it, values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.config.schema.data_prep import DataPrepConfig


class Config(DataPrepConfig):
    """Prompts or preferences in, verified shards and a manifest out."""
