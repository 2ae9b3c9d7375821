"""``checkpointing``: when a checkpoint is written, what it holds, and which ones are kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import DiskPath, Omittable, of_form
from nemotron.config.schema.reads import Read

_BUDGET = "`DD:HH:MM:SS`, as `00:03:30:00` for three and a half hours"


class PretrainedCheckpointConfig(Strict):
    """Megatron weights to start from instead of converting the Hugging Face model."""

    path: Read[DiskPath]
    """Folder of the checkpoint."""
    format: Literal["megatron_bridge", "megatron_lm"]
    """Which program wrote it."""


class CheckpointingConfig(Strict):
    """Checkpoints are written to ``tmp_step_N``, then renamed to ``step_N``: never half a checkpoint."""

    enabled: Read[bool]
    """Write checkpoints at all."""
    checkpoint_dir: Read[DiskPath]
    """Folder that receives ``step_N``; a run resumes from the highest N found here."""
    save_period: Read[int]
    """Steps between checkpoints; the last step is always saved."""
    metric_name: Read[str | None]
    """Metric that ranks checkpoints, ``val:<name>`` or ``train:<name>``; null ranks by age."""
    higher_is_better: Read[bool]
    """Whether a larger value of the metric is the better one."""
    keep_top_k: Read[int | None] = None
    """Checkpoints that are kept by rank; the newest is kept in addition. Left out or null keeps all."""
    save_optimizer: Omittable[bool] = None
    """Store the optimizer state too, without which a resumed run starts with a fresh optimizer. Left out means true."""
    save_consolidated: Read[Omittable[bool]] = None
    """DTensor: add plain Hugging Face weights beside the sharded ones."""
    model_save_format: str | None = None
    """DTensor v2: ``safetensors`` or ``torch_save``; DTensor v1 needs null."""
    checkpoint_must_save_by: Read[Annotated[str, of_form(r"^\d+:\d{2}:\d{2}:\d{2}$", _BUDGET)] | None] = None
    """Time budget of the training loop as ``DD:HH:MM:SS``; near its end the run saves once and stops cleanly."""
    is_async: Omittable[bool] = None
    """Write the checkpoint in the background while training goes on (Automodel)."""
    is_peft: Omittable[bool] = None
    """Save only the LoRA adapters."""
    peft_config: Any = None
    """Adapter settings stored next to the adapters."""
    model_cache_dir: Omittable[str] = None
    """Where the base model was downloaded to, needed to find its original weights."""
    model_repo_id: Omittable[str] = None
    """Hugging Face name of the base model that is recorded in the checkpoint."""
    pretrained_checkpoint: Omittable[PretrainedCheckpointConfig] = None
    """Start from Megatron weights."""
