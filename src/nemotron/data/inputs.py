"""Which files the rows of a training config are in. The preflight and the engines ask here, so that they agree.

``data.manifest_path`` wins over the ``data_path`` of the data sets: with it, training and validation rows are the
splits ``train`` and ``validation`` of the manifest. A ``data_path`` on the command line beside a manifest is an error
(``compile/rules/prepared.py``), so nothing that was asked for is passed over.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Literal, Protocol

from nemotron.config.schema.data import DataConfig, DatasetConfig
from nemotron.data.conversations import FOUND, AnswerKeys, ConversationRow, read_conversations
from nemotron.data.manifest import Manifest, split_paths
from nemotron.data.rows import PAIR_KEYS, PairKeys, PairRow, PromptRow, read_pairs, read_prompts
from nemotron.disk.home import expanded
from nemotron.errors import ConfigError, Origin

Role = Literal["train", "validation"]


class HeldoutFiles(Protocol):
    """Where an ``eval.heldout`` keeps its rows."""

    @property
    def data_path(self) -> str | None: ...
    @property
    def split(self) -> str | None: ...


def data_paths(data: DataConfig, role: Role, *, verify: bool = False) -> list[Path]:
    """The files of the training or validation rows, in order: those of the data sets, or the shards of the manifest.

    Without ``data.validation`` there are no validation rows, whatever the manifest holds. With ``verify`` the shards
    are hashed, else only their sizes are compared.

    Raises:
        DataError: the manifest has no such rows, or a shard of it is missing or was changed.
    """
    sets = data.training_sets() if role == "train" else data.validation_sets()
    if data.manifest_path is not None:
        return split_paths(expanded(data.manifest_path), role, verify=verify) if sets else []
    shared = data.default.data_path if data.default else None
    paths = (rows.data_path or shared for rows in sets)
    return [expanded(path) for path in paths if path]


def training_prompts(data: DataConfig, role: Role) -> list[PromptRow]:
    """The prompts of a split, after the shards of a manifest were hashed.

    Raises:
        DataError: as :func:`data_paths`, or a row without a prompt.
    """
    return list(chain.from_iterable(map(read_prompts, data_paths(data, role, verify=True))))


def origin_of(data: DataConfig, role: Role, row: str) -> Origin | None:
    """Where the row with an id lies, which names its file without the folder; None where several files are called so.

    Raises:
        DataError: as :func:`data_paths`.
    """
    name, _, number = row.rpartition(":")
    found = [path for path in data_paths(data, role) if path.name == name]
    return Origin(str(found[0]), int(number)) if len(found) == 1 and number.isdecimal() else None


def training_pairs(data: DataConfig, role: Role) -> list[PairRow]:
    """The preference pairs of a split, after the shards of a manifest were hashed. Data sets may name their fields
    by ``prompt_key``, ``chosen_key`` and ``rejected_key``; prepared pairs have ours.

    Raises:
        DataError: as :func:`data_paths`, or a row that is no pair.
    """
    return [
        row
        for path, rows in named_paths(data, role)
        for row in read_pairs(path, pair_keys(rows) if rows else PAIR_KEYS)
    ]


def training_conversations(data: DataConfig, role: Role) -> list[ConversationRow]:
    """The conversations of a split, after the shards of a manifest were hashed. Data sets may name the fields of a
    question and its answer by ``input_key`` and ``output_key``.

    Raises:
        DataError: as :func:`data_paths`, or a row that is no conversation with an answer.
    """
    return [
        row
        for path, rows in named_paths(data, role)
        for row in read_conversations(path, answer_keys(rows, data.default) if rows else FOUND)
    ]


def named_paths(data: DataConfig, role: Role) -> list[tuple[Path, DatasetConfig | None]]:
    """The files of :func:`data_paths`, verified, each with the data set that names its fields; None: a shard.

    Raises:
        DataError: as :func:`data_paths`.
    """
    paths = data_paths(data, role, verify=True)
    if data.manifest_path is not None:
        return [(path, None) for path in paths]
    sets = data.training_sets() if role == "train" else data.validation_sets()
    with_files = [rows for rows in sets if rows.data_path or (data.default and data.default.data_path)]
    return list(zip(paths, with_files, strict=True))


def pair_keys(rows: DatasetConfig) -> PairKeys:
    """The fields that a data set names."""
    return PairKeys(rows.prompt_key or "prompt", rows.chosen_key or "chosen", rows.rejected_key or "rejected")


def answer_keys(rows: DatasetConfig, default: DatasetConfig | None) -> AnswerKeys:
    """The fields that a data set, or the one whose keys all share, names for a question and its answer."""
    question = rows.input_key or (default.input_key if default else None)
    return AnswerKeys(question, rows.output_key or (default.output_key if default else None))


def token_split(data: DataConfig, role: str) -> tuple[Path, str]:
    """Manifest and split for ``nemotron.rl.tokenized.TokenizedDataset``, where ``data.use_tokens`` asks for it.

    Raises:
        ConfigError: no manifest. DataError: it cannot be read, or has no such split.
    """
    if data.manifest_path is None:
        raise ConfigError("`data.use_tokens` needs prepared data", hint="set `data.manifest_path`")
    manifest = Manifest.read(expanded(data.manifest_path))
    return manifest.path, manifest.split(role)


def heldout_paths(data: DataConfig, heldout: HeldoutFiles, *, verify: bool = False) -> list[Path]:
    """The files of the held-out prompts: ``data_path``, or the shards of ``split``.

    Raises:
        ConfigError: neither, or a split without a manifest. DataError: as :func:`data_paths`.
    """
    if heldout.split is None:
        if heldout.data_path is None:
            raise ConfigError("the held-out metric has no prompts", hint="set `eval.heldout.data_path`")
        return [expanded(heldout.data_path)]
    if data.manifest_path is None:
        raise ConfigError("`eval.heldout.split` names a split of a manifest, and `data.manifest_path` is not set")
    return split_paths(expanded(data.manifest_path), heldout.split, verify=verify)
