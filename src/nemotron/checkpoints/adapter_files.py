"""What an adapter folder says about itself, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron.disk.documents import read_object
from nemotron.errors import ArtifactError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FIRST, _SECOND, _PREFIX = ".lora_A.weight", ".lora_B.weight", "base_model.model."
Shapes = Mapping[str, tuple[int, ...]]
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


def not_a_model(folder: Path) -> tuple[str, str] | None:
    """Why a folder with an adapter in it is not taken for a model: a clause about the folder, and what to do.

    transformers applies an adapter that lies beside a whole model, and freezes that model.
    """
    if not (folder / CONFIG).is_file():
        return None
    if is_adapter(folder):
        merge = f"`nemotron steps run convert/merge_lora adapter={folder} base=MODEL output_dir=FOLDER`"
        return "is an adapter (PEFT, LoRA), not a whole model", f"{merge} makes one"
    return (
        f"holds a whole model and an adapter (PEFT, LoRA: `{CONFIG}`), which would be applied to it",
        f"remove `{CONFIG}` and `{WEIGHTS}` from it where the adapter is not meant; else move both into a folder of "
        "their own and merge them with `nemotron steps run convert/merge_lora`",
    )


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


def weights_file(folder: Path) -> Path:
    """The file with an adapter's matrices. Raises ArtifactError: there is none, or it is a pickle."""
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise ArtifactError(
            f"the adapter `{folder}` has no `{WEIGHTS}`" + ("; its weights are a pickle" if pickled else ""),
            hint="load it with peft and save it again, which writes safetensors" if pickled else "copy it again",
        )
    return folder / WEIGHTS


def pairs(folder: Path, config: Mapping[str, Any], shapes: Shapes) -> dict[str, tuple[str, str]]:
    """Names of the two matrices of every weight that is adapted, by the weight's name in the model.

    Args:
        shapes: of all tensors of the adapter.

    Raises:
        ArtifactError: something in it is no such matrix, one of two is missing, or they are not of the config's rank.
    """
    strange = [name for name in shapes if not name.endswith((_FIRST, _SECOND))]
    if strange:
        raise ArtifactError(
            f"the adapter `{folder}` holds `{strange[0]}`, which is no part of a language model's adapter",
            hint="of a reward model take the whole model beside it, `policy/weights/hf`",
        )
    found = {}
    for stem in dict.fromkeys(name.removesuffix(_FIRST).removesuffix(_SECOND) for name in shapes):
        first, second = f"{stem}{_FIRST}", f"{stem}{_SECOND}"
        for name in (first, second):
            if len(shapes.get(name, ())) != 2:
                raise ArtifactError(f"the adapter `{folder}` is incomplete: it lacks `{name}`", hint="copy it again")
        for rank in (shapes[first][0], shapes[second][1]):
            if rank != config["r"]:
                raise ArtifactError(
                    f"the adapter `{folder}` has `{stem}` of rank {rank}, its config says `r: {config['r']}`",
                    hint="config and weights are of two adapters: copy it again",
                )
        found[f"{stem.removeprefix(_PREFIX)}.weight"] = (first, second)
    if not found:
        raise ArtifactError(f"the adapter `{folder}` adapts nothing", hint="copy it again")
    return found


def check_fit(folder: Path, found: Mapping[str, tuple[str, str]], shapes: Shapes, base: Shapes) -> None:
    """Raises ArtifactError where what ``pairs`` found is not for the model whose weights have the shapes ``base``."""
    for name, (first, second) in found.items():
        meant, shape = (shapes[second][0], shapes[first][1]), base.get(name)
        if shape != meant:
            has = "has no such weight" if shape is None else f"has {' x '.join(map(str, shape))}"
            raise ArtifactError(
                f"the adapter `{folder}` is not of this model: it adapts `{name}` with {meant[0]} x {meant[1]}, "
                f"the model {has}",
                hint="name the model that it was trained on as `base`",
            )
