"""Runs that start the real vLLM, and what is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.alive import state_of

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("NEMOTRON_VLLM_VENV", ROOT / "build" / "vllm"))
BLOCK = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
RLHF, AUDIT = ("rl/nemo_rl/rlhf", "-c", "tiny"), ("eval/reward_audit", "-c", "tiny")
READY_S = 300


@contextmanager
def running(runs: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "nemotron", "steps", "run", *words, "--runs-dir", str(runs)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            yield run
        finally:
            run.kill()


def finished(runs: Path, *words: str) -> Path:
    with running(runs, *words) as run:
        said, _ = run.communicate(timeout=900)
    assert run.returncode == 0, said
    [folder] = runs.iterdir()
    return folder


def rows(run: Path) -> list[dict[str, Any]]:
    """Of the metrics; one that is being written is none yet."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()] if path.exists() else []


def heldout(run: Path, when: str) -> float:
    status = json.loads((run / "status.json").read_text())
    return float(status[f"heldout_{when}"]["fully_right"])


def wait_for(what: Callable[[], object], seconds: float, told: str) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"{told} after {seconds:g} s"
        time.sleep(0.05)


def processes(marks: tuple[str, ...]) -> list[int]:
    """Processes of vLLM whose command line or environment has one of ``marks``; zombies are none."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue  # it has just ended, or belongs to somebody else
        if state != "Z" and any(mark.encode() in said for mark in marks):
            found.append(int(folder.name))
    return found


def of_run(runs: Path) -> list[int]:
    """The processes of the vLLM of a run, and its leash: all inherit a variable that the run is given."""
    return processes((f"MARK={runs}",))


def marked(runs: Path, section: str = BLOCK) -> str:
    return f"{section}.vllm_serve_env_vars={{MARK: {runs}}}"


def parent(pid: int) -> int | None:
    found = state_of(pid)
    return None if found is None else found[1]


def server_of(runs: Path) -> int:
    """The process that answers requests: what the leash has started."""
    ours = {pid for pid in of_run(runs) if b"nemotron.processes.leash" in Path(f"/proc/{pid}/cmdline").read_bytes()}
    [server] = [pid for pid in of_run(runs) if pid not in ours and parent(pid) in ours]
    return server


def engine_of(server: int) -> int:
    """The process that computes."""
    below = [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if parent(int(folder.name)) == server]
    [engine] = [pid for pid in below if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return engine


def nothing_is_left(runs: Path, temporary: Path | None = None) -> None:
    """Of the vLLM of a run that has ended; who removes its files may end a moment later."""
    wait_for(lambda: not of_run(runs), 60, "processes of vLLM are left")
    wait_for(lambda: temporary is None or not left(temporary), 60, "files of vLLM are left")


def left(temporary: Path) -> list[Path]:
    """What a run has left among its temporary files, but for the folder that torch keeps for all of a user."""
    return [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]
