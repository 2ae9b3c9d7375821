"""Checkpoints appear whole or not at all, and the right ones are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron.checkpoints.store import CheckpointStore, read_info
from nemotron.errors import ArtifactError, OutputError


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
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_1"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OutputError("No space left")])
def test_a_failed_save_touches_nothing(tmp_path: Path, error: Exception) -> None:
    target = store(tmp_path)
    save(target, 1)

    def disk_full(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(OutputError, match="No space left"):
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
