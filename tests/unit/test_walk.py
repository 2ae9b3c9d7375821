"""Folders that somebody named by mistake: too large to be meant, or closed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron.data.prep import blend
from nemotron.disk import walk
from tests.in_process import nemotron


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of more files than are looked at."""
    monkeypatch.setattr(walk.files_below, "__defaults__", (20,))
    folder = tmp_path / "large"
    for number in range(30):
        (folder / str(number % 3)).mkdir(parents=True, exist_ok=True)
        (folder / str(number % 3) / f"{number}.jsonl").write_text("{}\n")
    return folder


def test_only_files_count(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("a/x")
    (tmp_path / "d").symlink_to("gone")
    (tmp_path / "e").symlink_to("e")
    os.mkfifo(tmp_path / "f")
    assert [str(path.relative_to(tmp_path)) for path in walk.files_below(tmp_path)] == ["a/x", "c"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("steps", "run", "rl_prep", "--dry-run", "output_dir=out", "blend_path={}"), 5),
        (("steps", "run", "rl_prep", "--dry-run", "output_dir=out", "blend_path={}/**/*.jsonl"), 5),
        (("artifacts", "verify", "{}"), 6),
        (("artifacts", "inspect", "{}"), 6),
        (("--steps-dir", "{}", "steps", "list"), 4),
    ],
)
def test_a_folder_that_is_too_large_is_refused(large: Path, words: tuple[str, ...], code: int) -> None:
    done = nemotron(*(word.format(large) for word in words), cwd=large.parent)
    assert done.code == code, done.stderr
    assert "cannot be looked at: it holds more than 20 files and folders" in done.stderr
    assert "hint: " in done.stderr


def test_what_cannot_be_looked_at_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link into a folder of somebody else, as `/proc` has them: root may look everywhere, so the refusal is made."""
    (tmp_path / "closed").write_text("")
    inner = Path.stat

    def refused(self: Path, **given: bool) -> os.stat_result:
        if self.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return inner(self, **given)

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(blend.DataError, match="closed` cannot be looked at: permission denied"):
        blend.expand(blend.Dataset(path=str(tmp_path)))
