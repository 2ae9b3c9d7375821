"""Where a row lies, by the id that names its file alone."""

from __future__ import annotations

import json
from pathlib import Path

from nemotron.config.schema.data import DataConfig
from nemotron.data.inputs import origin_of, training_prompts
from nemotron.errors import Origin


def rows(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(3)))
    return path


def config(paths: list[Path]) -> DataConfig:
    sets = [{"data_path": str(path)} for path in paths]
    return DataConfig.model_validate({"max_input_seq_length": 64, "shuffle": False, "train": sets})


def test_a_row_is_found_in_its_file(tmp_path: Path) -> None:
    paths = [rows(tmp_path / "a" / name) for name in ("one.jsonl", "two.jsonl")]
    data = config(paths)
    found = [origin_of(data, "train", row.id) for row in training_prompts(data, "train")]
    assert found == [Origin(str(path), line) for path in paths for line in (1, 2, 3)]


def test_of_two_files_of_one_name_neither_is_named(tmp_path: Path) -> None:
    paths = [rows(tmp_path / folder / "one.jsonl") for folder in ("a", "b")]
    data = config(paths)
    assert origin_of(data, "train", "one.jsonl:2") is None
