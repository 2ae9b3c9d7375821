"""A checkpoint folder is one run's: nobody goes on from, or deletes, the checkpoints of another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron.checkpoints.owner import Owner, claim, owner_of, release, used_by_another
from nemotron.checkpoints.store import CheckpointStore
from nemotron.errors import OutputError


def run(tmp_path: Path, name: str) -> Owner:
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return Owner(name, str(folder))


def save(folder: Path, step: int = 1) -> None:
    CheckpointStore(folder, None, None, True).save(step, {}, lambda path: None)


def test_a_new_run_does_not_go_on_from_another_s_checkpoints(tmp_path: Path) -> None:
    folder, mine = tmp_path / "shared", run(tmp_path, "first")
    claim(folder, mine)
    save(folder)
    release(folder)
    with pytest.raises(OutputError, match="holds checkpoints of run `first`") as refused:
        claim(folder, run(tmp_path, "second"))
    assert refused.value.exit_code == 8
    hint = refused.value.hint or ""
    assert f"nemotron runs resume {mine.folder}" in hint
    assert "another `checkpointing.checkpoint_dir`" in hint
    assert f"policy.pretrained_checkpoint.path={folder / 'step_1'}" in hint
    assert owner_of(folder) == mine
    claim(folder, mine)
    release(folder)


def test_a_run_that_left_no_checkpoint_gives_its_folder_away(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    claim(folder, run(tmp_path, "first"))
    release(folder)
    claim(folder, run(tmp_path, "second"))
    release(folder)
    assert owner_of(folder) == run(tmp_path, "second")


def test_checkpoints_that_nobody_signed_are_another_s(tmp_path: Path) -> None:
    """As NeMo-RL and older versions leave them."""
    folder = tmp_path / "shared"
    save(folder, 40)
    with pytest.raises(OutputError, match="left no name") as refused:
        claim(folder, run(tmp_path, "mine"))
    assert "runs resume" not in (refused.value.hint or "")
    assert "step_40" in (refused.value.hint or "")


def test_a_run_s_own_folder_needs_no_signature(tmp_path: Path) -> None:
    mine = run(tmp_path, "mine")
    folder = Path(mine.folder, "checkpoints")
    save(folder)
    claim(folder, mine)
    release(folder)
    assert owner_of(folder) == mine


def test_a_second_live_run_is_told_who_works_there(tmp_path: Path) -> None:
    folder, first = tmp_path / "shared", run(tmp_path, "first")
    program = (
        "import sys; from pathlib import Path; from nemotron.checkpoints.owner import Owner, claim; "
        "claim(Path(sys.argv[1]), Owner('first', sys.argv[2])); print('mine', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", program, str(folder), first.folder]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(OutputError, match=f"of run `first` is in use by process {other.pid} on") as refused:
            claim(folder, run(tmp_path, "second"))
        assert refused.value.exit_code == 8
        before_it_starts = used_by_another(folder, run=None)
        assert before_it_starts is not None
        assert f"process {other.pid} on" in before_it_starts.message
        other.kill()
    # However it ended, the folder is free: it left no checkpoint.
    assert used_by_another(folder, run=None) is None
    assert os.listdir(folder)
