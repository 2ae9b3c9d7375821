"""Sandboxes come and go with the process that uses them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron.sandbox.box import LEVELS, Level, Limits, Sandbox, SandboxError, containment
from nemotron.sandbox.removal import remove
from tests.unit.sandbox.sandbox_processes import processes_with


def test_folder_goes_with_the_sandbox() -> None:
    level, _ = containment()
    sandbox = Sandbox(level, Limits())
    folder = Path(sandbox._folder)
    assert folder.is_dir()
    sandbox.close()
    assert not folder.exists()
    with pytest.raises(SandboxError):
        sandbox.run(["-c", "1"], {})


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_outlives_a_killed_parent(level: Level, tmp_path: Path) -> None:
    marker = f"outlives-{os.getpid()}-{level}"
    script = f"""
from nemotron.sandbox.box import *
with Sandbox({level!r}, Limits(cpu_s=100, wall_s=600.0)) as box:
    print("ready", flush=True)
    box.run(["-c", "import time; time.sleep(600)", {marker!r}], {{}})
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    with parent:
        if parent.stdout.readline() != "ready\n":
            pytest.skip(f"no {level} here")
        wait_for(lambda: len(processes_with(marker)) > 0)
        parent.kill()
    wait_for(lambda: processes_with(marker) == [])
    wait_for(lambda: list(tmp_path.iterdir()) == [])


@pytest.mark.parametrize("level", LEVELS)
def test_the_folder_goes_when_the_owner_hangs_up_and_does_nothing_more(level: Level) -> None:
    """As one that is being killed does: its end of the socket is closed before it counts as dead."""
    try:
        sandbox = Sandbox(level, Limits())
    except SandboxError as error:
        pytest.skip(f"no {level} here: {error}")
    sandbox.kill()
    sandbox._process.wait(60)
    assert not Path(sandbox._folder).exists()
    sandbox.close()


def test_a_sandbox_outlives_the_thread_that_made_it() -> None:
    made: list[Sandbox] = []
    thread = threading.Thread(target=lambda: made.append(Sandbox(containment()[0], Limits())))
    thread.start()
    thread.join()
    with made[0] as box:
        assert box.run(["-c", "print(1)"], {}).stdout == "1\n"


def test_the_strongest_level_that_holds_is_chosen() -> None:
    level, why = containment()
    assert list(why) == list(LEVELS[: LEVELS.index(level)])


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_folder_of_any_depth_and_mode_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "box"
    folder.mkdir()
    place = os.open(folder, os.O_RDONLY)
    for _ in range(1200):  # deeper than a recursion goes, and longer than a path may be
        os.mkdir("d" * 8, dir_fd=place)
        inner = os.open("d" * 8, os.O_RDONLY, dir_fd=place)
        os.chmod(place, 0)
        os.close(place)
        place = inner
    os.close(place)
    remove(str(folder))
    assert list(tmp_path.iterdir()) == []
    remove(str(folder))
    assert list(tmp_path.iterdir()) == []
