"""Rows in the form that NeMo-RL's data sets read, written where the rows can be read: beside the run, on the cluster.

Whatever form a row has (see :mod:`nemotron.data.forms`), it is read as every other part of this product reads it, so a
row that is refused here is refused by the preflight and the embedded engine in the same words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from nemotron.compile.nemo_rl_rows import Learned, Question, given
from nemotron.config.schema.data import DatasetConfig
from nemotron.config.schema.rewards import RewardConfig
from nemotron.data.conversations import FOUND, ConversationRow, read_conversations
from nemotron.data.forms import GYM, PAIR_KEYS
from nemotron.data.inputs import Role, answer_keys, named_paths, pair_keys
from nemotron.data.rows import PairRow, PromptRow, placed, read_pairs, read_prompts
from nemotron.data.turns import UnusableRow
from nemotron.disk.atomic import write_lines
from nemotron.engines.nemo_rl import functions
from nemotron.engines.nemo_rl.config import data_files, section_of
from nemotron.engines.nemo_rl.functions import scored_by_us
from nemotron.errors import ConfigError
from nemotron.gym.protocol import MARK
from nemotron.rewards.rows import row_problems, scorable


@dataclass(frozen=True, slots=True)
class Written:
    """A file of rows."""

    file: str
    rows: int
    sha256: str


R = TypeVar("R", PromptRow, ConversationRow)
Rewrite = Callable[[Path, DatasetConfig | None], Iterator[dict[str, Any]]]
"""The rows of a file, of which a data set may name the fields."""


def write_rows(config: Any, values: Mapping[str, Any], folder: Path) -> dict[Role, tuple[Written, ...]]:
    """Write the rows of a config to ``folder``.

    Args:
        config: the typed config of the job.
        values: the same as plain values.

    Raises:
        ConfigError: nothing rewards them there.
        DataError: a file cannot be read, or a row is not one that NeMo-RL could be given.
        OutputError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = section_of(values) in ("dpo", "rm")
    found: dict[Role, tuple[Written, ...]] = {}
    roles: tuple[Role, ...] = ("train", "validation")
    for role in roles:
        names = data_files(values, role, pairs=pairs, pair_sets=pair_sets(config))
        sources = named_paths(config.data, role)
        groups: Sequence[Sequence[tuple[Path, DatasetConfig | None]]] = (
            [sources] if len(names) == 1 else [[source] for source in sources]
        )
        rewrite, most = _rewrite(config, values, role), _most(values, role)
        found[role] = tuple(
            _write(folder / name, islice((row for path, dataset in group for row in rewrite(path, dataset)), most))
            for name, group in zip(names, groups, strict=True)
        )
    return found


def pair_sets(config: Any) -> tuple[str, ...]:
    """Names of several validation sets of pairs; empty where there is one or none."""
    if config.section not in ("dpo", "rm"):
        return ()
    names = tuple(config.data.named_validation_sets())
    return names if len(names) > 1 else ()


def _rewrite(config: Any, values: Mapping[str, Any], role: Role) -> Rewrite:
    if section_of(values) in ("dpo", "rm"):
        return lambda path, dataset: map(_pair, read_pairs(path, pair_keys(dataset) if dataset else PAIR_KEYS))
    if scored_by_us(values):
        return lambda path, _: _scored(path, config, role)
    form = given(config)
    if isinstance(form, Learned):
        default = config.data.default
        return lambda path, dataset: (
            _placed(path, row, form)
            for row in read_conversations(path, answer_keys(dataset, default) if dataset else FOUND)
        )
    if form is None:
        raise ConfigError("NeMo-RL has nothing that rewards these rows", hint="set `env.should_use_nemo_gym=true`")
    rewards = config.rewards if isinstance(form, Question) and form.checked else None
    return lambda path, _: (_placed(path, row, form) for row in _usable(path, rewards))


def _most(values: Mapping[str, Any], role: Role) -> int | None:
    """How many validation rows count where NeMo-Gym takes a whole file."""
    most: int | None = values["grpo"].get("max_val_samples") if role == "validation" and scored_by_us(values) else None
    return most


def _scored(path: Path, config: Any, role: Role) -> Iterator[dict[str, Any]]:
    """``NemoGymDataset`` for our own functions: every field of the row, and which row it is."""
    group = config.grpo.num_generations_per_prompt if role == "train" else 1
    for row in _usable(path, config.rewards):
        yield {
            **row.fields,
            GYM: row.fields.get(GYM) or {"input": row.messages},
            "agent_ref": {"type": "responses_api_agents", "name": functions.AGENT},
            MARK: {"id": f"{role}/{row.id}", "group": group},
        }


def _pair(row: PairRow) -> dict[str, Any]:
    """``PreferenceDataset``: the better completion has the lower rank."""
    ranked = ((0, row.chosen), (1, row.rejected))
    return {
        "context": row.messages,
        "completions": [
            {"rank": rank, "completion": [{"role": "assistant", "content": text}]} for rank, text in ranked
        ],
    }


def _usable(path: Path, rewards: RewardConfig | None) -> Iterator[PromptRow]:
    """The rows that functions can score, all without functions; those that they cannot are left out or refused, as the
    config says."""
    if rewards is None:
        yield from read_prompts(path)
        return
    needed = {index for index, function in enumerate(rewards.functions) if not function.optional}
    for row in scorable(rewards, list(read_prompts(path))):
        unfit = [problem for index, problem in row_problems(rewards, row.fields) if index in needed]
        if unfit:
            problem = UnusableRow("unfit", f"the row cannot be scored: {unfit[0]}", "correct it, or leave it out")
            raise placed(problem, path, _line(row))
        yield row


def _placed(path: Path, row: R, become: Callable[[R], dict[str, Any]]) -> dict[str, Any]:
    try:
        return become(row)
    except UnusableRow as problem:
        raise placed(problem, path, _line(row)) from problem


def _line(row: PromptRow | ConversationRow) -> int:
    return int(row.id.rpartition(":")[2])


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Written:
    digest = hashlib.sha256()

    def lines() -> Iterator[bytes]:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            digest.update(line)
            yield line

    count = write_lines(path, lines())
    return Written(path.name, count, digest.hexdigest())
