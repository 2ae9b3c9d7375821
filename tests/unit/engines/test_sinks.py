"""Loggers hold what metrics.jsonl holds, however attempts ended, and cost nothing when nobody asks for them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron.disk import lock
from nemotron.engines.recorder import recording
from nemotron.engines.sinks import open_sinks
from nemotron.engines.sinks.wandb import WandbSink
from nemotron.errors import ConfigError, OutputError
from nemotron.runs.folder import LOCK, RunFolder
from tests.compiled_jobs import compiled
from tests.logger_files import history, run_of, scalars

LOGGER = {
    "num_val_samples_to_print": 0,
    "wandb_enabled": False,
    "swanlab_enabled": False,
    "tensorboard_enabled": False,
    "mlflow_enabled": False,
    "monitor_gpus": False,
    "wandb": {"project": "p", "name": "n"},
    "gpu_monitoring": {"collection_interval": 10, "flush_interval": 10},
}
MakeRun = Callable[..., RunFolder]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRun]:
    """A run whose config has the given keys below ``logger``."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    made: list[RunFolder] = []

    def make(**logger: Any) -> RunFolder:
        config = {"logger": {**LOGGER, "log_dir": str(tmp_path / "logs"), **logger}, "grpo": {"seed": 3}}
        made.append(RunFolder.create(tmp_path / "runs", compiled(config=config, view="dpo")))
        return made[-1]

    yield make
    for run in made:
        lock.release(run.path / LOCK)


def attempt(run: RunFolder, done: int, steps: range, *, heldout: bool = False) -> None:
    """Steps of one attempt after step ``done``; every attempt computes the same numbers."""
    # TensorBoard reads files in the order of their names, which begin with the second of their making.
    if any(run.path.parents[1].rglob("*tfevents*")):
        time.sleep(1.0 - time.time() % 1.0)
    with recording(run, total=9, done=done) as recorder:
        if not done:
            recorder.write(0, {"heldout/fully_right": 0.1})
        for step in steps:
            recorder.step(step, {"train/loss": 1 / step, "train/broken": float("nan")})
        if heldout:
            recorder.write(steps[-1], {"heldout/fully_right": 0.9})


LOSSES = [(step, pytest.approx(1 / step)) for step in range(1, 7)]


def test_nothing_is_imported_when_nobody_asks(make_run: MakeRun) -> None:
    run = make_run()
    code = (
        "import sys; from pathlib import Path; from nemotron.runs.folder import LOCK, RunFolder\n"
        "from nemotron.engines.recorder import recording\n"
        f"run = RunFolder.open(Path({str(run.path)!r}))\n"
        "with recording(run, total=1, done=0) as recorder: recorder.step(1, {'train/loss': 1.0})\n"
        "found = {'wandb', 'tensorboard', 'torch'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert open_sinks(run) == []


@pytest.mark.parametrize("end", ["closed", "torn"])
def test_tensorboard_shows_each_step_once(make_run: MakeRun, tmp_path: Path, end: str) -> None:
    run = make_run(tensorboard_enabled=True)
    attempt(run, 0, range(1, 6))
    if end == "torn":
        [file] = (tmp_path / "logs" / "tensorboard").iterdir()
        file.write_bytes(file.read_bytes()[:-5])
    attempt(run, 3, range(4, 7), heldout=True)
    # Killed after the last evaluation but before the status said so: it is measured again.
    attempt(run, 6, range(6, 6), heldout=False)
    with recording(run, total=9, done=6) as recorder:
        recorder.write(6, {"heldout/fully_right": 0.9})
    found = scalars(tmp_path / "logs" / "tensorboard")
    assert found["train/loss"] == LOSSES
    assert found["heldout/fully_right"] == [(0, pytest.approx(0.1)), (6, pytest.approx(0.9))]
    assert "train/broken" not in found


def test_tensorboard_of_a_run_that_starts_over(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tensorboard_enabled=True, tensorboard={"log_dir": str(tmp_path / "own")})
    attempt(run, 0, range(1, 4))
    attempt(run, 0, range(1, 7))
    found = scalars(tmp_path / "own")
    assert found["train/loss"] == LOSSES
    assert [step for step, _ in found["heldout/fully_right"]] == [0]


@pytest.mark.full
def test_wandb_offline_is_one_whole_file(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(wandb_enabled=True)
    with pytest.raises(KeyboardInterrupt):
        interrupted(run)
    [first] = tmp_path.glob("logs/wandb/offline-run-*/*.wandb")
    assert [row["_step"] for row in history(first)] == [0, 1, 2, 3, 4, 5]
    attempt(run, 3, range(4, 7), heldout=True)
    [file] = tmp_path.glob("logs/wandb/offline-run-*/*.wandb")
    assert run_of(file).run_id == json.loads((run.path / "wandb.json").read_text())["id"]
    rows = history(file)
    assert [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row] == LOSSES
    assert [row["heldout/fully_right"] for row in rows if "heldout/fully_right" in row] == [0.1, 0.9]


def test_an_attempt_that_wandb_refuses_leaves_the_file_of_the_one_before(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(wandb_enabled=True)
    attempt(run, 0, range(1, 3))
    [file] = tmp_path.glob("logs/wandb/offline-run-*/*.wandb")
    before = file.read_bytes()
    path = run.path / "job.json"
    job = json.loads(path.read_text())
    job["config"]["logger"]["wandb"]["invented"] = 1
    path.write_text(json.dumps(job))
    with pytest.raises(ConfigError):
        attempt(run, 1, range(2, 3))
    assert file.read_bytes() == before


def interrupted(run: RunFolder) -> None:
    with recording(run, total=9, done=0) as recorder:
        recorder.write(0, {"heldout/fully_right": 0.1})
        for step in range(1, 6):
            recorder.step(step, {"train/loss": 1 / step})
        raise KeyboardInterrupt


def test_wandb_never_repeats_what_the_server_has(make_run: MakeRun, tmp_path: Path) -> None:
    import wandb

    started = wandb.init(dir=str(tmp_path), mode="offline", settings=wandb.Settings(silent=True, console="off"))
    sink = WandbSink(started, tmp_path, known=4)
    for step in range(1, 7):
        sink.log(step, {"train/loss": 1 / step})
    sink.log(4, {"heldout/fully_right": 0.9})
    assert started.summary["heldout/fully_right"] == 0.9
    sink.close(failed=False)
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert [row["_step"] for row in history(file)] == [5, 6]


def test_without_a_network_wandb_goes_offline(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(wandb_enabled=True)
    for name, value in {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_API_KEY": "0123456789" * 4,
        "WANDB_INIT_TIMEOUT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    [sink] = open_sinks(run)
    assert "offline" in sink.place
    sink.log(1, {"train/loss": 0.5})
    sink.close(failed=False)
    [file] = run.path.parents[1].glob("logs/wandb/offline-run-*/*.wandb")
    assert [row["train/loss"] for row in history(file)] == [0.5]


def test_what_wandb_refuses_is_a_config_error(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match=r"W&B refuses to start: .*invented"):
        open_sinks(make_run(wandb_enabled=True, wandb={"project": "p", "invented": 1}))


@pytest.mark.parametrize("key", ["logger.log_dir", "logger.tensorboard.log_dir"])
def test_a_folder_that_cannot_be_written_is_moved_by_its_key(make_run: MakeRun, tmp_path: Path, key: str) -> None:
    (tmp_path / "file").touch()
    bad = str(tmp_path / "file" / "x")
    own = {"log_dir": bad} if key == "logger.log_dir" else {"tensorboard": {"log_dir": bad}}
    with pytest.raises(OutputError) as caught:
        open_sinks(make_run(tensorboard_enabled=True, **own))
    assert f"set `{key}`" in str(caught.value.hint)
