"""What a Megatron checkpoint is: model, dtype, names of its tensors; everything but the data (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nemotron.checkpoints.megatron import families, layout, run_config
from nemotron.checkpoints.megatron.families import ModelShape, refuse
from nemotron.checkpoints.megatron.index import Index, Stored, read_index
from nemotron.checkpoints.megatron.names import EMBEDDING, LAYERS, OUTPUT, Part, Weight, hf_parts, weights
from nemotron.checkpoints.megatron.records import read_object
from nemotron.disk.documents import read_bytes
from nemotron.disk.documents import read_object as read_json_object
from nemotron.disk.faults import reason
from nemotron.errors import ArtifactError

HF_CONFIG = Path(layout.SIDECAR) / "config.json"
"""The Hugging Face config that the checkpoint came from."""
_PREFIXES = ("", "module.", "model.", "model.module.")
_NOT_WEIGHTS = ("optimizer.", "rng_state", "rerun_state", "common_state", "chained_", "opt_param_scheduler")
_FOREIGN = {
    ".experts.": "mixture of experts (MoE) is",
    ".router.": "mixture of experts (MoE) is",
    ".linear_kv_down_proj": "multi-head latent attention (MLA) is",
    ".linear_kv_up_proj": "multi-head latent attention (MLA) is",
    ".mixer.": "a hybrid or Mamba model is",
    ".adapter": "an adapter (PEFT, LoRA) is",
    ".lora_": "an adapter (PEFT, LoRA) is",
    "mtp.": "multi-token prediction is",
    "vision_": "a vision model is",
}


@dataclass(frozen=True)
class Checkpoint:
    """A described checkpoint."""

    folder: Path
    """The iteration folder."""
    index: Index
    shape: ModelShape
    hf_config: dict[str, Any]
    prefix: str
    stacked: bool
    """Layers are the first axis of a tensor; otherwise each layer has keys of its own."""

    @cached_property
    def parts(self) -> dict[str, Part]:
        """Hugging Face weights by name."""
        return hf_parts(self.shape)

    @property
    def dtype(self) -> str:
        """Dtype of the embedding, which all matrices share in practice."""
        return self.index.tensors[self.prefix + EMBEDDING].dtype

    @property
    def has_optimizer(self) -> bool:
        """The checkpoint carries optimizer state (which is never read here)."""
        return any(key.startswith("optimizer.") for key in self.index.tensors)

    def locate(self, part: Part) -> tuple[Stored, int | None]:
        """The stored tensor of a part, and its place on the layer axis where there is one."""
        weight = part.weight
        if part.layer is None or self.stacked:
            return self.index.tensors[self.prefix + weight.key], part.layer
        return self.index.tensors[self.prefix + weight.at_layer(part.layer)], None


def describe(path: Path, hf_config: Mapping[str, Any] | None = None) -> Checkpoint:
    """Find and check a checkpoint. ``hf_config`` wins over its own sidecars, but must fit its tensors.

    Raises:
        ArtifactError: missing, corrupt, hostile, of a kind that does not convert, or not of the given model.
    """
    folder = layout.resolve(path)
    _check_backend(folder)
    common_state(folder)
    index = read_index(folder)
    prefix = _prefix(index, folder)
    _refuse_foreign(index, folder)
    shape, config = _model(folder, hf_config)
    stacked = f"{prefix}{LAYERS}mlp.linear_fc2.weight" in index.tensors
    has_output = prefix + OUTPUT in index.tensors
    if shape.tied == has_output:
        tied = "ties them" if shape.tied else "does not tie them"
        raise ArtifactError(
            f"`{folder}` {'has' if has_output else 'lacks'} an output layer of its own, but the model's config {tied}",
            hint="the config belongs to another model",
        )
    checkpoint = Checkpoint(folder, index, shape, config, prefix, stacked)
    _check_tensors(checkpoint)
    return checkpoint


def common_state(folder: Path) -> dict[str, Any]:
    """Iteration, version and layout notes from ``common.pt``; empty where a newer writer keeps them elsewhere.

    Raises:
        ArtifactError: corrupt or hostile.
    """
    path = folder / "common.pt"
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ArtifactError(f"`{path}` cannot be read: {reason(error)}", hint="copy the checkpoint again") from error
    state = read_object(content, path)
    return state if isinstance(state, dict) else {}


def _check_backend(folder: Path) -> None:
    path = folder / layout.METADATA_JSON
    if not path.is_file():
        raise ArtifactError(
            f"`{folder}` has no `metadata.json`: it was not written to the end",
            hint="use an earlier iteration",
        )
    try:
        backend = read_json_object(path).get("sharded_backend")
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"`{path}` is not readable JSON", hint="copy the checkpoint again") from error
    if backend != "torch_dist":
        raise refuse(f"checkpoint format `{backend}` is", f"`{folder}`", "save it with `ckpt_format: torch_dist`")


def _prefix(index: Index, folder: Path) -> str:
    for prefix in _PREFIXES:
        if prefix + EMBEDDING in index.tensors:
            return prefix
    if any(".adapter" in key or ".lora_" in key for key in index.tensors):
        raise refuse("an adapter without its base model (PEFT, LoRA) is", f"`{folder}`", "merge it into its base first")
    raise ArtifactError(
        f"`{folder}` holds no language model: there is no `{EMBEDDING}` in it",
        hint="only GPTModel checkpoints convert",
    )


def _refuse_foreign(index: Index, folder: Path) -> None:
    for key, stored in index.tensors.items():
        if key.startswith(_NOT_WEIGHTS):
            continue
        for mark, what in _FOREIGN.items():
            if mark in key or key.startswith(mark):
                raise refuse(what, f"`{folder}` (`{key}`)")
        if stored.dtype.startswith(("float8", "uint8", "int8")):
            raise refuse(
                f"weights stored as `{stored.dtype}` (fp8 or another quantisation) are", f"`{folder}` (`{key}`)"
            )


def _model(folder: Path, given: Mapping[str, Any] | None) -> tuple[ModelShape, dict[str, Any]]:
    """The model's shape and Hugging Face config: what the caller gives, else our sidecar, else ``run_config.yaml``."""
    described = folder / run_config.FILE
    sections = run_config.load(described) if described.is_file() else None
    kept = folder / HF_CONFIG
    if given is None and kept.is_file():
        try:
            given = read_json_object(kept)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"`{kept}` is not readable JSON", hint="copy the checkpoint again") from error
    if given is not None:
        shape = families.from_hf(given, f"`{folder}`")
        if sections is not None:
            _same_model(run_config.shape_of(sections, f"`{described}`", shape.family), shape, described)
        return shape, dict(given)
    if sections is None:
        raise ArtifactError(
            f"`{folder}` does not say which model it is: it has no `{run_config.FILE}`",
            hint="name the Hugging Face model or folder that it belongs to with `hf_model`",
        )
    shape = run_config.shape_of(sections, f"`{described}`")
    return shape, families.to_hf(shape)


def _same_model(stored: ModelShape, given: ModelShape, path: Path) -> None:
    # These may differ without making it another model: how it is fed, started or rounded, and padding.
    loose = {
        "max_positions": given.max_positions,
        "dtype": given.dtype,
        "init_std": given.init_std,
        "window": given.window,
        "rms_eps": stored.rms_eps if abs(stored.rms_eps - given.rms_eps) > 1e-12 else given.rms_eps,
    }
    stored = replace(stored, **loose)  # type: ignore[arg-type]
    differing = [
        f"`{name}` {getattr(stored, name)} against {getattr(given, name)}"
        for name in ModelShape.__dataclass_fields__
        if getattr(stored, name) != getattr(given, name)
    ]
    if differing:
        raise ArtifactError(
            f"`{path}` describes another model than the Hugging Face config: {', '.join(differing)}",
            hint="name the Hugging Face model that this checkpoint was made from",
        )


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Every tensor of the model is there with its shape, and no other weight is."""
    expected: set[str] = set()
    shape = checkpoint.shape
    for weight in weights(shape):
        keys = [weight.key]
        if weight.layered and not checkpoint.stacked:
            keys = [weight.at_layer(layer) for layer in range(shape.layers)]
        for key in keys:
            expected.add(checkpoint.prefix + key)
            stored = checkpoint.index.tensors.get(checkpoint.prefix + key)
            if stored is None:
                raise ArtifactError(
                    f"`{checkpoint.folder}` has no tensor `{key}`, which a {shape.family} model has",
                    hint="the config belongs to another family, or the checkpoint is not whole",
                )
            _check_shape(checkpoint, weight, stored)
    surplus = [
        key
        for key in checkpoint.index.tensors
        if key not in expected and not key.startswith(_NOT_WEIGHTS) and "_extra_state" not in key
    ]
    if surplus:
        more = f" and {len(surplus) - 3} more" if len(surplus) > 3 else ""
        raise ArtifactError(
            f"`{checkpoint.folder}` holds weights that a {shape.family} model does not have:"
            f" {', '.join(f'`{key}`' for key in surplus[:3])}{more}",
            hint="the config belongs to another family",
        )


def _check_shape(checkpoint: Checkpoint, weight: Weight, stored: Stored) -> None:
    wanted = weight.shape
    if weight.layered and checkpoint.stacked:
        wanted = (checkpoint.shape.layers, *wanted)
    if stored.shape == wanted:
        return
    if weight.key in (EMBEDDING, OUTPUT) and stored.shape[1:] == wanted[1:]:
        if stored.shape[0] > wanted[0]:
            return  # rows that Megatron-Core added so that they divide among its ranks
        raise ArtifactError(
            f"`{checkpoint.folder}` has a vocabulary of {stored.shape[0]} rows, the model's config says {wanted[0]}",
            hint="the config or tokenizer belongs to another model",
        )
    raise ArtifactError(
        f"`{checkpoint.folder}`: `{stored.key}` has shape {list(stored.shape)}, the config means {list(wanted)}",
        hint="the config belongs to another model",
    )
