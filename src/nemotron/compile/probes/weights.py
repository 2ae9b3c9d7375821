"""What the files of a model's weights say about themselves, read without torch or safetensors."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.checkpoints import hf, surplus
from nemotron.checkpoints.megatron import families
from nemotron.checkpoints.megatron.names import hf_parts
from nemotron.disk.documents import open_regular, parse_json, read_object
from nemotron.errors import ArtifactError

_DEQUANTISED = ("fp8", "mxfp4")
"""Methods whose weights transformers turns into plain ones where it has no kernels for them."""
_BODY = "model."


@dataclass(frozen=True, slots=True)
class Stored:
    """What a header says of one tensor."""

    dtype: str
    """As safetensors writes it: ``BF16``, ``I8`` ..."""
    shape: list[int]


@dataclass(frozen=True, slots=True)
class Doubts:
    """Where weights and `config.json` disagree; clauses about the folder."""

    misfit: str | None = None
    """A weight that is missing, of another shape, or of a layer that there is none of."""
    headless: bool = False
    """Neither an output layer nor one that is the embedding."""
    quantised: str | None = None
    unmeant: tuple[str, ...] = ()
    """Names of weights that the config does not mean, and that nobody would read."""


def read_headers(folder: Path) -> tuple[dict[str, Stored], str | None]:
    """All tensors in the safetensors files that are loaded, and a file that is broken, which leaves them unknown."""
    found: dict[str, Stored] = {}
    for path in _loaded(folder):
        tensors = _header(path)
        if tensors is None:
            return {}, path.name
        found |= tensors
    if not found:
        # Of pickles only the beginning is looked at: nothing in them is carried out here.
        for path in sorted(folder.glob("pytorch_model*.bin")):
            if not _begins_like_a_pickle(path):
                return {}, path.name
    return found, None


def _loaded(folder: Path) -> Iterable[Path]:
    """The files that transformers reads; all that there are, where it would find none."""
    if (folder / hf.SINGLE).is_file():
        return [folder / hf.SINGLE]
    try:
        names = {str(name) for name in read_object(folder / hf.INDEX)["weight_map"].values()}
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        names = set()
    paths = sorted(folder.glob("*.safetensors"))
    return [path for path in paths if path.name in names] or paths


def doubts(folder: Path, config: Mapping[str, Any], stored: Mapping[str, Stored]) -> Doubts:
    """The weights against the config: all that can be said of families that convert, little of others.

    What stands behind the layers depends on who loads them: a model that scores has no output layer.
    """
    if (quantised := _quantised(config, stored)) is not None:
        return Doubts(quantised=quantised)
    beyond = surplus.beyond_layers(config, stored)
    behind = f"has the weight `{beyond[0]}`, and its `config.json` means no such layer" if beyond else None
    try:
        wanted = hf_parts(families.from_hf(config, f"`{folder}`"))
    except ArtifactError:
        return Doubts(behind)
    if surplus.EMBEDDING not in stored and surplus.EMBEDDING.removeprefix(_BODY) in stored:
        # A model that was saved without its output layer, whose names begin one level deeper.
        stored = {name if name == surplus.HEAD else _BODY + name: tensor for name, tensor in stored.items()}
    if surplus.EMBEDDING not in stored:
        return Doubts(behind)  # named otherwise: transformers knows several ways
    for name, part in wanted.items():
        if name not in stored and name != surplus.HEAD:
            return Doubts(f"lacks the weight `{name}`, which its `config.json` means")
        if name in stored and stored[name].shape != list(part.shape):
            shapes = f"of shape {stored[name].shape}, its `config.json` means {list(part.shape)}"
            return Doubts(f"has `{name}` {shapes}")
    unmeant = tuple(name for name in stored if name not in wanted and not surplus.is_known(name))
    return Doubts(behind, headless=surplus.HEAD in wanted and surplus.HEAD not in stored, unmeant=unmeant)


def _quantised(config: Mapping[str, Any], stored: Mapping[str, Stored]) -> str | None:
    if (method := hf.quantised_by(config)) is not None:
        return None if method in _DEQUANTISED else f"holds quantised weights (`{method}`)"
    for name, tensor in stored.items():
        if (problem := hf.whole_numbers(name, hf.number_type(tensor.dtype))) is not None:
            return problem
    return None


def _begins_like_a_pickle(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(4).startswith((b"PK\x03\x04", b"\x80\x02"))
    except OSError:
        return False


def _header(path: Path) -> dict[str, Stored] | None:
    """The tensors of a safetensors file: 8 bytes of length, then JSON, then the data that it promises.

    None when that cannot be read, or data are missing.
    """
    try:
        with open_regular(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = parse_json(file.read(length)) if length < 100_000_000 else None
        size = path.stat().st_size - 8 - length
        if not isinstance(header, dict):
            return None
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        if any(int(one["data_offsets"][1]) > size for one in tensors.values()):
            return None
        return {
            name: Stored(str(one["dtype"]), [int(extent) for extent in one["shape"]]) for name, one in tensors.items()
        }
    except (OSError, ValueError, TypeError, LookupError, struct.error):
        return None
