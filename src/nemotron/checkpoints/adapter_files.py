"""What an adapter folder says about itself, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron.disk.documents import read_object
from nemotron.errors import ArtifactError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OFF: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "lora_bias": (False, None),
    "layer_replication": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "megatron_config": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
}
"""Values that mean a plain adapter."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The config of a plain LoRA adapter.

    Raises:
        ArtifactError: there is none, or it is of another kind (by name).
    """
    try:
        found = read_object(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"`{folder}` is no adapter: no readable `{CONFIG}`",
            hint="of a run it is `checkpoints/step_N/policy/adapter`",
        ) from error
    for key, plain in _OFF.items():
        if found.get(key, plain[0]) not in plain:
            raise ArtifactError(
                f"the adapter `{folder}` has `{key}: {found[key]}`, which is not merged here",
                hint="merge it with peft: `PeftModel.from_pretrained(...).merge_and_unload()`",
            )
    rank, alpha = found.get("r"), found.get("lora_alpha")
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)):
        raise ArtifactError(
            f"`{folder / CONFIG}` has no rank `r` and scale `lora_alpha`", hint="copy the adapter again"
        )
    return found
