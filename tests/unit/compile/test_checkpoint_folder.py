"""The dry run says whose a checkpoint folder is, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from nemotron.checkpoints.owner import Owner, claim, release
from nemotron.checkpoints.store import CheckpointStore
from tests.unit.compile.compile_world import Compile, named

RULE = "checkpoint-folder-owner"


def used(folder: Path, run: Path | None) -> str:
    """A folder with a checkpoint of ``run``, as an override."""
    if run is not None:
        run.mkdir(parents=True)
        claim(folder, Owner(run.name, str(run)))
        release(folder)
    CheckpointStore(folder, None, None, True).save(7, {}, lambda path: None)
    return f"checkpointing.checkpoint_dir={folder}"


def test_a_folder_of_another_run_stops_a_new_one(compiled: Compile, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "20250131-rlhf-9f3a"
    plan = compiled("tiny", used(tmp_path / "shared", other))
    [finding] = named(plan, RULE)
    assert (finding.severity, finding.key, plan.exit_code) == ("error", "checkpointing.checkpoint_dir", 8)
    assert other.name in finding.message
    assert f"nemotron runs resume {other}" in (finding.hint or "")
    assert "policy.pretrained_checkpoint.path=" in (finding.hint or "")


def test_so_does_one_that_nobody_signed(compiled: Compile, tmp_path: Path) -> None:
    for engine in ("embedded", "nemo_rl"):
        folder = tmp_path / engine
        assert named(compiled("tiny", used(folder, None), f"engine={engine}"), RULE)


def test_an_own_or_an_empty_folder_is_no_finding(compiled: Compile, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert not named(compiled("tiny"), RULE)
    assert not named(compiled("tiny", f"checkpointing.checkpoint_dir={tmp_path / 'empty'}"), RULE)
    assert not named(compiled("tiny", f"checkpointing.checkpoint_dir={tmp_path / 'none'}"), RULE)


def test_a_run_that_goes_on_has_its_folder(compiled: Compile, tmp_path: Path) -> None:
    assert not named(compiled("tiny", used(tmp_path / "shared", None), resume=True), RULE)
