"""`-r`, `-b` and `runs` on a real Ray cluster that wants a token, by its Jobs API."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from nemotron.executors.ray_jobs import RayJobs
from nemotron.runs.attempts import attempts_of
from tests.integration.rays import PATIENT, kill_ray, own_ports
from tests.integration.slurm.lab import free_port
from tests.integration.test_lepton import ENDLESS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("NEMOTRON_LEPTON_VENV", ROOT / "build" / "lepton"))
TOKEN = "token-of-the-ray-cluster-5b2d-and-longer-than-that"
TINY = ("steps", "run", "rl/nemo_rl/rlvr", "-c", "tiny", "engine=embedded", "eval.heldout.max_samples=8")
STRANGE = "a 'b' \"c\" $(x) \\ \n ü"


@dataclass
class Cluster:
    """One head, and the command's environment for it."""

    url: str
    process: subprocess.Popen[bytes]
    folder: Path

    def api(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=30).raise_for_status().json()


@dataclass
class Project:
    """A folder with a profile."""

    cluster: Cluster
    folder: Path

    def profile(self, *lines: str, shared: bool, address: str | None = None) -> None:
        folders = [str(ROOT / "src"), *([str(self.folder)] if shared else [])]
        base = [
            "[lab]",
            'executor = "ray"',
            f'address = "{address or self.cluster.url}"',
            f'python = "{sys.executable}"',
            f'remote_job_dir = "{self.folder}/far"',
            f"shared = {json.dumps(folders)}",
            f'env_vars = {{ OMP_NUM_THREADS = "1", STRANGE = {json.dumps(STRANGE)} }}',
            *([] if any(line.startswith("token_env") for line in lines) else ['token_env = "LAB_TOKEN"']),
        ]
        (self.folder / "env.toml").write_text("\n".join([*base, *lines]) + "\n")

    def start(self, *words: str, **extra: str) -> subprocess.Popen[str]:
        given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env = {**given, "LAB_TOKEN": TOKEN, **extra}
        argv, pipe = [sys.executable, "-m", "nemotron", *words], subprocess.PIPE
        return subprocess.Popen(argv, cwd=self.folder, env=env, stdout=pipe, stderr=pipe, text=True)

    def nemotron(self, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        command = self.start(*words, **extra)
        out, err = command.communicate(timeout=300)
        assert "Traceback" not in err, err
        assert TOKEN not in out + err
        return subprocess.CompletedProcess(words, command.returncode, out, err)

    def run_dir(self) -> Path:
        return max((self.folder / "runs").iterdir())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with ports of its own, so that it stands beside any other Ray of this machine."""
    if not (VENV / "bin" / "ray").exists():
        pytest.fail(f"no ray in {VENV}; run tests/integration/lepton/install.sh {VENV}")
    # Ray's sockets lie in its folder, and a socket has a path of at most 107 letters.
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    port = free_port()
    options = {
        "port": free_port(),
        "dashboard-port": port,
        "ray-client-server-port": free_port(),
        **own_ports(),
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "num-cpus": 2,
        "object-store-memory": 80_000_000,
        "temp-dir": folder,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Said, and not left to what an earlier Ray of this user has left behind.
    env = {
        **given,
        **PATIENT,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "HOME": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    argv = [str(VENV / "bin" / "ray"), "start", "--head", "--block", "--disable-usage-stats", *words]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
    found = Cluster(f"http://127.0.0.1:{port}", process, folder)
    end = time.monotonic() + 300
    try:
        while True:
            try:
                found.api("/api/jobs/")
                break
            except httpx.HTTPError:
                assert time.monotonic() < end, (folder / "head.log").read_text()
                assert process.poll() is None, (folder / "head.log").read_text()
                time.sleep(0.3)
        yield found
    finally:
        end_of(process, folder)


def end_of(process: subprocess.Popen[bytes], folder: Path) -> None:
    kill_ray(folder)
    process.wait(30)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def project(cluster: Cluster, tmp_path: Path) -> Project:
    return Project(cluster, tmp_path)


def test_attached_to_success_with_a_mirror(project: Project) -> None:
    project.profile(shared=False)
    done = project.nemotron(*TINY, "grpo.max_num_steps=2", "-r", "lab")
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.findall(r"step (\d)/2", done.stdout) == ["1", "2"]
    assert "\x1e" not in done.stdout
    mirror = project.run_dir()
    far = project.folder / "far" / "runs" / mirror.name
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (mirror / name).read_bytes() == (far / name).read_bytes() != b""
    assert json.loads((mirror / "status.json").read_text())["state"] == "finished"
    assert (far / "checkpoints" / "step_2").is_dir()
    [job] = [one for one in project.cluster.api("/api/jobs/") if mirror.name in str(one["submission_id"])]
    assert job["runtime_env"]["env_vars"]["STRANGE"] == STRANGE
    # The job says what it ran: the package, not what happens to be installed there.
    assert job["runtime_env"]["working_dir"].startswith("gcs://_ray_pkg_nemotron_")
    for file in mirror.rglob("*.json"):
        assert TOKEN not in file.read_text()


def test_detached_cancel_and_sent_twice(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.profile(shared=True)
    submitted = project.nemotron(*TINY, *ENDLESS, "-b", "lab")
    assert submitted.returncode == 0, submitted.stderr
    run = submitted.stdout.strip()
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    handle = attempts_of(project.folder / "far" / "runs" / run)[-1].handle()
    follower = project.start("runs", "logs", "-f", run)
    assert follower.stdout is not None
    for line in follower.stdout:
        if "step 1/" in line:
            break
    assert "running" in project.nemotron("runs", "list").stdout
    # The same job again is the same job, also for a cluster that is asked by another process.
    body = {"submission_id": handle.model_extra["job_id"] if handle.model_extra else "", "entrypoint": "true"}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    again = httpx.post(f"{project.cluster.url}/api/jobs/", json=body, headers=headers, timeout=60)
    assert again.status_code >= 400
    assert RayJobs().state(handle).state == "running"
    assert project.nemotron("runs", "cancel", run).returncode == 0
    assert follower.wait(240) == 130
    # The worker was told, and given the time to leave a true status.
    status = json.loads((project.folder / "far" / "runs" / run / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert RayJobs().state(handle).state == "cancelled"


def test_a_job_that_fails_has_its_exit_code(project: Project) -> None:
    where = f"{sys.executable} -c 'import nemotron; print(nemotron.__file__)'"
    project.profile(f"startup_commands = {json.dumps([where, 'exit 7'])}", shared=True)
    done = project.nemotron(*TINY, "-r", "lab")
    assert done.returncode == 7, done.stderr
    assert "ended with exit code 7" in done.stderr
    # What ran is the package that went along, and not what is installed for that Python.
    assert "_ray_pkg_nemotron_" in done.stdout


def test_tokens_and_addresses(project: Project) -> None:
    project.profile(shared=True)
    check = project.nemotron("profiles", "check", "lab")
    assert (check.returncode, "ray: 2." in check.stdout) == (0, True), check.stderr
    words = (*TINY, "-b", "lab")
    wrong = project.nemotron(*words, LAB_TOKEN="wrong")
    assert (wrong.returncode, "refuses the token" in wrong.stderr) == (11, True), wrong.stderr
    none = project.nemotron(*words, LAB_TOKEN="")
    assert (none.returncode, "LAB_TOKEN is not set" in none.stderr) == (3, True), none.stderr
    # A cluster that wants a token, and a profile that knows of none.
    (project.folder / "env.toml").write_text(
        (project.folder / "env.toml").read_text().replace('token_env = "LAB_TOKEN"\n', "")
    )
    unsaid = project.nemotron("profiles", "check", "lab")
    assert (unsaid.returncode, "`token_env`" in unsaid.stderr) == (11, True), unsaid.stderr
    project.profile(shared=True, address=f"http://127.0.0.1:{free_port()}")
    down = project.nemotron("profiles", "check", "lab")
    assert (down.returncode, "does not answer" in down.stderr) == (11, True), down.stderr


def test_a_dead_head_is_said_and_does_not_hang(project: Project) -> None:
    """The last one: it ends the cluster."""
    project.profile(shared=True)
    submitted = project.nemotron(*TINY, *ENDLESS, "-b", "lab")
    assert submitted.returncode == 0, submitted.stderr
    run = submitted.stdout.strip()
    end_of(project.cluster.process, project.cluster.folder)
    begun = time.monotonic()
    listed = project.nemotron("runs", "list")
    # Nobody can be asked any more; a run that was ended with its cluster may have got to say so itself.
    said = any(word in listed.stdout for word in ("unknown", "failed", "interrupted"))
    assert (listed.returncode, said) == (0, True), listed.stdout
    assert time.monotonic() - begun < 60
    cancel = project.nemotron("runs", "cancel", run)
    assert (cancel.returncode, "does not answer" in cancel.stderr) == (11, True), cancel.stderr
