"""Adapters (LoRA) as peft writes them, merged into the model that they were trained on, one tensor at a time.

Only what a plain adapter does is merged: ``W + alpha / r * B A``. Whatever else an adapter's config switches on would
be left out without a trace, so it is refused by its name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemotron.checkpoints import hf
from nemotron.checkpoints.adapter_files import check_fit, pairs, read_adapter_config, weights_file
from nemotron.checkpoints.convert import MAX_FILE_BYTES, Conversion, Progress, counter, same_bytes
from nemotron.checkpoints.policy import as_stored
from nemotron.checkpoints.safetensors_stream import Planned, write_model
from nemotron.disk.documents import regular
from nemotron.disk.publish import published
from nemotron.errors import ArtifactError


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, and what it says about itself."""

    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """The adapter in ``folder``. Raises ArtifactError: none is there, or it is none that can be merged."""
        return cls(folder, read_adapter_config(folder))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All of its weights, which are small. Raises ArtifactError when they cannot be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = weights_file(self.folder)
        try:
            return load_file(regular(path))
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"`{path}` cannot be read: {error}", hint="copy the adapter again") from error

    @property
    def scale(self) -> float:
        """What ``B A`` is multiplied by."""
        rank, alpha = int(self.config["r"]), float(self.config["lora_alpha"])
        return alpha / (sqrt(rank) if self.config.get("use_rslora") else rank)

    def fitted(self, base: Mapping[str, hf.Header]) -> dict[str, tuple[Tensor, Tensor]]:
        """The two matrices of every weight that is adapted, by the weight's name in the model with ``base``.

        Raises:
            ArtifactError: something in it is no such matrix, or of another model.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        found = pairs(self.folder, self.config, shapes)
        check_fit(self.folder, found, shapes, {name: header.shape for name, header in base.items()})
        return {name: (self.tensors[first], self.tensors[second]) for name, (first, second) in found.items()}


class Merged(Mapping[str, Tensor]):
    """The weights of a model with an adapter in them, each computed when asked for; adapted ones in float32."""

    def __init__(self, base: hf.HfWeights, adapter: Adapter) -> None:
        """Raises ArtifactError when the adapter is not of this model."""
        self._base, self._scale = base, adapter.scale
        self._pairs = adapter.fitted(base.headers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, name: str) -> Tensor:
        weight = self._base[name]
        if name not in self._pairs:
            return weight
        first, second = (one.float() for one in self._pairs[name])
        # In float32: it is rounded once, by who writes it.
        return weight.float() + self._scale * (second @ first)


def merge_lora(
    adapter: Path,
    base: Path,
    target: Path,
    *,
    dtype: str | None = None,
    verify: bool = True,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the model in ``base`` with ``adapter`` merged into it at ``target``.

    Raises:
        ArtifactError: what cannot be merged (by name), broken files, or it does not read back as written.
        OutputError: ``target`` is taken or cannot be written.
    """
    given, weights = hf.read_config(base), hf.HfWeights(base)
    hf.check_numbers(base, given, weights.headers)
    merged = Merged(weights, Adapter.read(adapter))
    config = as_stored(given, merged)
    planned = [
        Planned(name, getattr(torch, dtype or header.dtype), tuple(header.shape))
        for name, header in weights.headers.items()
    ]
    total = sum(one.nbytes for one in planned)
    stored = str(planned[0].dtype).removeprefix("torch.")
    with published(target, overwrite=overwrite) as folder:
        cast = Cast(merged, {one.name: one.dtype for one in planned})
        write_model(folder, planned, cast, max_file_bytes=MAX_FILE_BYTES, progress=counter("writing", total, progress))
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        (folder / hf.CONFIG).write_text(json.dumps({**config, key: stored}, indent=2) + "\n")
        for name, content in hf.side_files(base).items():
            (folder / name).write_bytes(content)
        hf.copy_tokenizer(base, folder)
        if verify:
            _verify(hf.HfWeights(folder), cast, counter("verifying", total, progress))
        if finish:
            finish(folder)
    family, parameters = str(config.get("model_type", "?")), sum(h.elements for h in weights.headers.values())
    return Conversion(target, family, parameters, stored, total, "weights" if verify else "none", None)


@dataclass(frozen=True)
class Cast(Mapping[str, Tensor]):
    """Weights in other number types."""

    weights: Mapping[str, Tensor]
    dtypes: Mapping[str, torch.dtype]

    def __iter__(self) -> Iterator[str]:
        return iter(self.dtypes)

    def __len__(self) -> int:
        return len(self.dtypes)

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[name].to(self.dtypes[name])


def _verify(written: Mapping[str, Tensor], wanted: Mapping[str, Tensor], count: Callable[[int], None]) -> None:
    for name in wanted:
        found, expected = written[name], wanted[name]
        if found.shape != expected.shape or not same_bytes(found, expected):
            raise ArtifactError(
                f"`{name}` did not read back as it was written",
                hint="nothing was kept; check the disk, then merge again",
            )
        count(found.nbytes)
