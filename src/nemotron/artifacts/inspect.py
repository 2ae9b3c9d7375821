"""What an artifact is, read from headers and indexes: no weights are loaded, nothing in it is run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemotron.artifacts.kinds import Kind, data_lines, data_row, jsonl_files, located, recognise, result_files
from nemotron.artifacts.record import read_record
from nemotron.checkpoints import hf
from nemotron.checkpoints.adapter_files import WEIGHTS, read_adapter_config
from nemotron.checkpoints.chat_template import templates_of
from nemotron.checkpoints.megatron import layout
from nemotron.checkpoints.megatron.describe import describe
from nemotron.data.manifest import Manifest
from nemotron.disk.documents import read_object
from nemotron.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """A tokenizer: class, largest id plus one, and whether it has a chat template."""

    folder: str
    name: str | None
    size: int | None
    chat_template: bool


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What is known of a model without loading it."""

    family: str
    parameters: int
    dtypes: dict[str, int]
    """Parameters per dtype."""
    layers: int | None
    hidden: int | None
    vocabulary: int | None
    tied: bool | None
    shards: int
    nbytes: int
    tokenizer: TokenizerFacts | None
    iteration: str | None = None
    optimizer_state: bool | None = None
    """Megatron only."""


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """A LoRA adapter."""

    rank: int
    alpha: float
    modules: tuple[str, ...]
    """Names of the modules that are adapted."""
    base: str | None
    """The model that it was trained on, by the name that it has for it."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class DataFacts:
    """A JSONL data set."""

    rows: int
    files: int
    nbytes: int
    fields: tuple[str, ...]
    """Names of the first row's fields."""


@dataclass(frozen=True, slots=True)
class PreparedFacts:
    """What `data_prep/rl_prep` made, as its manifest names it."""

    rows: int
    splits: dict[str, int]
    """Rows of each."""
    kind: str
    """Kind of the rows, ``mixed`` where there are several."""
    files: int
    """Shards, those of token ids included."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class ResultFacts:
    """Results of an evaluation."""

    files: int
    metrics: dict[str, Any]


Facts = CheckpointFacts | AdapterFacts | PreparedFacts | DataFacts | ResultFacts


@dataclass(frozen=True, slots=True)
class Inspection:
    """The answer to `artifacts inspect`."""

    path: str
    type: Kind
    facts: Facts
    record: dict[str, Any] | None
    """What made it, where that was recorded."""

    def to_json(self) -> dict[str, Any]:
        """A plain object: `type`, the facts by name, `record`."""
        return {"path": self.path, "type": self.type, **asdict(self.facts), "record": self.record}


def inspect(path: Path) -> Inspection:
    """Look at the artifact at ``path``.

    Raises:
        ArtifactError: nothing known there, or it is broken. DataError: a JSONL file or manifest that is none.
    """
    path = located(path)
    kind = recognise(path)
    facts: Facts
    if kind == "checkpoint_lora":
        facts = _adapter(path)
    elif kind == "checkpoint_hf":
        facts = _hf(path)
    elif kind == "checkpoint_megatron":
        facts = _megatron(path)
    elif kind == "prepared_data":
        facts = _prepared(path)
    elif kind == "training_jsonl":
        facts = _data(path)
    else:
        facts = _results(path)
    return Inspection(str(path), kind, facts, read_record(path if path.is_dir() else path.parent))


def _adapter(folder: Path) -> AdapterFacts:
    config, weights = read_adapter_config(folder), folder / WEIGHTS
    if not weights.is_file():
        raise ArtifactError(f"`{weights}` is missing", hint="copy the adapter again")
    targets = config.get("target_modules")
    return AdapterFacts(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        modules=(targets,) if isinstance(targets, str) else tuple(sorted(map(str, targets or ()))),
        base=config.get("base_model_name_or_path") or None,
        nbytes=weights.stat().st_size,
    )


def _hf(folder: Path) -> CheckpointFacts:
    config, headers = hf.read_config(folder), hf.headers(folder)
    dtypes: dict[str, int] = {}
    for header in headers.values():
        dtypes[header.dtype] = dtypes.get(header.dtype, 0) + header.elements
    files = hf.weight_files(folder)
    return CheckpointFacts(
        family=str(config.get("model_type", "?")),
        parameters=sum(dtypes.values()),
        dtypes=dtypes,
        layers=config.get("num_hidden_layers"),
        hidden=config.get("hidden_size"),
        vocabulary=config.get("vocab_size"),
        tied="lm_head.weight" not in headers,
        shards=len(files),
        nbytes=sum(file.stat().st_size for file in files),
        tokenizer=_tokenizer(folder),
    )


def _megatron(path: Path) -> CheckpointFacts:
    checkpoint = describe(path)
    dtypes: dict[str, int] = {}
    for part in checkpoint.parts.values():
        stored, _ = checkpoint.locate(part)
        size = 1
        for n in part.shape:
            size *= n
        dtypes[stored.dtype] = dtypes.get(stored.dtype, 0) + size
    files = [checkpoint.folder / name for name in checkpoint.index.files()]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ArtifactError(f"`{missing[0]}` is missing: a shard of the checkpoint is lost", hint="copy it again")
    folder = layout.tokenizer_of(checkpoint.folder)
    shape = checkpoint.shape
    return CheckpointFacts(
        family=shape.family,
        parameters=shape.parameters,
        dtypes=dtypes,
        layers=shape.layers,
        hidden=shape.hidden,
        vocabulary=shape.vocab,
        tied=shape.tied,
        shards=len(files),
        nbytes=sum(file.stat().st_size for file in files),
        tokenizer=_tokenizer(folder) if folder else None,
        iteration=checkpoint.folder.name,
        optimizer_state=checkpoint.has_optimizer,
    )


def _tokenizer(folder: Path) -> TokenizerFacts | None:
    if not hf.tokenizer_files(folder):
        return None
    settings: dict[str, Any] = {}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        try:
            settings = read_object(path)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"`{path}` is not readable JSON", hint="copy the tokenizer again") from error
    size = hf.largest_token(folder / "tokenizer.json") + 1 if (folder / "tokenizer.json").is_file() else None
    return TokenizerFacts(str(folder), settings.get("tokenizer_class"), size, bool(templates_of(folder)))


def _prepared(path: Path) -> PreparedFacts:
    manifest = Manifest.read(path)
    splits = {name: sum(shard.rows for shard in shards) for name, shards in manifest.splits.items()}
    shards = manifest.shards()
    return PreparedFacts(
        rows=sum(splits.values()),
        splits=splits,
        kind=manifest.kind,
        files=len(shards),
        nbytes=sum(shard.bytes for shard in shards),
    )


def _data(path: Path) -> DataFacts:
    files = jsonl_files(path)
    rows, fields = 0, None
    for file in files:
        for number, line in data_lines(file):
            rows += 1
            if fields is None:
                fields = tuple(data_row(file, number, line))
    return DataFacts(rows, len(files), sum(file.stat().st_size for file in files), fields or ())


def _results(path: Path) -> ResultFacts:
    files = result_files(path)
    metrics: dict[str, Any] = {}
    for file in files:
        content = read_object(file)
        metrics |= content["results"] if isinstance(content.get("results"), dict) else content["metrics"]
    return ResultFacts(len(files), metrics)
