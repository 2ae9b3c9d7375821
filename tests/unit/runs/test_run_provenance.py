"""Content hashes: equal for equal content, different for any change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from nemotron.errors import ArtifactError
from nemotron.runs.provenance import content_hash


def folder(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("hello")
    assert content_hash(tmp_path / "a") == hashlib.sha256(b"hello").hexdigest()


def test_a_folder_does_not_depend_on_order_or_times(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", {"a": "1", "b/c": "2"})
    two = folder(tmp_path / "two", {"b/c": "2", "a": "1"})
    os.utime(two / "a", (1, 1))
    assert content_hash(one) == content_hash(two)


@pytest.mark.parametrize("files", [{"a": "1", "b/c": "3"}, {"a": "1", "b/d": "2"}, {"a": "1"}])
def test_any_change_shows(tmp_path: Path, files: dict[str, str]) -> None:
    one = folder(tmp_path / "one", {"a": "1", "b/c": "2"})
    assert content_hash(one) != content_hash(folder(tmp_path / "two", files))


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read"):
        content_hash(tmp_path / "none")
