"""Reads golden vector files: which files lie in the folder, what is in them.

A file is named ``<stem>_v<version>.json`` or ``<stem>.json``; the stem says the format. A number in a file is an exact
float32 widened to double; ``"inf"``, ``"-inf"`` and ``"nan"`` are strings (:mod:`tests.golden.tensors`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"
_VERSION = re.compile(r"_v\d+(\.\d+)*$")


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a vector file."""

    file: dict[str, Any]
    """The whole file: shared inputs, base config, notes."""
    data: dict[str, Any]
    """The case itself; the same object as ``file`` when the file is one case."""


def golden_dir(config: pytest.Config) -> Path:
    """The folder under test. A folder that is missing or holds no vector file is an error, never a pass."""
    chosen = config.getoption("--golden-dir")
    folder = Path(chosen) if chosen is not None else DATA
    if not folder.is_dir():
        raise pytest.UsageError(f"--golden-dir: no such folder: {folder}")
    if not any(folder.glob("*.json")):
        raise pytest.UsageError(f"--golden-dir: no vector files (*.json) in {folder}")
    return folder


def stem_of(path: Path) -> str:
    """``clipped_pg_loss_v0.7.0.json`` -> ``clipped_pg_loss``."""
    return _VERSION.sub("", path.name.removesuffix(".json"))


def golden_files(config: pytest.Config, *stems: str) -> list[Path]:
    """Vector files of the folder, sorted by name; only those of the given stems when any are given."""
    return [path for path in sorted(golden_dir(config).glob("*.json")) if not stems or stem_of(path) in stems]


def load(path: Path) -> dict[str, Any]:
    """The content of a vector file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def cases_of(path: Path, part: str | None) -> list[tuple[str, Case]]:
    """Test id and case, for every case in the list ``part`` of a file; ``part=None``: the whole file is one case."""
    content = load(path)
    if part is None:
        return [(path.stem, Case(content, content))]
    return [(_case_id(path, part, i, data), Case(content, data)) for i, data in enumerate(content.get(part, []))]


def _case_id(path: Path, part: str, index: int, data: Mapping[str, Any]) -> str:
    label = data.get("name") or data.get("estimator") or data.get("kl_type")
    pieces = [path.stem, f"{part}{index}", *([str(label)] if label else [])]
    return "-".join(pieces)
