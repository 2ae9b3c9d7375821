"""The files that NeMo-Aligner reads: prompts as ``text`` lines, pairs as alternating ``text`` lines, preferred first.

Conversations are written as its preparation script for Anthropic-HH does: ``User: ...`` and ``Assistant: ...``, turns
joined by a blank line, a prompt ending in ``Assistant:``. A ``text`` row is taken to be in its final form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from nemotron.data.forms import Reading, read_prompt
from nemotron.data.manifest import file_sha256
from nemotron.data.prep.shards import Shard
from nemotron.data.rows import read_lines
from nemotron.data.turns import Message, Row
from nemotron.disk.atomic import write_lines

_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}
_ANSWER_STARTS = ("Assistant:", "<extra_id_1>Assistant\n")


def write_aligner_files(folder: Path, splits: Mapping[str, Sequence[Shard]]) -> dict[str, list[dict[str, Any]]]:
    """Write ``SPLIT_prompts.jsonl`` and, for pairs, ``SPLIT_comparisons.jsonl``; returns their manifest entries.

    Raises:
        OutputError: they cannot be written. UnusableRow: a row of the shards was changed.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for split, shards in splits.items():
        paths = [folder / shard.path for shard in shards]
        if not paths:
            continue
        files = [_write(folder / f"{split}_prompts.jsonl", _prompt_lines(paths))]
        if _has_pairs(paths):
            files.append(_write(folder / f"{split}_comparisons.jsonl", _comparison_lines(paths)))
        found[split] = files
    return found


def rows_of(paths: Sequence[Path]) -> Iterator[Row]:
    """Every row of some shards."""
    for path in paths:
        for _, line in read_lines(path):
            yield orjson.loads(line)


def prompt_text(found: Reading) -> str:
    """The prompt as NeMo-Aligner's rollouts continue it."""
    first = found.messages[0]
    alone = len(found.messages) == 1 and first["role"] == "user"
    if alone and (found.source == "text" or first["content"].endswith(_ANSWER_STARTS)):
        return first["content"]
    return f"{_turns(found.messages)}\n\nAssistant:"


def _turns(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{_SPEAKERS.get(m['role'], m['role'])}: {m['content']}" for m in messages)


def _with_answer(prompt: str, answer: str) -> str:
    return f"{prompt} {answer}" if prompt.endswith("Assistant:") else f"{prompt}{answer}"


def _has_pairs(paths: Sequence[Path]) -> bool:
    return any(read_prompt(row).chosen for row in rows_of(paths[:1]))


def _prompt_lines(paths: Sequence[Path]) -> Iterator[str]:
    for row in rows_of(paths):
        yield prompt_text(read_prompt(row))


def _comparison_lines(paths: Sequence[Path]) -> Iterator[str]:
    for row in rows_of(paths):
        found = read_prompt(row)
        if found.chosen and found.rejected:
            prompt = prompt_text(found)
            yield _with_answer(prompt, found.chosen)
            yield _with_answer(prompt, found.rejected)


def _write(path: Path, texts: Iterator[str]) -> dict[str, Any]:
    rows = write_lines(path, (orjson.dumps({"text": text}) + b"\n" for text in texts))
    return {"path": path.name, "rows": rows, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
