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
from typing import Any

from nemotron.config.schema.data import DatasetConfig
from nemotron.config.schema.rewards import RewardConfig
from nemotron.data.conversations import FOUND, ConversationRow, read_conversations
from nemotron.data.forms import GYM, PAIR_KEYS
from nemotron.data.inputs import Role, answer_keys, named_paths, pair_keys
from nemotron.data.rows import PairRow, PromptRow, read_pairs, read_prompts
from nemotron.data.turns import ASSISTANT
from nemotron.disk.atomic import write_lines
from nemotron.engines.nemo_rl import functions
from nemotron.engines.nemo_rl.config import data_files, section_of, uses_gym
from nemotron.engines.nemo_rl.functions import scored_by_us
from nemotron.engines.nemo_rl.gym import AGENT
from nemotron.errors import DataError, Origin
from nemotron.gym.protocol import MARK
from nemotron.rewards.rows import row_problems, scorable
from nemotron.rewards.text import gold_answers


@dataclass(frozen=True, slots=True)
class Written:
    """A file of rows."""

    file: str
    rows: int
    sha256: str


Rewrite = Callable[[Path, DatasetConfig | None], Iterator[dict[str, Any]]]
"""The rows of a file, of which a data set may name the fields."""


def write_rows(config: Any, values: Mapping[str, Any], folder: Path) -> dict[Role, tuple[Written, ...]]:
    """Write the rows of a config to ``folder``.

    Args:
        config: the typed config of the job.
        values: the same as plain values.

    Raises:
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
    section = section_of(values)
    if section in ("dpo", "rm"):
        return lambda path, dataset: map(_pair, read_pairs(path, pair_keys(dataset) if dataset else PAIR_KEYS))
    if section == "sft":
        default, last = config.data.default, config.sft.only_unmask_final
        return lambda path, dataset: (
            _conversation(path, row, only_last=last)
            for row in read_conversations(path, answer_keys(dataset, default) if dataset else FOUND)
        )
    if scored_by_us(values):
        return lambda path, _: _scored(path, config, role)
    if uses_gym(values):
        return lambda path, _: (_gym(path, row) for row in read_prompts(path))
    answers = _math_field(config) if section == "grpo" else None
    wanted = section == "grpo"
    return lambda path, _: (_question(path, row, answers, wanted=wanted) for row in read_prompts(path))


def _most(values: Mapping[str, Any], role: Role) -> int | None:
    """How many validation rows count where NeMo-Gym takes a whole file."""
    most: int | None = values["grpo"].get("max_val_samples") if role == "validation" and scored_by_us(values) else None
    return most


def _scored(path: Path, config: Any, role: Role) -> Iterator[dict[str, Any]]:
    """``NemoGymDataset`` for our own functions: every field of the row, and which row it is."""
    group = config.grpo.num_generations_per_prompt if role == "train" else 1
    rewards: RewardConfig = config.rewards
    needed = {index for index, function in enumerate(rewards.functions) if not function.optional}
    for row in scorable(rewards, list(read_prompts(path))):
        unfit = [problem for index, problem in row_problems(rewards, row.fields) if index in needed]
        if unfit:
            raise _refused(path, row, f"the row cannot be scored: {unfit[0]}", "correct it, or leave it out")
        yield {
            **row.fields,
            GYM: row.fields.get(GYM) or {"input": row.messages},
            "agent_ref": {"type": "responses_api_agents", "name": functions.AGENT},
            MARK: {"id": f"{role}/{row.id}", "group": group},
        }


def _math_field(config: Any) -> str | None:
    functions = config.rewards.functions if config.rewards else ()
    found = [function.answer_field for function in functions if function.name == "math"]
    return found[0] if found else None


def _pair(row: PairRow) -> dict[str, Any]:
    """``PreferenceDataset``: the better completion has the lower rank."""
    ranked = ((0, row.chosen), (1, row.rejected))
    return {
        "context": row.messages,
        "completions": [
            {"rank": rank, "completion": [{"role": "assistant", "content": text}]} for rank, text in ranked
        ],
    }


def _conversation(path: Path, row: ConversationRow, *, only_last: bool) -> dict[str, Any]:
    """``ResponseDataset`` of whole conversations, of which NeMo-RL learns every answer or the last one."""
    answers = [i for i, turn in enumerate(row.messages) if turn["role"] == ASSISTANT]
    if not only_last and tuple(answers) != row.answers:
        spared = next(i for i in answers if i not in row.answers)
        raise _refused(
            path,
            row,
            f"NeMo-RL learns every answer of a conversation, and turn {spared + 1} of this one is not to be learned",
            "set `sft.only_unmask_final=true`, drop the row, or run it with `engine=embedded`",
        )
    return {"messages": row.messages}


def _gym(path: Path, row: PromptRow) -> dict[str, Any]:
    """``NemoGymDataset``: a row of NeMo-Gym as it is; a prompt of another form becomes one."""
    fields = dict(row.fields)
    if fields.get(GYM) is None:
        fields = {**fields, GYM: {"input": row.messages}}
    agent = fields.get("agent_ref")
    if agent is None and fields.get("task_source") is not None:
        hint = 'give it `"agent_ref": {"type": "responses_api_agents", "name": ...}` beside it'
        raise _refused(path, row, "NeMo-Gym 0.4.0 does not know `task_source`, and the row names no agent", hint)
    if agent is None:
        fields["agent_ref"] = {"type": "responses_api_agents", "name": AGENT}
    elif not (isinstance(agent, dict) and isinstance(agent.get("name"), str)):
        raise _refused(path, row, "`agent_ref` names no agent", "write `agent_ref: {type: ..., name: ...}`")
    return fields


def _question(path: Path, row: PromptRow, answer_field: str | None, *, wanted: bool) -> dict[str, Any]:
    """``ResponseDataset``: one turn of a user, and the answer to check with. Its processor shows nothing else."""
    roles = [message["role"] for message in row.messages]
    if roles != ["user"]:
        raise _refused(
            path,
            row,
            f"NeMo-RL shows the policy one turn of a user, and this prompt has {', '.join(roles)}",
            "run it with `engine=embedded`, or through NeMo-Gym (`-c nemo_gym`), which takes whole conversations",
        )
    golds = gold_answers(row.fields, answer_field) if wanted else [""]
    if not golds:
        raise _refused(path, row, "the row has no answer to check with", "give it `expected_answer`")
    return {"input": row.messages[0]["content"], "output": golds[0]}


def _refused(path: Path, row: PromptRow | ConversationRow, message: str, hint: str) -> DataError:
    return DataError(message, hint=hint, origin=Origin(str(path), line=int(row.id.rpartition(":")[2])))


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Written:
    digest = hashlib.sha256()

    def lines() -> Iterator[bytes]:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            digest.update(line)
            yield line

    count = write_lines(path, lines())
    return Written(path.name, count, digest.hexdigest())
