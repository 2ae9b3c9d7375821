"""The config of the step; values are in ``config/*.yaml``."""

from __future__ import annotations

from typing import Literal

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import DiskPath, ModelName


class Config(Strict):
    """One Megatron checkpoint to one Hugging Face model."""

    megatron_path: DiskPath
    """The checkpoint: an `iter_*` folder, a root with `latest_checkpointed_iteration.txt`, or a NeMo-RL `step_N`."""
    output_dir: DiskPath
    """The Hugging Face folder to write."""
    hf_model: ModelName | None
    """The same model on Hugging Face (folder or hub name), for config and tokenizer where the checkpoint has none;
    null takes them from the checkpoint."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    """Cast the weights to this; `auto` keeps them bit for bit."""
    verify: Literal["weights", "logits", "none"]
    """Before the result appears: `weights` reads all of it back and compares bit for bit, `logits` compares what both
    models compute on random tokens (both are loaded, one after the other, in float32), `none` trusts the disk."""
    overwrite: bool
    """Replace what is in `output_dir`; without it a folder that holds something is an error."""
