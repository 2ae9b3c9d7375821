"""Cores of this process: affinity, cgroup quota, and the share that whoever started it left."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nemotron.processes import cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of 8 cores whose control group is a folder of the test."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_usable_cores(machine: Path, files: dict[str, str], usable: int) -> None:
    for name, text in files.items():
        (machine / name).parent.mkdir(exist_ok=True)
        (machine / name).write_text(text)
    assert cores.usable_cores({}) == usable


@pytest.mark.parametrize(("left", "usable"), [("3", 3), ("12", 8), ("1", 1), ("0", 8), ("", 8), ("many", 8)])
def test_a_share_of_the_cores_is_kept_to(machine: Path, left: str, usable: int) -> None:
    assert cores.usable_cores({cores.VARIABLE: left}) == usable
    assert cores.usable_cores(cores.share_environment(2)) == 2


def test_who_says_how_many_threads_there_are_is_not_bound() -> None:
    assert cores.share_environment(3, {}) == {cores.VARIABLE: "3", "OMP_THREAD_LIMIT": "3"}
    assert cores.share_environment(3, {"OMP_NUM_THREADS": "8"}) == {cores.VARIABLE: "3"}


def test_nobody_else_counts_the_cores() -> None:
    """Who counts on its own takes the whole machine where it was left a share."""
    package = Path(cores.__file__).parents[1]
    counting = [path for path in package.rglob("*.py") if re.search(r"cpu_count\(|sched_getaffinity", path.read_text())]
    assert counting == [Path(cores.__file__)]
