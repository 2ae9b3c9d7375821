"""Tokenised splits of ``data_prep/rl_prep`` as a torch data set: prompts to roll out, pairs for Bradley-Terry."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from nemotron.data.manifest import file_sha256, manifest_file, read_manifest
from nemotron.errors import DataError, Origin

Item = dict[str, Tensor]


class TokenizedDataset(Dataset[Item]):
    """Rows of one tokenised split; nothing is loaded before it is asked for.

    A prompt row has ``input_ids [L]``, ``length``, ``loss_multiplier``. A pair has ``chosen_input_ids [L]``,
    ``chosen_attention_mask [L]``, ``chosen_length`` and the same of ``rejected``, both padded to the longer of the two,
    with ``prompt_length`` and ``loss_multiplier``. Use :meth:`collate` as ``collate_fn`` of a ``DataLoader``.

    Raises:
        DataError: the manifest has no tokens of that split, or a file was changed.
    """

    def __init__(self, manifest: Path, split: str, *, verify: bool = True) -> None:
        path = manifest_file(manifest)
        entry = read_manifest(path)["splits"].get(split, {})
        if not entry.get("token_shards"):
            hint = "prepare the data with `tokenize.tokenizer` and `tokenize.max_length`"
            raise DataError(f"`{path}` has no tokens of the split `{split}`", hint=hint)
        shards: list[dict[str, Any]] = entry["token_shards"]
        self.paths = [path.parent / shard["path"] for shard in shards]
        for file, shard in zip(self.paths, shards, strict=True):
            if verify and (not file.is_file() or file_sha256(file) != shard["sha256"]):
                raise DataError(f"the token file `{file}` is missing or was changed", origin=Origin(str(path)))
        self.ends = list(accumulate(shard["rows"] for shard in shards))
        self.pad_id: int = entry["tokens"]["pad_id"]
        self.multiple: int = entry["tokens"]["pad_to_multiple_of"]
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect_right(self.ends, index)
        row = index - (self.ends[shard - 1] if shard else 0)
        file = self._file(shard)
        shared = {"loss_multiplier": file.get_slice("loss_multiplier")[row : row + 1][0]}
        if "prompt_ids" in file.keys():  # noqa: SIM118 - not a mapping
            ids = self._ids(file, "prompt", row)
            return {"input_ids": ids, "length": torch.tensor(len(ids)), **shared}
        sides = {side: self._ids(file, side, row) for side in ("chosen", "rejected")}
        width = self._width(max(map(len, sides.values())))
        item = {"prompt_length": file.get_slice("prompt_length")[row : row + 1][0].long(), **shared}
        for side, ids in sides.items():
            item[f"{side}_input_ids"], item[f"{side}_attention_mask"] = self._padded(ids, width)
            item[f"{side}_length"] = torch.tensor(len(ids))
        return item

    def collate(self, items: Sequence[Item]) -> Item:
        """A batch: id and mask tensors ``[B, T]`` padded on the right to its longest row, the others ``[B]``."""
        batch: Item = {}
        width = self._width(max(len(value) for item in items for value in item.values() if value.dim()))
        for name in items[0]:
            values = [item[name] for item in items]
            if values[0].dim() == 0:
                batch[name] = torch.stack(values)
                continue
            fill = 0 if name.endswith("attention_mask") else self.pad_id
            batch[name] = torch.stack([torch.nn.functional.pad(v, (0, width - len(v)), value=fill) for v in values])
        if "input_ids" in batch:
            batch["attention_mask"] = (torch.arange(width) < batch["length"][:, None]).long()
        return batch

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to the worker processes of a DataLoader.
        return {**self.__dict__, "_open": {}}

    def _file(self, shard: int) -> Any:
        if shard not in self._open:
            opened: Any = safe_open(self.paths[shard], framework="pt")
            self._open[shard] = opened.__enter__()
        return self._open[shard]

    def _ids(self, file: Any, side: str, row: int) -> Tensor:
        ends = file.get_slice(f"{side}_ends")
        first = int(ends[row - 1 : row][0]) if row else 0
        ids: Tensor = file.get_slice(f"{side}_ids")[first : int(ends[row : row + 1][0])]
        return ids.long()

    def _width(self, longest: int) -> int:
        return -(-longest // self.multiple) * self.multiple

    def _padded(self, ids: Tensor, width: int) -> tuple[Tensor, Tensor]:
        missing = (0, width - len(ids))
        mask = torch.nn.functional.pad(torch.ones_like(ids), missing, value=0)
        return torch.nn.functional.pad(ids, missing, value=self.pad_id), mask
