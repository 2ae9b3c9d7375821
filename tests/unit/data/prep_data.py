"""Configs, rows and readers for the tests of the data preparation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from nemotron.config.schema.data_prep import DataPrepConfig
from nemotron.data.prep.prepare import Result, prepare
from nemotron.data.rows import read_lines
from nemotron.manifest import STEPS

DEFAULTS = YAML(typ="safe", pure=True).load(STEPS / "data_prep" / "rl_prep" / "config" / "default.yaml")


def config(output: Path, source: Any, **changes: Any) -> DataPrepConfig:
    """The step's default config with some values changed; `split` and others may be given in part."""
    values = {**DEFAULTS, "output_dir": str(output), "max_reject_share": 1.0, "num_processes": 1}
    values["blend_path"], values["blend"] = (None, source) if isinstance(source, Mapping) else (str(source), None)
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(values.get(key), dict) and value is not None else value
    return DataPrepConfig.model_validate(values)


def run(output: Path, source: Any, *, block_bytes: int | None = None, **changes: Any) -> Result:
    """Prepare, with blocks of any size."""
    extra = {} if block_bytes is None else {"block_bytes": block_bytes}
    return prepare(config(output, source, **changes), **extra)


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """Write rows; bytes are taken as they are."""
    lines = (row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def lines_of(result: Result, split: str | None = None) -> list[bytes]:
    """The lines of all shards that the manifest names, in order."""
    found = []
    for name, entry in result.manifest["splits"].items():
        for shard in entry["shards"] if split in (None, name) else ():
            found += [line.rstrip(b"\n") for _, line in read_lines(result.path.parent / shard["path"])]
    return found


def rows_of(result: Result, split: str | None = None) -> list[dict[str, Any]]:
    """The parsed rows of all shards."""
    return [json.loads(line) for line in lines_of(result, split)]


def rejects_of(result: Result) -> list[dict[str, Any]]:
    """The lines of `rejects.jsonl`."""
    text = (result.path.parent / "rejects.jsonl").read_bytes()
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of an output folder but the working state."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def prompts(count: int, *, start: int = 0) -> list[dict[str, Any]]:
    """Distinct prompt rows with foreign fields."""
    return [{"id": i, "prompt": f"Question number {i}?", "meta": {"level": i % 3}} for i in range(start, start + count)]
