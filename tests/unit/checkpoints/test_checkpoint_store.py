"""Checkpoints appear whole or not at all, and the right ones are kept."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from nemotron.checkpoints.store import CheckpointStore, read_info
from nemotron.errors import ArtifactError, OutputError
from nemotron.rl.saving import Saver, of_own_checkpoint


def store(folder: Path, keep: int | None = None, metric: str | None = None, higher: bool = True) -> CheckpointStore:
    return CheckpointStore(folder, keep, metric, higher)


def fill(folder: Path) -> None:
    (folder / "weights").write_text("w")


def save(target: CheckpointStore, step: int, **info: float) -> Path:
    return target.save(step, {"total_steps": step, **info}, fill)


def test_save_writes_info_and_leaves_no_temporary(tmp_path: Path) -> None:
    checkpoint = save(store(tmp_path), 3)
    assert checkpoint == tmp_path / "step_3"
    assert read_info(checkpoint) == {"total_steps": 3}
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_3"]


def test_latest_goes_by_number_not_by_name(tmp_path: Path) -> None:
    target = store(tmp_path)
    for step in (9, 10, 2):
        save(target, step)
    assert target.steps() == [2, 9, 10]
    assert target.latest() == tmp_path / "step_10"


def test_newest_k_are_kept_without_metric(tmp_path: Path) -> None:
    target = store(tmp_path, keep=2)
    for step in range(1, 6):
        save(target, step)
    assert target.steps() == [4, 5]


@pytest.mark.parametrize(("higher", "kept"), [(True, [2, 4]), (False, [1, 4])])
def test_best_k_and_the_latest_are_kept(tmp_path: Path, higher: bool, kept: list[int]) -> None:
    target = store(tmp_path, keep=1, metric="val:accuracy", higher=higher)
    for step, value in enumerate([0.1, 0.9, 0.5, 0.3], start=1):
        save(target, step, **{"val:accuracy": value})
    assert target.steps() == kept


def test_checkpoint_without_the_metric_ranks_worst(tmp_path: Path) -> None:
    target = store(tmp_path, keep=1, metric="val:accuracy")
    save(target, 1, **{"val:accuracy": 0.1})
    save(target, 2)
    save(target, 3)
    assert target.steps() == [1, 3]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    target = store(tmp_path)
    save(target, 1, loss=1.0)
    save(target, 1, loss=2.0)
    assert read_info(tmp_path / "step_1")["loss"] == 2.0
    target.wait()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_1"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OutputError("No space left")])
def test_a_failed_save_touches_nothing(tmp_path: Path, error: Exception) -> None:
    target = store(tmp_path)
    save(target, 1)

    def disk_full(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(OutputError, match=r"(?i)no space left"):
        target.save(2, {}, disk_full)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_1"]


def test_recover_removes_half_written_and_restores_what_was_being_replaced(tmp_path: Path) -> None:
    target = store(tmp_path)
    save(target, 1)
    (tmp_path / "step_1").rename(tmp_path / "old_step_1")
    (tmp_path / "tmp_step_2").mkdir()
    target.recover()
    assert target.steps() == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_1"]


def test_damaged_info_is_an_artifact_error(tmp_path: Path) -> None:
    checkpoint = save(store(tmp_path), 1)
    (checkpoint / "training_info.json").write_text('{"total_')
    with pytest.raises(ArtifactError, match="training_info"):
        read_info(checkpoint)


def test_no_folder_means_no_checkpoints(tmp_path: Path) -> None:
    target = store(tmp_path / "none")
    assert target.latest() is None
    target.recover()
    assert target.latest() is None


def test_a_place_that_takes_no_checkpoint_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write checkpoints to"):
        store(tmp_path / "file" / "checkpoints").recover()


DIES_WHILE_PRUNING = """
import os, signal, sys
from pathlib import Path
from nemotron.checkpoints.store import CheckpointStore

store = CheckpointStore(Path(sys.argv[1]), 1, "val:accuracy", True)
gone = []

def die(event, arguments):
    # After the file that says how good the checkpoint is, and before the rest of it.
    if event in ("os.remove", "os.rmdir"):
        if gone:
            os.kill(os.getpid(), signal.SIGKILL)
        gone.append(arguments[0])

def fill(folder):
    (folder / "weights").write_text("w")

sys.addaudithook(die)
for step in (1, 2, 3):
    store.save(step, {"total_steps": step, "val:accuracy": step / 10}, fill)
store.wait()
"""


def test_a_run_killed_while_it_prunes_goes_on_and_saves(tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", DIES_WHILE_PRUNING, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    target = store(tmp_path, keep=1, metric="val:accuracy")
    for checkpoint in tmp_path.glob("step_*"):
        assert (checkpoint / "weights").is_file(), "a name that says `complete` on half a checkpoint"
        assert read_info(checkpoint)["total_steps"]
    target.recover()
    for step in (3, 4, 5):
        save(target, step, **{"val:accuracy": step / 10})
    target.wait()
    assert target.steps() == [5]
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_5"]


def test_of_a_link_the_link_is_pruned(tmp_path: Path) -> None:
    target = store(tmp_path / "checkpoints", keep=1)
    save(store(tmp_path / "elsewhere"), 1)
    (tmp_path / "checkpoints").mkdir()
    # Moved to another disk by hand: what a link leads to is not ours to remove.
    (tmp_path / "checkpoints" / "step_1").symlink_to(tmp_path / "elsewhere" / "step_1")
    save(target, 2)
    save(target, 3)
    target.wait()
    assert target.steps() == [3]
    assert (tmp_path / "elsewhere" / "step_1" / "weights").is_file()


def test_what_cannot_be_pruned_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    target = store(tmp_path / "checkpoints", keep=1)
    save(target, 1)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    save(target, 2)
    target.wait()
    assert target.steps() == [2]
    assert "cannot be removed: Operation not permitted" in capsys.readouterr().err


def test_a_checkpoint_without_info_ranks_last_and_stops_no_save(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = store(tmp_path, keep=1, metric="val:accuracy")
    save(target, 1, **{"val:accuracy": 0.9})
    (tmp_path / "step_1" / "training_info.json").unlink()
    save(target, 2, **{"val:accuracy": 0.1})
    target.wait()
    assert target.steps() == [2]
    assert "it ranks last" in capsys.readouterr().err


def test_a_damaged_part_is_mended_by_removing_the_whole_checkpoint(tmp_path: Path) -> None:
    """With `policy/optimizer` alone taken away the run would find the same step again."""
    checkpoint = save(store(tmp_path), 3)
    policy = Mock()
    saver = Saver(store(tmp_path), None, {"policy": policy}, policy, lambda: policy, save_hf=False)
    with pytest.raises(ArtifactError, match=r"optimizer\.pt") as caught:
        saver.load(checkpoint)
    assert str(caught.value.hint).startswith(f"remove `{checkpoint}`;")
    with pytest.raises(ArtifactError) as caught, of_own_checkpoint(checkpoint):
        raise ArtifactError("damaged", hint="copy it again")
    assert str(caught.value.hint).startswith(f"remove `{checkpoint}`;")


def test_a_full_disk_is_no_reason_for_another_folder(tmp_path: Path) -> None:
    """With another folder it would be another run, which begins at the first step."""

    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError) as caught:
        store(tmp_path).save(1, {}, full)
    assert "checkpoint_dir" not in str(caught.value.hint)
    assert "`nemotron runs resume`" in str(caught.value.hint)
