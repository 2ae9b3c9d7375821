"""Hostile answers: none passes, none goes missing, none leaves anything, and the next answer is taken as ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron.sandbox.box import Level, Limits, Sandbox, SandboxError

ROOT = Path(__file__).parents[3]
# The newest Landlock ABI that is used: what this kernel has, and what the oldest has on which the level is offered.
LEVELS = [("namespaces", 99), ("landlock", 99), ("landlock", 3), ("weak", 99)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's: another user has to get to it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "tmp").mkdir()
        (path / "tmp").chmod(0o777)
        yield path


def attack(user: str, level: Level, abi: int, each: int, folder: Path) -> None:
    try:
        Sandbox(level, Limits(), landlock=abi).close()
    except SandboxError as error:
        pytest.skip(f"no {level} here: {error}")
    command = [sys.executable, "-m", "tests.unit.rewards.attacks", level, str(abi), str(each)]
    if user == "ordinary" and os.geteuid() == 0:
        module = "tests.unit.rewards.attacks.ordinary"
        command = [sys.executable, "-m", module, str(folder), *command]
    elif user == "root" and os.geteuid() != 0:
        pytest.skip("only root can try it as root")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["user"] == 0) == (user == "root")
    assert told["attacks"] >= 300 // each
    assert told["findings"] == []


# More than a hundred of them for each level and user; EVERY_ATTACK=1 in the environment takes all, for minutes each.
EACH = 1 if os.environ.get("EVERY_ATTACK") else 3


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("level", "abi"), LEVELS)
@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_a_hundred_attacks_and_more(user: str, level: Level, abi: int, folder: Path) -> None:
    # Where the level is another one only by its kernel, or promises nothing, fewer.
    attack(user, level, abi, EACH if (level, abi) in LEVELS[:2] else 4 * EACH, folder)


@pytest.mark.parametrize(("user", "level"), [("root", "namespaces"), ("ordinary", "landlock")])
def test_some_attacks(user: str, level: Level, folder: Path) -> None:
    attack(user, level, 99, 40, folder)


def test_landlock_is_refused_where_it_does_not_hold() -> None:
    with pytest.raises(SandboxError, match="Landlock ABI 3 is needed"):
        Sandbox("landlock", Limits(), landlock=2)
