"""A sweep on this machine: one run after the other, each a run like any other; cut off, it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemotron.disk import lock
from nemotron.runs.folder import LOCK, RunFolder, list_runs
from tests.in_process import nemotron
from tests.steps.commands import TIMEOUT_S, scripted_judge

STEP = ("steps", "run", "rl/nemo_rl/rlhf", "-c", "tiny")
SHORT = ("grpo.max_num_steps=3", "eval.heldout.max_samples=8", "checkpointing.save_period=1")


def by_limit(runs_dir: Path) -> dict[float, RunFolder]:
    return {float(run.job().config["limits"]["max_kl"]): run for run in list_runs(runs_dir)}


def wait_until(what: object) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.full
def test_a_failure_stops_no_other_and_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with scripted_judge() as judge:
        _sweeps(runs, (*SHORT, *judge))


def _sweeps(runs: Path, short: tuple[str, ...]) -> None:
    words = (*STEP, "--runs-dir", str(runs), *short, "--sweep", "limits.max_kl=1e-9,0.5")
    command = subprocess.Popen(
        [sys.executable, "-m", "nemotron", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def second_works() -> bool:
        assert command.poll() is None
        return 0.5 in (found := by_limit(runs)) and bool(found[0.5].read_metrics())

    wait_until(second_works)
    command.send_signal(signal.SIGKILL)
    command.wait()
    # The first crossed its limit, and the second began all the same.
    first, second = by_limit(runs)[1e-9], by_limit(runs)[0.5]
    assert (first.status().state, first.status().exit_code) == ("stopped", 9)
    # A run does not outlive the command that would begin the next one.
    wait_until(lambda: lock.is_held(second.path / LOCK) is False)
    assert second.status().state != "finished"

    again = nemotron(*words, "--resume")
    assert again.code == 9, again.stderr
    assert "1 of 2 runs finished" in again.stderr
    assert "run 1 of 2 (limits.max_kl=1e-09): exit code 9" in again.stderr
    assert {run.path for run in list_runs(runs)} == {first.path, second.path}
    assert second.status().state == "finished"
    parts = [run.job().asked.sweep for run in (first, second)]
    assert parts[0] is not None
    assert parts[1] is not None
    assert parts[0].id == parts[1].id
    assert parts[1].values == (("limits.max_kl", "0.5"),)
    assert not list(runs.glob(".*.lock"))

    # What is finished is left alone.
    before = {path: path.stat().st_mtime_ns for path in second.path.iterdir()}
    third = nemotron(*STEP, "--runs-dir", str(runs), *short, "--sweep", "limits.max_kl=0.5", "--resume")
    assert (third.code, f"{second.id} is finished" in third.stderr) == (0, True), third.stderr
    assert {path: path.stat().st_mtime_ns for path in second.path.iterdir()} == before

    shown = nemotron("runs", "compare", "--sweep", "last", "--json", "--runs-dir", str(runs))
    assert [(one["values"], one["status"]) for one in json.loads(shown.stdout)["runs"]] == [
        ({"limits.max_kl": "1e-09"}, "stopped"),
        ({"limits.max_kl": "0.5"}, "finished"),
    ]
