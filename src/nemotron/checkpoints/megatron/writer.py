"""Write weights as a Megatron-Core ``torch_dist`` checkpoint, one tensor at a time.

The layout is that of Megatron-Core up to 0.18 (``common.pt``), which every later version reads too. The same input
gives the same bytes under every Python: no path, time or random name goes into a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from nemotron.checkpoints.megatron import layout, pickles, run_config
from nemotron.checkpoints.megatron.families import ModelShape
from nemotron.checkpoints.megatron.index import METADATA
from nemotron.checkpoints.megatron.names import Weight, extra_states, weights
from nemotron.disk.stream import StreamedFile
from nemotron.errors import ArtifactError
from nemotron.processes.termination import held_back

_DATA_FILE = "__0_0.distcp"
_ALIGNMENT = 64
Progress = Callable[[int], None]
"""Called with the number of bytes just written."""


class _DataFile:
    """The one data file: ``torch.save`` records one after the other, and where each of them lies."""

    def __init__(self, path: Path) -> None:
        self._file = StreamedFile(path)
        self._failure: OSError | None = None
        self.places: dict[MetadataIndex, _StorageInfo] = {}
        self.close = self._file.close

    def write(self, content: memoryview | bytes) -> int:
        """What ``torch.save`` calls, from C++, where nothing may be raised: an archive that ends too early is an error
        with another text there, or the end of the process."""
        if self._failure is None:
            try:
                self._file.write(content)
            except OSError as error:
                self._failure = error
        return len(content)

    def flush(self) -> None:
        """``torch.save`` asks for it; nothing is buffered here."""

    def add(self, where: MetadataIndex, value: Tensor | list[None]) -> int:
        """Append one record; returns its bytes."""
        self._file.write(bytes(-self._file.size % _ALIGNMENT))
        start = self._file.size
        with held_back():
            torch.save(value, cast(IO[bytes], self))
        if self._failure is not None:
            raise self._failure
        length = self._file.size - start
        self.places[where] = _StorageInfo(_DATA_FILE, start, length)
        return length


def write_iteration(
    state: Mapping[str, Tensor],
    shape: ModelShape,
    folder: Path,
    *,
    dtype: str | None = None,
    hf_model_id: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the iteration folder ``folder`` from Hugging Face weights.

    Only one layer's query, key and value are ever copied; everything else goes from where it lies to the file.
    ``dtype`` casts the weights; without it they stay as they are. ``metadata.json`` comes last: it makes it valid.

    Raises:
        ArtifactError: a weight is missing, surplus, or has another shape than ``shape`` says.
        OSError: the disk does not take it.
    """
    check_state(state, shape)
    folder.mkdir(parents=True)
    tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    data = _DataFile(folder / _DATA_FILE)
    try:
        for weight in weights(shape):
            tensors[weight.key] = _write_weight(data, weight, state, shape, dtype, progress)
        for key in extra_states(shape):
            data.add(MetadataIndex(key), [None])  # a list with one entry per shard is how an object is stored
            tensors[key] = BytesStorageMetadata()
    finally:
        data.close()
    _write_metadata(folder, tensors, data.places)
    torch.save(_common(), folder / "common.pt")
    torch.save(train_state(), folder / "train_state.pt")
    stored = tensors["embedding.word_embeddings.weight"]
    assert isinstance(stored, TensorStorageMetadata)
    stored_dtype = str(stored.properties.dtype).removeprefix("torch.")
    (folder / run_config.FILE).write_text(run_config.dump(shape, stored_dtype, hf_model_id))
    backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    backend |= {"common_backend": "torch", "common_backend_version": 1}
    (folder / layout.METADATA_JSON).write_text(json.dumps(backend))


def check_state(state: Mapping[str, Tensor], shape: ModelShape) -> None:
    """Names of ``state`` against the model. Shapes are compared while writing, when a tensor is at hand.

    Raises:
        ArtifactError: a weight is missing or surplus.
    """
    wanted = {
        name.format(i=i) for w in weights(shape) for name in w.hf for i in range(shape.layers if w.layered else 1)
    }
    # A tied output layer may be listed once more, and old Llama exports carry the rotary frequencies.
    ignored = {"lm_head.weight"} if shape.tied else set()
    surplus = sorted(n for n in set(state) - wanted - ignored if not n.endswith("rotary_emb.inv_freq"))
    missing = sorted(wanted - set(state))
    if missing:
        raise ArtifactError(
            f"the model lacks {len(missing)} weights that its config means, first `{missing[0]}`",
            hint="the config belongs to another model, or a file of it is missing",
        )
    if surplus:
        raise ArtifactError(
            f"the model has {len(surplus)} weights that a {shape.family} model does not have, first `{surplus[0]}`",
            hint="adapters and quantised models do not convert; merge or unquantise them first",
        )


def _write_weight(
    data: _DataFile,
    weight: Weight,
    state: Mapping[str, Tensor],
    shape: ModelShape,
    dtype: str | None,
    progress: Progress | None,
) -> TensorStorageMetadata:
    """Write one tensor in chunks: per layer one, for gate and up two, as Megatron-Core itself does."""
    chunks: list[ChunkStorageMetadata] = []
    properties = TensorProperties()
    for layer in range(shape.layers if weight.layered else 1):
        row = 0
        for piece in _pieces(weight, [state[name.format(i=layer)] for name in weight.hf], shape):
            tensor = piece.detach().to(getattr(torch, dtype) if dtype else piece.dtype).contiguous()
            if tensor.untyped_storage().nbytes() != tensor.nbytes or not tensor.is_cpu:
                tensor = tensor.clone().cpu()  # torch.save writes the storage, so a view of a larger one is cut out
            offsets, sizes = (row, *(0 for _ in weight.shape[1:])), tuple(tensor.shape)
            row += sizes[0]
            if weight.layered:
                tensor, offsets, sizes = tensor.unsqueeze(0), (layer, *offsets), (1, *sizes)
            where = MetadataIndex(weight.key, offsets, len(chunks))
            written = data.add(where, tensor)
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            properties = TensorProperties(dtype=tensor.dtype)
            if progress:
                progress(written)
    size = (shape.layers, *weight.shape) if weight.layered else weight.shape
    return TensorStorageMetadata(properties, torch.Size(size), chunks)


def _pieces(weight: Weight, parts: list[Tensor], shape: ModelShape) -> list[Tensor]:
    rows = sum(part.shape[0] for part in parts)
    if any(part.shape[1:] != weight.shape[1:] for part in parts) or rows != weight.shape[0]:
        found = ", ".join(str(list(part.shape)) for part in parts)
        raise ArtifactError(
            f"`{'`, `'.join(weight.hf)}` have shapes {found}; the config means {list(weight.shape)} together",
            hint="the config belongs to another model",
        )
    if weight.kind != "qkv":
        return parts
    grouped = [part.reshape(shape.kv_heads, -1, shape.head_dim, *part.shape[1:]) for part in parts]
    return [torch.cat(grouped, dim=1).reshape(weight.shape)]


def _write_metadata(folder: Path, tensors: dict[str, Any], places: dict[MetadataIndex, _StorageInfo]) -> None:
    metadata = Metadata(tensors, planner_data={key: (key,) for key in tensors}, storage_data=places)
    with (folder / METADATA).open("wb") as file:
        pickles.dump(metadata, file)


def _common() -> dict[str, Any]:
    content = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    return {"checkpoint_version": 3.0, "iteration": 0, "content_metadata": content}


def train_state() -> dict[str, Tensor]:
    """Megatron-Bridge's counters for a model that has not been trained there."""
    counters = ("step", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    state = {name: torch.tensor(0, dtype=torch.int32) for name in counters}
    state["floating_point_operations_so_far"] = torch.tensor(0, dtype=torch.float64)
    return state | {name: torch.tensor(False) for name in ("do_train", "do_valid", "do_test")}
