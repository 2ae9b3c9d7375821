"""The config of the step; values are in ``config/*.yaml``."""

from __future__ import annotations

from typing import Literal

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import DiskPath, ModelName


class Config(Strict):
    """One Hugging Face model to one Megatron checkpoint."""

    hf_model: ModelName
    """The model to convert: a folder with `config.json` and safetensors, or a name on the Hugging Face hub."""
    output_dir: DiskPath
    """The Megatron root to write: `iter_0000000` and the files that name it."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    """Cast the weights to this; `auto` keeps them bit for bit."""
    verify: Literal["weights", "logits", "none"]
    """Before the result appears: `weights` reads all of it back and compares bit for bit, `logits` compares what both
    models compute on random tokens (both are loaded, one after the other, in float32), `none` trusts the disk."""
    overwrite: bool
    """Replace what is in `output_dir`; without it a folder that holds something is an error."""
