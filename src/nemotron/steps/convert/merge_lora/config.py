"""The config of the step; values are in ``config/*.yaml``."""

from __future__ import annotations

from typing import Literal

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import DiskPath, ModelName


class Config(Strict):
    """One adapter and its base model to one whole model."""

    adapter: DiskPath
    """The adapter: a folder with `adapter_config.json`, as a run with LoRA keeps it in `step_N/policy/adapter`."""
    base: ModelName | None
    """The model that it was trained on: a folder, or a name on the Hugging Face hub; null takes the one that the
    adapter names."""
    output_dir: DiskPath
    """The Hugging Face folder to write."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    """Cast the weights to this; `auto` keeps that of the base model."""
    verify: Literal["weights", "none"]
    """Before the result appears: `weights` reads all of it back and compares bit for bit, `none` trusts the disk."""
    overwrite: bool
    """Replace what is in `output_dir`; without it a folder that holds something is an error."""
