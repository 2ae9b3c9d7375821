"""`runs resume --max-steps`: what can go on, until where, and what is said about data and learning rate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemotron.disk import lock
from nemotron.engines.extension import plan_extension
from nemotron.errors import ArtifactError, OutputError, UsageError
from nemotron.executors.local import resume
from nemotron.runs.folder import RunFolder
from tests.compiled_jobs import compiled

WARM = {"name": "torch.optim.lr_scheduler.LinearLR", "kwargs": {"start_factor": 0.1, "total_iters": 2}}
ONE_CYCLE = {"name": "torch.optim.lr_scheduler.OneCycleLR", "kwargs": {"max_lr": 1e-3, "total_steps": 6}}
COSINE = {"name": "torch.optim.lr_scheduler.CosineAnnealingLR", "kwargs": {"T_max": 4}}


def finished(folder: Path, *, section: str = "dpo", most: int = 6, done: int = 6, **changes: Any) -> RunFolder:
    """A run of ``done`` steps that says it is finished, and has a checkpoint."""
    config = {
        section: {"max_num_steps": most, "max_num_epochs": 2},
        "policy": {"scheduler": changes.pop("scheduler", None)},
        "checkpointing": {"checkpoint_dir": str(folder / "checkpoints")},
    }
    step = changes.pop("step", f"rl/nemo_rl/{section}")
    state = changes.pop("state", "finished")
    run = RunFolder.create(folder, compiled(step=step, config=config, asked=changes))
    (folder / "checkpoints" / f"step_{done}").mkdir(parents=True)
    run.write_status(state=state, steps_done=done)
    lock.release(run.path / "run.lock")
    return run


@pytest.mark.parametrize("section", ["grpo", "dpo", "rm", "ppo"])
def test_every_training_step_can_be_extended(section: str, tmp_path: Path) -> None:
    run = finished(tmp_path, section=section)
    found = plan_extension(run, run.job(), 9)
    assert (found.key, found.before, found.after, found.remarks) == (f"{section}.max_num_steps", 6, 9, ())


@pytest.mark.parametrize("steps", [6, 1, -1])
def test_the_end_is_above_what_is_done(steps: int, tmp_path: Path) -> None:
    run = finished(tmp_path)
    with pytest.raises(UsageError, match="has made 6 steps already"):
        plan_extension(run, run.job(), steps)


def test_a_killed_run_counts_the_steps_that_it_has_logged(tmp_path: Path) -> None:
    run = finished(tmp_path, most=60, done=2)
    run.write_status(state="running")
    run.append_metrics({"step": 5, "train/loss": 1.0})
    with pytest.raises(UsageError, match="has made 5 steps"):
        plan_extension(run, run.job(), 5)
    assert plan_extension(run, run.job(), 6).before == 60


@pytest.mark.parametrize("most", [60, -1])
def test_data_that_have_ended_the_run_end_it_again(most: int, tmp_path: Path) -> None:
    run = finished(tmp_path, section="rm", most=most)
    with pytest.raises(UsageError, match="the data ended run") as caught:
        plan_extension(run, run.job(), 70)
    assert caught.value.hint == "start a new run with `rm.max_num_epochs` above 2"


def test_there_is_something_to_go_on_from(tmp_path: Path) -> None:
    run = finished(tmp_path)
    (tmp_path / "checkpoints" / "step_6").rmdir()
    with pytest.raises(ArtifactError, match="no checkpoint to go on from"):
        plan_extension(run, run.job(), 9)


def test_what_trains_nothing_is_not_extended(tmp_path: Path) -> None:
    run = finished(tmp_path, section="audit", step="eval/reward_audit")
    job = run.job()
    del job.config["audit"]["max_num_steps"]
    with pytest.raises(UsageError, match="trains nothing"):
        plan_extension(run, job, 9)


def test_epochs_that_end_first_are_named(tmp_path: Path) -> None:
    run = finished(tmp_path, data_steps=8)
    assert plan_extension(run, run.job(), 8).remarks == ()
    assert plan_extension(run, run.job(), 9).remarks == ("the epochs end the run after about 8 steps, before step 9",)


def test_the_learning_rate_does_not_change_in_silence(tmp_path: Path) -> None:
    run = finished(tmp_path, scheduler=[WARM], schedules=["policy.scheduler"])
    assert plan_extension(run, run.job(), 9).remarks == (
        "`policy.scheduler` was computed for 6 steps and stays as it is: "
        "a run that is started with 9 steps has another learning rate",
    )


def test_a_cosine_that_rises_again_is_named(tmp_path: Path) -> None:
    run = finished(tmp_path, scheduler=[WARM, COSINE, {"milestones": [2]}])
    assert plan_extension(run, run.job(), 9).remarks == (
        "`policy.scheduler` ends at step 6; after that a cosine rises again",
    )


@pytest.mark.parametrize("length", [{"total_steps": 6}, {"epochs": 2, "steps_per_epoch": 3}], ids=["steps", "epochs"])
def test_a_schedule_that_cannot_go_on_is_refused(tmp_path: Path, length: dict[str, int]) -> None:
    run = finished(tmp_path, scheduler=[{**ONE_CYCLE, "kwargs": {"max_lr": 1e-3, **length}}])
    with pytest.raises(UsageError, match="OneCycleLR of 6 steps"):
        plan_extension(run, run.job(), 9)


def test_a_refused_extension_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run = finished(tmp_path)
    job, status = (run.path / "job.json").read_bytes(), run.status()
    with pytest.raises(UsageError):
        resume(run.path, max_steps=6)
    assert ((run.path / "job.json").read_bytes(), run.status()) == (job, status)


HOLD = """
import sys, pathlib
from nemotron.runs.folder import RunFolder
with RunFolder.open(pathlib.Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_at_work_is_not_extended(tmp_path: Path) -> None:
    run = finished(tmp_path)
    argv = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=str(other.pid)):
            resume(run.path, max_steps=9)
    assert not run.job().asked.resumed
