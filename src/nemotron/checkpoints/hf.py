"""A Hugging Face checkpoint folder: its config, safetensors files and tokenizer (torch-free but for the weights)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron.checkpoints.adapter_files import not_a_model
from nemotron.disk.documents import read_bytes, read_json, read_object, regular
from nemotron.disk.faults import reason
from nemotron.disk.home import expanded
from nemotron.errors import ArtifactError, NotAvailableError
from nemotron.install import install_extra

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
GENERATION_CONFIG = "generation_config.json"
SIDE_FILES = (GENERATION_CONFIG, "preprocessor_config.json", "processor_config.json")
"""What a model has beside weights, config and tokenizer, and would be another model without."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""Everything that may make up a tokenizer, in any model family."""
MORE_TEMPLATES = "additional_chat_templates"
"""Folder of further chat templates of a tokenizer."""

UNQUANTISED = "quantised weights are not supported here: use the unquantised model"

_DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model.

    Raises:
        ArtifactError: missing or not a JSON object.
    """
    path = folder / CONFIG
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"`{folder}` is not a Hugging Face checkpoint: no readable `{CONFIG}`",
            hint="name a folder with `config.json` and safetensors files",
        ) from error
    if not isinstance(config, dict):
        raise ArtifactError(f"`{path}` does not hold an object")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, as its index lists them.

    Raises:
        ArtifactError: there are none, one is missing, or the weights are pickles or an adapter.
    """
    if (problem := not_a_model(folder)) is not None:
        raise ArtifactError(f"`{folder}` {problem[0]}", hint=problem[1])
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(read_object(index)["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ArtifactError(f"`{index}` cannot be read", hint="copy the checkpoint again") from error
    elif not (folder / SINGLE).is_file() and any(folder.glob("*.safetensors")):
        raise ArtifactError(
            f"`{folder}` holds safetensors files, but no `{INDEX}` that says which of them make the model",
            hint="copy the checkpoint again, with every file",
        )
    else:
        names = [SINGLE]
    files = [folder / str(name) for name in names]
    for file in files:
        if file.parent != folder:
            raise ArtifactError(f"`{index}` points out of its folder, to `{file}`")
        if not file.is_file():
            pickled = any(folder.glob("pytorch_model*.bin"))
            raise ArtifactError(
                f"`{file}` is missing" + ("; the weights are pickles (`pytorch_model.bin`)" if pickled else ""),
                hint="convert them to safetensors" if pickled else "copy the checkpoint again, with every file",
            )
    return files


def layout_fault(folder: Path) -> ArtifactError | None:
    """What keeps the safetensors files of a model from being found: shards that no index lists, or one that is lost."""
    if (folder / SINGLE).is_file():
        return None
    if not (folder / INDEX).exists() and next(folder.glob("pytorch_model*.bin"), None):
        return None
    if next(folder.glob("*.safetensors"), None) is None:
        return None
    try:
        weight_files(folder)
    except ArtifactError as error:
        return error
    return None


def headers(folder: Path) -> dict[str, Header]:
    """All tensors of a checkpoint by name, from the headers alone; the files' lengths are checked against them.

    Raises:
        ArtifactError: a file is missing, cut short or not safetensors.
    """
    found: dict[str, Header] = {}
    for path in weight_files(folder):
        found |= headers_of(path)
    return found


def headers_of(path: Path) -> dict[str, Header]:
    """The tensors of one safetensors file. Raises ArtifactError: it is missing, cut short or not safetensors."""
    found: dict[str, Header] = {}
    # numpy only names the flavour of tensors; none is made here.
    with _opened(path, "numpy") as opened:
        for name in opened.keys():  # noqa: SIM118  (not a mapping)
            part = opened.get_slice(name)
            found[name] = Header(number_type(str(part.get_dtype())), tuple(part.get_shape()), path)
    return found


def number_type(stored: str) -> str:
    """torch's name of a number type, by the one that safetensors has for it."""
    return _DTYPES.get(stored, stored.lower())


FLOATS = ("bfloat16", "float16", "float32", "float64")
"""Number types that weights are computed in."""
_WEIGHTS = (".weight", ".bias")


def whole_numbers(name: str, dtype: str) -> str | None:
    """What is wrong with a weight that is stored as whole numbers, which are its values only with what they are scaled
    with: a clause about its folder."""
    if dtype in FLOATS or dtype.startswith("float") or not name.endswith(_WEIGHTS):
        return None
    return f"holds `{name}` as `{dtype}`, so its weights are quantised"


def quantised_by(config: Mapping[str, Any]) -> str | None:
    """The method by which a config says that the weights are quantised, ``?`` where it names none; None of others."""
    if not (settings := config.get("quantization_config")):
        return None
    return str((settings.get("quant_method") if isinstance(settings, Mapping) else None) or "?")


def check_numbers(folder: Path, config: Mapping[str, Any], found: Mapping[str, Header]) -> None:
    """Raises ArtifactError where weights are quantised, or of another type than the usual floating point ones."""
    if (method := quantised_by(config)) is not None:
        raise ArtifactError(f"`{folder}` holds quantised weights (`{method}`)", hint=UNQUANTISED)
    for name, header in found.items():
        if header.dtype not in FLOATS and name.endswith(_WEIGHTS):
            raise ArtifactError(f"`{folder}` holds `{name}` as `{header.dtype}`", hint=UNQUANTISED)


def _opened(path: Path, framework: str) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise NotAvailableError(
            "reading checkpoints needs `safetensors`, which is not installed", hint=install_extra("local")
        ) from error
    try:
        return safe_open(regular(path), framework=framework)
    except OSError as error:
        raise ArtifactError(f"`{path}` cannot be read: {reason(error)}") from error
    except SafetensorError as error:
        raise ArtifactError(f"`{path}` is corrupt or cut short: {error}", hint="copy the checkpoint again") from error


class HfWeights(Mapping[str, "Tensor"]):
    """The weights of a Hugging Face folder, memory-mapped and read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.headers = headers(folder)
        self._open: dict[Path, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __len__(self) -> int:
        return len(self.headers)

    def __getitem__(self, name: str) -> Tensor:
        path = self.headers[name].file
        if path not in self._open:
            self._open[path] = _opened(path, "pt")
        tensor: Tensor = self._open[path].get_tensor(name)
        return tensor


def tokenizer_files(folder: Path) -> list[Path]:
    """Tokenizer files of a folder that are there."""
    found = [path for name in TOKENIZER_FILES if (path := folder / name).is_file()]
    return found + sorted((folder / MORE_TEMPLATES).glob("*.jinja"))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of ``source`` into the folder ``target``."""
    for file in tokenizer_files(source):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def side_files(folder: Path | None) -> dict[str, bytes]:
    """Name -> content of what the model in ``folder`` has beside weights, config and tokenizer; none without a folder.

    Raises:
        ArtifactError: one cannot be read.
    """
    found = {}
    for path in [folder / name for name in SIDE_FILES] if folder is not None else []:
        try:
            if path.is_file():
                found[path.name] = read_bytes(path)
        except OSError as error:
            raise ArtifactError(f"`{path}` cannot be read: {error.strerror}") from error
    return found


def small_files(name: str) -> Path | None:
    """A folder with config and side files of a model: its own, or of the hub, which is asked for them.

    ``None`` when neither has them; whoever loads the weights says so.
    """
    folder = expanded(name)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, *SIDE_FILES]))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None


def largest_token(path: Path) -> int:
    """The largest token id of a ``tokenizer.json``; -1 when it names none.

    Raises:
        ArtifactError: not readable.
    """
    try:
        content = read_json(path)
        vocab = content["model"].get("vocab", {})
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        ids += [token["id"] for token in content.get("added_tokens", [])]
        return max(ids, default=-1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"`{path}` is not a readable tokenizer", hint="copy the tokenizer again") from error


def is_hf(folder: Path) -> bool:
    """``folder`` looks like a Hugging Face model."""
    if not (folder / CONFIG).is_file():
        return False
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file() or any(folder.glob("pytorch_model*.bin"))


def in_step(path: Path) -> Path | None:
    """The Hugging Face model inside a NeMo-RL ``step_N`` (or its ``policy`` or ``weights``), where it has one."""
    places = (path / "policy" / "weights" / "hf", path / "weights" / "hf", path / "hf")
    return next((folder for folder in places if is_hf(folder)), None)
