"""Convert between Hugging Face and Megatron-Core checkpoints on any machine, verified before the result appears."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from nemotron.checkpoints import hf
from nemotron.checkpoints.libraries import refusing_damage
from nemotron.checkpoints.megatron import families, layout
from nemotron.checkpoints.megatron.families import ModelShape
from nemotron.checkpoints.megatron.names import hf_parts
from nemotron.checkpoints.megatron.reader import MegatronWeights, open_weights
from nemotron.checkpoints.megatron.writer import check_state
from nemotron.checkpoints.policy import as_stored, check_vocabulary, copy_weights, write_root
from nemotron.checkpoints.safetensors_stream import Planned, write_model
from nemotron.disk.documents import read_bytes
from nemotron.disk.publish import published
from nemotron.errors import ArtifactError

Verify = Literal["weights", "logits", "none"]
MAX_FILE_BYTES = 50_000_000_000
"""The hub takes files up to 50 GB; transformers splits there too."""
_LOGIT_TOLERANCE = 1e-5


class Progress(Protocol):
    """Where a conversion says what it does."""

    def __call__(self, phase: Literal["writing", "verifying"], done: int, total: int) -> None:
        """``done`` of ``total`` bytes of the phase."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was converted."""

    target: Path
    family: str
    parameters: int
    dtype: str
    nbytes: int
    """Bytes of weights in the target."""
    verified: Verify
    largest_logit_difference: float | None
    """With ``verify: logits``."""


def hf_to_megatron(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    verify: Verify = "weights",
    overwrite: bool = False,
    hf_model_id: str | None = None,
    finish: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the model in ``source`` as a Megatron root at ``target``.

    ``dtype`` casts the weights; ``None`` keeps them. ``finish`` may add files to the folder before it is published.

    Raises:
        ArtifactError: a model that does not convert (by name), broken files, or it does not read back as written.
        OutputError: ``target`` is taken or cannot be written.
    """
    given, weights = hf.read_config(source), hf.HfWeights(source)
    config = as_stored(given, weights)
    shape = families.from_hf(config, f"`{source}`")
    hf.check_numbers(source, config, weights.headers)
    check_vocabulary(source, shape.vocab)
    check_state(weights, shape)
    total = _nbytes({name: weights.headers[name] for name in hf_parts(shape)}, dtype)
    kept = {hf.CONFIG: read_bytes(source / hf.CONFIG)} if config == given else {}
    beside = {**kept, **hf.side_files(source)}
    with published(target, overwrite=overwrite) as root:
        write_root(root, weights, config, source, dtype, hf_model_id, beside, counter("writing", total, progress))
        with open_weights(root) as written:
            difference = _verify(written, weights, config, shape, dtype, verify, total, progress)
            stored = written.checkpoint.dtype
        if finish:
            finish(root)
    return Conversion(target, shape.family, shape.parameters, stored, total, verify, difference)


def megatron_to_hf(
    source: Path,
    target: Path,
    *,
    hf_model: Path | None = None,
    dtype: str | None = None,
    verify: Verify = "weights",
    overwrite: bool = False,
    max_file_bytes: int = MAX_FILE_BYTES,
    finish: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the Megatron checkpoint at ``source`` as a Hugging Face folder at ``target``.

    ``hf_model`` gives config and tokenizer where the checkpoint has none, and must be the same model.

    Raises:
        ArtifactError: a model that does not convert (by name), corrupt or missing files, not the model of ``hf_model``.
        OutputError: ``target`` is taken or cannot be written.
    """
    given = hf.read_config(hf_model) if hf_model else None
    with open_weights(source, given) as weights:
        checkpoint = weights.checkpoint
        shape = checkpoint.shape
        tokenizer = layout.tokenizer_of(checkpoint.folder) or hf_model
        check_vocabulary(tokenizer, shape.vocab)
        planned = _planned(weights, dtype)
        total = sum(one.nbytes for one in planned)
        with published(target, overwrite=overwrite) as folder:
            count = counter("writing", total, progress)
            write_model(folder, planned, weights, max_file_bytes=max_file_bytes, progress=count)
            stored = str(planned[0].dtype).removeprefix("torch.")
            _write_config(folder, checkpoint.folder, checkpoint.hf_config, hf_model, stored)
            if tokenizer:
                hf.copy_tokenizer(tokenizer, folder)
            written = hf.HfWeights(folder)
            difference = _verify(written, weights, checkpoint.hf_config, shape, dtype, verify, total, progress)
            if finish:
                finish(folder)
    return Conversion(target, shape.family, shape.parameters, stored, total, verify, difference)


def _planned(weights: MegatronWeights, dtype: str | None) -> list[Planned]:
    planned = []
    for name, part in weights.checkpoint.parts.items():
        stored, _ = weights.checkpoint.locate(part)
        planned.append(Planned(name, getattr(torch, dtype or stored.dtype), part.shape))
    return planned


def _write_config(folder: Path, iteration: Path, config: Mapping[str, Any], hf_model: Path | None, dtype: str) -> None:
    """The config, byte for byte where the weights keep its dtype, and what stands beside it: first the checkpoint's."""
    origin = hf_model or iteration / layout.SIDECAR
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    if config.get(key, "float32") == dtype and (origin / hf.CONFIG).is_file():
        shutil.copyfile(origin / hf.CONFIG, folder / hf.CONFIG)
    else:
        (folder / hf.CONFIG).write_text(json.dumps({**config, key: dtype}, indent=2) + "\n")
    for name, content in (hf.side_files(hf_model) | hf.side_files(iteration / layout.SIDECAR)).items():
        (folder / name).write_bytes(content)


def _nbytes(headers: Mapping[str, hf.Header], dtype: str | None) -> int:
    return sum(header.elements * getattr(torch, dtype or header.dtype).itemsize for header in headers.values())


def counter(phase: Literal["writing", "verifying"], total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done = min(done + nbytes, total)
        if progress:
            progress(phase, done, total)

    return count


def _verify(
    written: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    config: Mapping[str, Any],
    shape: ModelShape,
    dtype: str | None,
    verify: Verify,
    total: int,
    progress: Progress | None,
) -> float | None:
    """Read the written weights back and compare. Returns the largest difference of logits if those were asked for."""
    if verify == "none":
        return None
    if verify == "logits":
        difference = _logit_difference(written, source, config, dtype)
        if not difference <= _LOGIT_TOLERANCE:
            raise ArtifactError(
                f"the converted model computes other logits: they differ by {difference:.3g}",
                hint="nothing was kept; please report this with the model's config",
            )
        return difference
    count = counter("verifying", total, progress)
    for name in hf_parts(shape):
        wanted = source[name]
        wanted = wanted.to(getattr(torch, dtype)) if dtype else wanted
        found = written[name]
        if found.shape != wanted.shape or not same_bytes(found, wanted):
            raise ArtifactError(
                f"`{name}` did not read back as it was written",
                hint="nothing was kept; check the disk, then convert again",
            )
        count(found.nbytes)
    return None


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Bitwise, so that a NaN equals itself and a negative zero is not zero."""
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
    )


def _logit_difference(
    written: Mapping[str, Tensor], source: Mapping[str, Tensor], config: Mapping[str, Any], dtype: str | None
) -> float:
    """Largest absolute difference over random tokens, both models in float32, one in memory at a time."""
    tokens = torch.randint(0, int(config["vocab_size"]), (2, 32), generator=torch.Generator().manual_seed(0))
    cast = getattr(torch, dtype) if dtype else None
    results = [_logits(weights, config, tokens, cast) for weights in (written, source)]
    return float((results[0] - results[1]).abs().max())


def _logits(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], tokens: Tensor, cast: torch.dtype | None
) -> Tensor:
    from transformers import AutoConfig, AutoModelForCausalLM

    rest = {key: value for key, value in config.items() if key not in ("model_type", "dtype", "torch_dtype")}
    make: Any = AutoModelForCausalLM.from_config
    with refusing_damage(lambda reason: ArtifactError(f"the config of the model makes no model: {reason}")):
        model = make(AutoConfig.for_model(config["model_type"], **rest), dtype=torch.float32)
    copy_weights(model, weights)
    if cast:
        model.to(cast).to(torch.float32)  # as the weights were rounded on their way
    with torch.no_grad():
        logits: Tensor = model.eval()(tokens).logits
    return logits
