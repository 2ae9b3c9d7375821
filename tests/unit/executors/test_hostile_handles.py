"""Run folders whose small files somebody else wrote: every command ends in data or an error, and starts nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemotron.disk import lock
from nemotron.errors import ExecutorError, NotFoundError
from nemotron.executors.detached import end_worker
from nemotron.executors.shells import Ssh
from nemotron.profiles.model import SlurmProfile
from nemotron.runs.attempts import Handle, begin_attempt
from nemotron.runs.folder import LOCK, RunFolder
from tests.compiled_jobs import compiled
from tests.in_process import nemotron
from tests.unit.compile.mutations import JUNK

COMMANDS = (("list",), ("show", "last"), ("logs", "last"), ("cancel", "last"), ("resume", "last"))
PROFILES: dict[str, dict[str, Any]] = {
    "detached": {"executor": "local"},
    "slurm": {"executor": "slurm", "tunnel": "ssh", "host": "login", "remote_job_dir": "/jobs"},
}
FILES = ("attempts/1/handle.json", "profile.json", "status.json", "job.json")


def facts(executor: str, folder: Path) -> dict[str, Any]:
    """What a handle of the executor holds."""
    kept: dict[str, Any] = {"run_dir": str(folder), "mirrored": executor != "detached", "number": 1, "profile": "p"}
    more: dict[str, dict[str, Any]] = {
        "detached": {"log": f"{folder}/attempts/1/logs/worker.log", "pid": 2**22 - 1},
        "slurm": {"log": "/jobs/log", "job_name": "n", "job_id": "7", "ssh": {"host": "login", "options": []}},
    }
    return {"executor": executor, "started_at": "2025-01-31T15:45:01+00:00", **kept, **more[executor]}


def run_of(executor: str, runs: Path) -> RunFolder:
    run = RunFolder.create(runs, compiled())
    begin_attempt(run.path, Handle.model_validate(facts(executor, run.path)))
    (run.path / "profile.json").write_text(json.dumps({"name": "p", "values": PROFILES[executor]}))
    run.write_status(state="running")
    lock.release(run.path / LOCK)  # the worker is gone
    return run


@pytest.fixture
def tools(tmp_path: Path) -> dict[str, str]:
    """An environment in which the only command is an `ssh` that notes how it was called, and fails."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nexit 255\n')
    (folder / "ssh").chmod(0o755)
    return {"PATH": str(folder)}


def damaged(draw: random.Random, text: str) -> bytes:
    """A document with one thing wrong."""
    value = json.loads(text)
    kind = draw.randrange(6)
    if kind == 0:
        return bytes(draw.randrange(256) for _ in range(draw.randrange(200)))
    if kind == 1:
        return text.encode()[: draw.randrange(len(text))]
    if kind == 2:
        return json.dumps(draw.choice(JUNK)).encode()
    key = draw.choice(list(value))
    if kind == 3:
        del value[key]
    elif isinstance(value[key], dict) and value[key]:
        value[key][draw.choice(list(value[key]))] = draw.choice(JUNK)
    else:
        value[key] = draw.choice(JUNK)
    return json.dumps(value).encode()


@pytest.mark.parametrize("count", [4, pytest.param(60, id="many", marks=pytest.mark.full)])
@pytest.mark.parametrize("executor", PROFILES)
def test_damaged_files_of_a_run_are_no_bug(tmp_path: Path, tools: dict[str, str], executor: str, count: int) -> None:
    sys.set_int_max_str_digits(0)  # the documents hold numbers that Python would not write
    for seed in range(count):
        draw = random.Random(f"{executor} {seed}")
        runs = tmp_path / f"runs{seed}"
        run = run_of(executor, runs)
        for name in FILES if seed % 5 == 4 else (FILES[seed % len(FILES)],):
            path = run.path / name
            path.write_bytes(damaged(draw, path.read_text()))
        sys.set_int_max_str_digits(4300)
        for command in COMMANDS:
            done = nemotron("runs", *command, "--runs-dir", str(runs), env=tools)
            assert "this is a bug" not in done.stderr, (seed, command, done.stderr)
            assert done.code in (0, 3, 4, 5, 6, 8, 10, 11, 2), (seed, command, done.stderr)
        sys.set_int_max_str_digits(0)
    sys.set_int_max_str_digits(4300)


@pytest.mark.parametrize("missing", ["run_dir", "number", "log"])
@pytest.mark.parametrize("executor", PROFILES)
def test_a_handle_without_a_key(tmp_path: Path, tools: dict[str, str], executor: str, missing: str) -> None:
    run = run_of(executor, tmp_path / "runs")
    path = run.path / FILES[0]
    value = json.loads(path.read_text())
    value.pop(missing, None)
    path.write_text(json.dumps(value))
    for command in COMMANDS[:4]:
        done = nemotron("runs", *command, "--runs-dir", str(tmp_path / "runs"), env=tools)
        assert "this is a bug" not in done.stderr, done.stderr


HOSTS = ["-oProxyCommand=touch pwned", "-Fevil", "a\nb", ""]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("key", ["host", "user"])
def test_a_machine_s_name_is_no_option_of_ssh(tmp_path: Path, tools: dict[str, str], host: str, key: str) -> None:
    slurm = {**PROFILES["slurm"], key: host}
    with pytest.raises(ValueError, match=key):
        SlurmProfile.model_validate(slurm)
    run = run_of("slurm", tmp_path / "runs")
    path = run.path / FILES[0]
    value = json.loads(path.read_text())
    value["ssh"][key] = host
    path.write_text(json.dumps(value))
    for command in COMMANDS[:4]:
        done = nemotron("runs", *command, "--runs-dir", str(tmp_path / "runs"), env=tools)
        assert "this is a bug" not in done.stderr, done.stderr
    assert not (tmp_path / "called").exists()


def test_what_ssh_is_given_ends_its_options(tmp_path: Path, tools: dict[str, str], monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", f"{tools['PATH']}:{os.environ['PATH']}")
    with pytest.raises(ExecutorError):
        Ssh("host").run(["true"])
    assert "-- host true" in (tmp_path / "called").read_text()


@pytest.mark.parametrize("size", [float("inf"), float("nan"), -1.0, 1e300])
def test_memory_is_a_size(size: float) -> None:
    with pytest.raises(ValueError, match="memory_gb_per_node"):
        SlurmProfile.model_validate({"executor": "slurm", "memory_gb_per_node": size})


def test_only_who_holds_a_run_is_ended(tmp_path: Path) -> None:
    """The number in a handle may be another process by now, or a whole group of them."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    text = (
        "import sys, time; from pathlib import Path; from nemotron.disk import lock; "
        "lock.acquire(Path(sys.argv[1]), what='it'); print(1, flush=True); time.sleep(60)"
    )
    worker = subprocess.Popen([sys.executable, "-c", text, str(tmp_path / LOCK)], stdout=subprocess.PIPE)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline()
        end_worker(tmp_path)
        assert worker.wait(timeout=50) == -signal.SIGTERM
        end_worker(tmp_path)  # nobody holds it
        assert bystander.poll() is None
    finally:
        for process in (bystander, worker):
            process.kill()
            process.wait()


@pytest.mark.parametrize("text", ["-1 host", "0 host", "x", "", "1 2 3", "99999999999999999999 host", "7 elsewhere"])
def test_a_lock_that_says_nonsense_ends_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / LOCK
    lock.acquire(path, what="the run")
    try:
        path.write_text(text)
        with pytest.raises(NotFoundError, match="is worked on"):
            end_worker(tmp_path)
    finally:
        lock.release(path)


@pytest.mark.parametrize("pid", [0, -1, -4000])
def test_a_handle_s_process_is_one(pid: int) -> None:
    with pytest.raises(ValueError, match="pid"):
        Handle(executor="detached", started_at="x", pid=pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_options_of_somebody_elses_ssh_are_not_taken(tmp_path: Path) -> None:
    from nemotron.executors import handle_of

    run = RunFolder.create(tmp_path, compiled())
    ssh = {"host": "login", "options": ["ProxyCommand=touch pwned"]}
    attempt = begin_attempt(run.path, Handle(executor="slurm", started_at="2025-01-31T15:45:01+00:00", ssh=ssh))
    lock.release(run.path / LOCK)
    own = handle_of(run)
    assert own is not None
    assert (own.model_extra or {})["ssh"] == ssh
    os.chown(attempt.path, 65534, 65534)
    foreign = handle_of(run)
    assert foreign is not None
    assert (foreign.model_extra or {})["ssh"] == {"host": "login"}
