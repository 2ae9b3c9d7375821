"""What the RL engine needs: a policy's weights from any checkpoint, and a Megatron checkpoint from its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from nemotron.checkpoints import hf
from nemotron.checkpoints.megatron import families, layout
from nemotron.checkpoints.megatron.describe import HF_CONFIG
from nemotron.checkpoints.megatron.reader import open_weights
from nemotron.checkpoints.surplus import EMBEDDING, HEAD
from nemotron.errors import ArtifactError

if TYPE_CHECKING:
    from nemotron.checkpoints.megatron.writer import Progress

_TIED = "tie_word_embeddings"


@dataclass(frozen=True)
class PolicyWeights:
    """A model ready to be put into a Hugging Face module.

    Example::

        policy = load_policy_weights(Path("step_40"))
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**policy.hf_config))
        policy.copy_into(model)
    """

    kind: Literal["checkpoint_hf", "checkpoint_megatron"]
    folder: Path
    """The Hugging Face folder, or the Megatron iteration folder."""
    hf_config: dict[str, Any]
    """As in ``config.json``, but what ``as_stored`` corrects."""
    state: Mapping[str, Tensor]
    """Weights under their Hugging Face names, each read from disk when it is asked for. Do not write to them."""
    tokenizer: Path | None
    """Folder with the tokenizer, where the checkpoint has one."""

    def copy_into(self, module: nn.Module) -> None:
        """Copy every weight into ``module``, one at a time, cast to its parameters' dtype and device.

        Raises:
            ArtifactError: a parameter has no weight, or one of another shape.
        """
        copy_weights(module, self.state)


def copy_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """As :meth:`PolicyWeights.copy_into`, from any mapping; a tied output layer needs no weight of its own."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name not in weights:
                raise ArtifactError(f"the checkpoint has no weight `{name}`", hint="it belongs to another model")
            weight = weights[name]
            if weight.shape != parameter.shape:
                raise ArtifactError(
                    f"`{name}` has shape {list(weight.shape)}, the model wants {list(parameter.shape)}",
                    hint="the checkpoint belongs to another model",
                )
            parameter.copy_(weight)


def as_stored(hf_config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config, untied where the weights have an output layer that is not the embedding.

    transformers keeps such a layer and trains it, whatever `tie_word_embeddings` says; everything else goes by the
    config and would leave it out.
    """
    config = dict(hf_config)
    if config.get(_TIED) and HEAD in weights and EMBEDDING in weights:
        head, embedding = weights[HEAD], weights[EMBEDDING]
        if head.data_ptr() != embedding.data_ptr() and not (
            head.dtype == embedding.dtype and torch.equal(head, embedding)
        ):
            config[_TIED] = False
    return config


def load_policy_weights(path: Path, *, hf_config: Mapping[str, Any] | None = None) -> PolicyWeights:
    """Open a Hugging Face folder, a Megatron iteration, a root of iterations, or a NeMo-RL ``step_N``.

    ``hf_config`` describes the model where a Megatron checkpoint does not.

    Raises:
        ArtifactError: nothing of the kind there, corrupt, hostile, or a model that does not convert (by name).
    """
    if hf.is_hf(path):
        tokenizer = path if hf.tokenizer_files(path) else None
        state = hf.HfWeights(path)
        return PolicyWeights("checkpoint_hf", path, as_stored(hf.read_config(path), state), state, tokenizer)
    weights = open_weights(path, hf_config)
    checkpoint = weights.checkpoint
    found = layout.tokenizer_of(checkpoint.folder)
    return PolicyWeights("checkpoint_megatron", checkpoint.folder, checkpoint.hf_config, weights, found)


def write_root(
    root: Path,
    model_state: Mapping[str, Tensor],
    hf_config: Mapping[str, Any],
    tokenizer_dir: Path | None,
    dtype: str | None,
    hf_model_id: str | None,
    extra_files: Mapping[str, bytes] | None,
    progress: Progress | None,
) -> None:
    """Write weights as a Megatron root into the folder ``root`` (``iter_0000000`` and its trackers), which the caller
    publishes.

    ``model_state`` has Hugging Face names; ``dtype`` casts it, without it weights stay as they are. ``extra_files`` go
    beside ``config.json`` into the sidecar folder that :func:`load_policy_weights` reads back.

    Raises:
        ArtifactError: a model that does not convert (by name), or weights that do not fit the config.
    """
    # It imports what torch has for checkpoints of many processes: a judge, which writes none, starts without.
    from nemotron.checkpoints.megatron.writer import train_state, write_iteration

    hf_config = as_stored(hf_config, model_state)
    shape = families.from_hf(hf_config, "the model's config")
    iteration = root / layout.iteration_name(0)
    write_iteration(model_state, shape, iteration, dtype=dtype, hf_model_id=hf_model_id, progress=progress)
    kept = iteration / HF_CONFIG
    kept.parent.mkdir()
    files = {HF_CONFIG.name: (json.dumps(hf_config, indent=2) + "\n").encode(), **(extra_files or {})}
    for name, content in files.items():
        (kept.parent / name).write_bytes(content)
    if tokenizer_dir is not None:
        (iteration / "tokenizer").mkdir()
        hf.copy_tokenizer(tokenizer_dir, iteration / "tokenizer")
    torch.save(train_state(), root / "latest_train_state.pt")
    (root / layout.TRACKER).write_text("0")


def check_vocabulary(tokenizer_dir: Path | None, rows: int) -> None:
    """A tokenizer must not name tokens that the embedding does not have.

    Raises:
        ArtifactError: it does.
    """
    path = tokenizer_dir / "tokenizer.json" if tokenizer_dir else None
    if path is None or not path.is_file():
        return
    largest = hf.largest_token(path)
    if largest >= rows:
        raise ArtifactError(
            f"`{path}` has a token with id {largest}, but the model's vocabulary has {rows} rows",
            hint="the tokenizer belongs to another model",
        )
