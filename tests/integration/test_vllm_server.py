"""`judge.server=vllm`: a run that starts the real vLLM for its judge, keeps it running, and leaves nothing of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("NEMOTRON_VLLM_VENV", ROOT / "build" / "vllm"))
BLOCK = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
RLHF, AUDIT = ("rl/nemo_rl/rlhf", "-c", "tiny"), ("eval/reward_audit", "-c", "tiny")
VLLM = ("judge.server=vllm", f"judge.vllm_command={VENV}")
READY_S = 300


@pytest.fixture(autouse=True)
def vllm_is_there() -> None:
    if not (VENV / "bin" / "vllm").exists():
        pytest.fail(f"no vLLM in {VENV}; run tests/integration/vllm_cpu/install.sh {VENV}")


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
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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


def marked(runs: Path) -> str:
    return f"{BLOCK}.vllm_serve_env_vars={{MARK: {runs}}}"


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


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


def left_in_temporary() -> set[str]:
    folders = (Path(tempfile.gettempdir()), Path("/dev/shm"))
    return {str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()}


def test_a_policy_learns_from_it_as_from_our_own_server(tmp_path: Path) -> None:
    short = ("grpo.max_num_steps=20", "checkpointing.enabled=false")
    before = left_in_temporary()
    theirs = finished(tmp_path / "vllm", *RLHF, *VLLM, *short, marked(tmp_path / "vllm"))
    assert not of_run(tmp_path / "vllm")
    assert {path for path in left_in_temporary() - before if "nemotron-" in path or "vllm" in path} == set()
    ours = finished(tmp_path / "ours", *RLHF, *short)
    assert [row["judge/missing_share"] for row in rows(theirs) if "judge/missing_share" in row] == [0.0] * 20
    gains = [heldout(run, "after") - heldout(run, "before") for run in (theirs, ours)]
    assert heldout(theirs, "before") == heldout(ours, "before")
    assert min(gains) > 0.3
    assert abs(gains[0] - gains[1]) < 0.1


def test_verdicts_that_are_held_to_their_schema_always_parse(tmp_path: Path) -> None:
    small = ("audit.pairs=60", "audit.repeats=0", "judge.verdict=schema", "audit.compare_verdicts=[text]")
    run = finished(tmp_path, *AUDIT, *VLLM, *small)
    judgements = [
        one for line in (run / "samples.jsonl").read_text().splitlines() for one in json.loads(line)["judgements"]
    ]
    assert len(judgements) == 2 * 2 * 60
    assert sum(one["unparseable"] for one in judgements) == 0
    assert all(one["verdict"] for one in judgements)


def test_an_instruct_model_gives_expected_scores(tmp_path: Path, smollm2: Path) -> None:
    few = ("audit.pairs=4", "audit.repeats=0", "judge.request_timeout_s=900", f"{BLOCK}.model={smollm2}")
    settings = f"{BLOCK}.vllm_serve_kwargs={{max_model_len: 1024}}"
    run = finished(tmp_path, *AUDIT, *VLLM, *few, settings, "audit.compare_verdicts=[logits,schema]")
    judgements = [
        one for line in (run / "samples.jsonl").read_text().splitlines() for one in json.loads(line)["judgements"]
    ]
    assert len(judgements) == 2 * 2 * 4
    assert all(one["verdict"] for one in judgements)
    expected = [one["verdict"]["score_1"] for one in judgements if one["requests"] == 2]
    assert len(expected) == 8
    assert any(score != round(score) for score in expected)


@pytest.mark.parametrize("victim", ["server", "engine"])
def test_one_that_is_killed_comes_back_and_nothing_is_lost(tmp_path: Path, victim: str) -> None:
    words = (*RLHF, *VLLM, "grpo.max_num_steps=12", "eval.heldout=null", "judge.max_retries=0", marked(tmp_path))
    with running(tmp_path, *words) as run:
        wait_for(lambda: any(len(rows(folder)) > 3 for folder in tmp_path.iterdir()), READY_S, "no step")
        chosen = server_of(tmp_path) if victim == "server" else engine_of(server_of(tmp_path))
        os.kill(chosen, signal.SIGKILL)
        said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said
    assert "started again (1 of 3)" in said
    [folder] = tmp_path.iterdir()
    steps = [row for row in rows(folder) if "judge/missing_share" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert [row["judge/missing_share"] for row in steps] == [0.0] * 12
    assert (folder / "attempts" / "1" / "logs" / "judge.2.log").exists()
    assert not of_run(tmp_path)


@pytest.mark.parametrize("moment", ["loading", "training"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_leaves_no_vllm(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    before = left_in_temporary()
    words = (*RLHF, *VLLM, "grpo.max_num_steps=1000", "eval.heldout=null", marked(tmp_path))
    with running(tmp_path, *words) as run:
        if moment == "loading":
            wait_for(lambda: len(of_run(tmp_path)) > 1, READY_S, "no vLLM")
        else:
            wait_for(lambda: any(len(rows(folder)) > 2 for folder in tmp_path.iterdir()), READY_S, "no step")
        assert of_run(tmp_path)
        run.send_signal(number)
        run.communicate(timeout=60)
    wait_for(lambda: not of_run(tmp_path), 20, "processes of vLLM are left")
    wait_for(
        lambda: not {path for path in left_in_temporary() - before if "nemotron-" in path or "vllm" in path},
        *(20, "files of vLLM are left"),
    )
