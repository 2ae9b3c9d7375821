"""Which artifact type a path is, judged by what lies there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from nemotron.checkpoints import hf
from nemotron.checkpoints.adapter_files import is_adapter
from nemotron.checkpoints.megatron import layout
from nemotron.data.manifest import FILE as MANIFEST
from nemotron.disk.documents import LONGEST_LINE, lines_of, open_regular, parse_json, read_json
from nemotron.disk.faults import reason
from nemotron.disk.walk import files_below
from nemotron.errors import ArtifactError, DataError

Kind = Literal[
    "checkpoint_hf", "checkpoint_lora", "checkpoint_megatron", "prepared_data", "training_jsonl", "eval_results"
]


def located(path: Path) -> Path:
    """The folder that counts: of a NeMo-RL ``step_N`` without a Megatron checkpoint, the model that it holds."""
    if path.is_dir() and not hf.is_hf(path) and layout.find_iteration(path) is None:
        return hf.in_step(path) or path
    return path


def recognise(path: Path) -> Kind:
    """The type of the artifact at ``path``.

    Raises:
        ArtifactError: nothing is there, or nothing that is known.
    """
    path = located(path)
    if not path.exists():
        raise ArtifactError(f"there is nothing at `{path}`", hint="check the path")
    if path.is_file():
        if path.suffix == ".jsonl":
            return "training_jsonl"
        if path.name == MANIFEST and _names_shards(path):
            return "prepared_data"
        if path.suffix == ".json" and _scores(path):
            return "eval_results"
    elif is_adapter(path):
        return "checkpoint_lora"
    elif hf.is_hf(path):
        return "checkpoint_hf"
    elif layout.find_iteration(path) is not None:
        return "checkpoint_megatron"
    elif _names_shards(path / MANIFEST):
        return "prepared_data"  # before its rows are taken for a folder of JSONL files, which says nothing of hashes
    elif jsonl_files(path):
        return "training_jsonl"
    elif result_files(path):
        return "eval_results"
    raise ArtifactError(
        f"`{path}` is no artifact of a known type",
        hint="known are Hugging Face and Megatron checkpoints, LoRA adapters, prepared data, JSONL data, and "
        "JSON files with `results` or `metrics`",
    )


def jsonl_files(path: Path) -> list[Path]:
    """The JSONL files of a data set: the file itself, or all below a folder, in order of name."""
    if path.is_file():
        return [path]
    return [file for file in artifact_files(path) if file.suffix == ".jsonl" and not _hidden(file, path)]


def result_files(path: Path) -> list[Path]:
    """The JSON files with scores: the file itself, or those below a folder, in order of name."""
    if path.is_file():
        return [path]
    found = (file for file in artifact_files(path) if file.suffix == ".json" and not _hidden(file, path))
    return [file for file in found if _scores(file)]


def data_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file of rows that are not blank, each with its number from 1.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open_regular(file) as opened:
            lines = enumerate(lines_of(opened, LONGEST_LINE), start=1)
            yield from ((number, line) for number, line in lines if line.strip())
    except OSError as error:
        raise DataError(f"`{file}` cannot be read: {reason(error)}") from error


def data_row(file: Path, number: int, line: bytes) -> dict[str, Any]:
    """The row on a line of a file.

    Raises:
        DataError: it is no JSON object.
    """
    try:
        row = parse_json(line)
    except ValueError as error:
        raise DataError(f"`{file}` line {number} {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"`{file}` line {number} is not a JSON object")
    return row


def artifact_files(folder: Path) -> list[Path]:
    """The files below a folder, in order of name.

    Raises:
        ArtifactError: it cannot be looked at, or holds more than any artifact.
    """
    try:
        return files_below(folder)
    except OSError as error:
        raise ArtifactError(
            f"`{error.filename or folder}` cannot be looked at: {reason(error)}",
            hint=f"name the folder of the artifact, if `{folder}` is not it",
        ) from error


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _names_shards(path: Path) -> bool:
    """A JSON object with splits: a manifest, if a broken one, which is said when it is read."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and isinstance(content.get("splits"), dict)


def _scores(path: Path) -> bool:
    """A JSON object with a mapping of results: the shape that evaluation harnesses write."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False  # not results, whatever else it is
    return isinstance(content, dict) and any(isinstance(content.get(key), dict) for key in ("results", "metrics"))
