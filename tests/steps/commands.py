"""Run the command to its end in this process, or in one of its own and wait for what its run folder shows.

A new process costs seconds more, for torch is imported again. Runs that are killed are forks of this process where a
fork can do all that they do.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests import forked
from tests.in_process import Result, nemotron
from tests.unit.judge.scripted_judge import Scripted, verdict

STEP = "rl/nemo_rl/rlhf"
JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
SHORT = (
    "grpo.max_num_steps=4",
    "checkpointing.save_period=2",
    "checkpointing.keep_top_k=null",
    "eval.heldout.max_samples=16",
)
"""Enough steps for two checkpoints and one between them, few enough for a test."""
TIMEOUT_S = 240

Moment = Callable[[Path], bool]
"""Whether a folder of runs shows that the moment has come."""


def command(runs_dir: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "nemotron", "steps", "run", STEP, "-c", "tiny", "--runs-dir", str(runs_dir), *words]


def run(runs_dir: Path, *words: str, env: dict[str, str] | None = None) -> Result:
    """`steps run rl/nemo_rl/rlhf -c tiny` to its end, in this process."""
    return run_here(command(runs_dir, *words), env=env)


@contextmanager
def scripted_judge() -> Iterator[tuple[str, ...]]:
    """Words that name a judge which is a script, where what it says does not matter: ours takes seconds to start."""

    async def play(k: int, body: dict[str, Any]) -> web.Response:
        return verdict(4, 2, 2) if k % 2 else verdict(2, 4, 5)

    with Scripted(play) as judge:
        yield (f"{JUDGE}.base_url={judge.base_url}", f"{JUDGE}.model=judge", "judge.probe.enabled=false")


def run_here(argv: list[str], env: dict[str, str] | None = None) -> Result:
    """The command to its end in this process; ``argv`` begins with Python and its module, as for the others."""
    assert argv[1:3] == ["-m", "nemotron"]
    return nemotron(*argv[3:], env=env)


def run_command(argv: list[str], env: dict[str, str] | None = None, *, timeout_s: float = TIMEOUT_S) -> Result:
    """The command to its end in a process of its own."""
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def kills(moments: Mapping[str, Moment], drawn_from: Sequence[str] | None = None) -> Any:
    """Parametrize a test with ``moments`` to kill one run at, one after the other.

    `make test` kills at one moment, drawn from ``drawn_from`` or all of them, always the same; `make full` at the
    others, and with EVERY_MOMENT in the environment at each.
    """
    names = list(moments)
    drawn = random.Random(0).choice(list(drawn_from or names))
    others = [moments[name] for name in names if name != drawn or "EVERY_MOMENT" in os.environ]
    one = pytest.param([moments[drawn]], id=drawn)
    return pytest.mark.parametrize("moments", [one, pytest.param(others, id="others", marks=pytest.mark.full)])


def started(argv: list[str], log: Path | None = None) -> subprocess.Popen[bytes] | forked.Fork:
    """The command at work in a process of its own."""
    if forked.SOUND:
        assert argv[1:3] == ["-m", "nemotron"]
        return forked.Fork(forked.command(argv[3:]), log)
    with (log or Path(os.devnull)).open("wb") as said:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said)


def kill_when(
    argv: list[str], moment: Callable[[], bool], *, signum: int = signal.SIGKILL, timeout_s: float = TIMEOUT_S
) -> int:
    """Start the command, send ``signum`` as soon as ``moment`` is true, return its exit code (minus the signal)."""
    process = started(argv)
    deadline = time.monotonic() + timeout_s
    while not moment():
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signum)
    return process.wait(timeout_s)


def only_run(runs_dir: Path) -> Path:
    """The one run folder in ``runs_dir``."""
    [folder] = [entry for entry in runs_dir.iterdir() if not entry.name.startswith(".")]
    return folder


def steps_logged(runs_dir: Path) -> int:
    """Training steps that the run's metrics hold so far."""
    found = list(runs_dir.glob("*/metrics.jsonl"))
    return found[0].read_bytes().count(b'"train/reward"') if found else 0


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path, step: int = 4) -> bytes:
    """The weight file of a checkpoint, byte by byte."""
    return (folder / "checkpoints" / f"step_{step}" / "policy" / "weights" / "hf" / "model.safetensors").read_bytes()
