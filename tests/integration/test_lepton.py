"""`-r`, `-b` and `runs` against a Lepton workspace on loopback, which Lepton's own client takes for one, too."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.slurm.lab import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("NEMOTRON_LEPTON_VENV", ROOT / "build" / "lepton"))
TOKEN = "token-of-the-workspace-7c1e"
STEPS = ("grpo.max_num_steps=4", "checkpointing.save_period=2")
ENDLESS = ("grpo.max_num_steps=100000", "grpo.max_num_epochs=1000", "policy.optimizer.kwargs.lr=1e-12")
TINY = ("steps", "run", "rl/nemo_rl/rlvr", "-c", "tiny", "engine=embedded", "eval.heldout.max_samples=16")
IMPATIENT = """
import sys
from nemotron.executors import http
http.PATIENCE_S = 3.0
from nemotron.cli.main import main
sys.exit(main())
"""
"""The command, which asks a service that is down for seconds and not for a minute."""


def _heard() -> None:
    """A terminal that is closed is noticed, also where the tests were started with ``nohup``."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@dataclass
class Workspace:
    """The server, and a project folder with a profile for it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    command: tuple[str, ...] = (sys.executable, "-m", "nemotron")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v2/workspaces/lab"

    def profile(self, *lines: str) -> None:
        base = [
            *(
                "[lepton_rl_nemo_rl_rlhf]",
                'executor = "lepton"',
                f'workspace_url = "{self.url}"',
                'node_group = "h100"',
            ),
            *(
                'resource_shape = "cpu.small"',
                f'python = "{sys.executable}"',
                f'remote_job_dir = "{self.folder}/mount"',
            ),
            'env_vars = { OMP_NUM_THREADS = "1", STRANGE = "a \'b\' $(x) \\n ü" }',
            *(lines if any(line.startswith("mounts") for line in lines) else [*lines, self.mounts()]),
        ]
        (self.folder / "env.toml").write_text("\n".join(base) + "\n")

    def mounts(self) -> str:
        places = [self.folder / "mount", ROOT / "src"]
        return (
            "mounts = ["
            + ", ".join(f'{{ from = "node-nfs:lustre", mount_path = "{place}" }}' for place in places)
            + "]"
        )

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        given = {name: value for name, value in os.environ.items() if not name.startswith("LEPTON_")}
        return {**given, "LEPTON_WORKSPACE_TOKEN": TOKEN, "LEPTON_CACHE_DIR": str(self.folder / "cache"), **extra}

    def start(self, *words: str, **extra: str) -> subprocess.Popen[str]:
        argv, pipe = [*self.command, *words], subprocess.PIPE
        return subprocess.Popen(
            argv, cwd=self.folder, env=self.environment(extra), stdout=pipe, stderr=pipe, text=True, preexec_fn=_heard
        )

    def nemotron(self, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        command = self.start(*words, **extra)
        out, err = command.communicate(timeout=300)
        return subprocess.CompletedProcess(words, command.returncode, out, err)

    def brief(self, flag: str) -> list[str]:
        """What takes a second, as nothing is trained: for jobs of which only the way matters."""
        made = f"output_dir={self.folder}/mount/made"
        return ["steps", "run", "data_prep/rl_prep", "-c", "tiny", flag, "lepton_rl_nemo_rl_rlhf", made]

    def impatient(self) -> None:
        """What is started from now on gives a service up early."""
        self.command = (sys.executable, "-c", IMPATIENT)

    def fault(self, **faults: int) -> None:
        httpx.post(f"http://127.0.0.1:{self.port}/__fault", json=faults).raise_for_status()

    def calls(self) -> list[dict[str, Any]]:
        return list(httpx.get(f"http://127.0.0.1:{self.port}/__calls").json())

    def run_dir(self) -> Path:
        return max((self.folder / "runs").iterdir())


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    port = free_port()
    (tmp_path / "mount").mkdir()
    env = {**os.environ, "FAKE_LEPTON_TOKEN": TOKEN, "FAKE_LEPTON_FOLDER": str(tmp_path / "jobs")}
    server = Path(__file__).parent / "lepton" / "server.py"
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, str(server), str(port)], env=env, stdout=log, stderr=log)
    found = Workspace(tmp_path, port, process)
    end = time.monotonic() + 120
    while True:
        try:
            found.calls()
            break
        except httpx.HTTPError:
            assert time.monotonic() < end, (tmp_path / "server.log").read_text()
            time.sleep(0.1)
    found.profile()
    try:
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def followed_to_the_end(workspace: Workspace, out: str) -> list[str]:
    """The steps that were seen of a run of four, which is here what it is there. A log thins out fast steps."""
    steps = re.findall(r"step (\d)/4", out)
    assert steps == sorted(set(steps))
    assert "\x1e" not in out
    mirror, far = workspace.run_dir(), workspace.folder / "mount" / "runs" / workspace.run_dir().name
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (mirror / name).read_bytes() == (far / name).read_bytes() != b""
    assert json.loads((mirror / "status.json").read_text())["state"] == "finished"
    assert (far / "checkpoints" / "step_4").is_dir()
    return steps


def test_attached_to_success_with_a_mirror(workspace: Workspace) -> None:
    workspace.profile('secrets = { HF_TOKEN = "hf-secret" }')
    # What breaks on the way changes nothing: errors of the service, and a log that is cut twice.
    workspace.fault(errors=2, drop_logs=2)
    done = workspace.nemotron(*TINY, *STEPS, "-r", "lepton_rl_nemo_rl_rlhf")
    assert done.returncode == 0, done.stderr + done.stdout
    assert followed_to_the_end(workspace, done.stdout)[-1] == "4"
    assert workspace.nemotron("runs", "report", "last").returncode == 0
    assert "finished" in workspace.nemotron("runs", "list").stdout
    body = next(
        call["body"] for call in workspace.calls() if call["method"] == "POST" and call["path"].endswith("/jobs")
    )
    envs = {env["name"]: env for env in body["spec"]["envs"]}
    assert envs["HF_TOKEN"] == {"name": "HF_TOKEN", "value_from": {"secret_name_ref": "hf-secret"}}
    assert envs["STRANGE"]["value"] == "a 'b' $(x) \n ü"
    assert body["spec"]["affinity"] == {"allowed_dedicated_node_groups": ["ng-a1"]}


def test_failure_has_the_workers_exit_code(workspace: Workspace) -> None:
    done = workspace.nemotron(*TINY, "limits.max_kl=1e-9", *STEPS, "-r", "lepton_rl_nemo_rl_rlhf")
    assert done.returncode == 9, done.stderr
    assert "nats per token" in done.stdout


def test_detached_cancel_and_logs(workspace: Workspace) -> None:
    submitted = workspace.nemotron(*TINY, *ENDLESS, "-b", "lepton_rl_nemo_rl_rlhf")
    assert submitted.returncode == 0, submitted.stderr
    run = submitted.stdout.strip()
    follower = workspace.start("runs", "logs", "-f", run)
    assert follower.stdout is not None
    for line in follower.stdout:
        if "step 1/" in line:
            break
    shown = json.loads(workspace.nemotron("runs", "show", run, "--json").stdout)
    assert (shown["status"], shown["id"]) == ("running", run)
    assert workspace.nemotron("runs", "cancel", run).returncode == 0
    assert follower.wait(180) == 130
    # Who ends first decides: the worker that was told to, or the job without its last word.
    assert re.search("cancelled|interrupted", workspace.nemotron("runs", "list").stdout)


def test_a_service_that_is_down_loses_no_run(workspace: Workspace) -> None:
    """Neither one that it was to take, nor one that goes on meanwhile."""
    workspace.impatient()
    workspace.fault(down=1)
    failed = workspace.nemotron(*TINY, *ENDLESS, "-b", "lepton_rl_nemo_rl_rlhf")
    assert (failed.returncode, failed.stdout) == (11, ""), failed.stderr
    assert "error: Lepton does not answer at http://127.0.0.1:" in failed.stderr
    run = workspace.run_dir().name
    assert f"nemotron runs resume {run}" in failed.stderr
    workspace.fault(down=0)
    resumed = workspace.nemotron("runs", "resume", run)
    assert (resumed.returncode, resumed.stdout.strip()) == (0, run), resumed.stderr
    follower = workspace.start("runs", "logs", "-f", run)
    assert follower.stdout is not None
    for line in follower.stdout:
        if "step 1/" in line:
            break
    workspace.fault(down=1)
    cancel = workspace.start("runs", "cancel", run)
    listed = workspace.nemotron("runs", "list")
    assert (listed.returncode, "unknown" in listed.stdout) == (0, True), listed.stderr + listed.stdout
    _, err = cancel.communicate(timeout=200)
    assert (cancel.returncode, "Lepton does not answer" in err) == (11, True), err
    workspace.fault(down=0)
    assert json.loads(workspace.nemotron("runs", "show", run, "--json").stdout)["status"] == "running"
    assert workspace.nemotron("runs", "cancel", run).returncode == 0
    _, said = follower.communicate(timeout=100)
    assert (follower.returncode, "Traceback" in said) == (130, False), said


def test_an_answer_that_is_lost_makes_no_second_job(workspace: Workspace) -> None:
    workspace.fault(lost_answer=1)
    done = workspace.nemotron(*workspace.brief("-b"))
    assert done.returncode == 0, done.stderr
    listed = httpx.get(f"{workspace.url}/jobs", headers={"Authorization": f"Bearer {TOKEN}"}).json()["jobs"]
    assert len(listed) == 1
    handle = json.loads((workspace.run_dir() / "attempts" / "1" / "handle.json").read_text())
    assert handle["job_id"] == listed[0]["metadata"]["id"]


def test_wrong_token_no_token_no_service(workspace: Workspace) -> None:
    words = (*TINY, "-b", "lepton_rl_nemo_rl_rlhf")
    wrong = workspace.nemotron(*words, LEPTON_WORKSPACE_TOKEN="wrong")
    assert (wrong.returncode, "refuses the token (401)" in wrong.stderr) == (11, True), wrong.stderr
    none = workspace.nemotron(*words, LEPTON_WORKSPACE_TOKEN="")
    assert (none.returncode, "no token for the Lepton workspace" in none.stderr) == (3, True), none.stderr
    check = workspace.nemotron("profiles", "check", "lepton_rl_nemo_rl_rlhf")
    assert (check.returncode, "node group h100: ng-a1, 2 nodes" in check.stdout) == (0, True), check.stderr
    workspace.process.send_signal(signal.SIGTERM)
    workspace.process.wait(30)
    down = workspace.nemotron("profiles", "check", "lepton_rl_nemo_rl_rlhf")
    assert (down.returncode, "does not answer" in down.stderr) == (11, True), down.stderr
    for done in (wrong, none, down):
        assert "Traceback" not in done.stderr
        assert TOKEN not in done.stderr


def test_what_leptons_own_login_notes_down_is_enough(workspace: Workspace) -> None:
    """The guide's first command: afterwards no profile and no variable names the workspace or its token."""
    words = ("workspace", "login", "-i", "lab", "-t", TOKEN, "--workspace-url", workspace.url)
    login = [str(VENV / "bin" / "lep"), *words]
    variables = workspace.environment({})
    del variables["LEPTON_WORKSPACE_TOKEN"]
    done = subprocess.run(login, capture_output=True, text=True, timeout=100, env=variables, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    file = workspace.folder / "env.toml"
    file.write_text(re.sub(r"^workspace_url.*$", "", file.read_text(), flags=re.MULTILINE))
    check = workspace.nemotron("profiles", "check", "lepton_rl_nemo_rl_rlhf", LEPTON_WORKSPACE_TOKEN="")
    assert (check.returncode, "node group h100: ng-a1, 2 nodes" in check.stdout) == (0, True), check.stderr


CLIENT = """
import sys, time
from leptonai.api.v2.client import APIClient
from leptonai.api.v2.types.job import LeptonJob, LeptonJobUserSpec
from leptonai.api.v2.types.common import Metadata
from leptonai.api.v2.types.deployment import LeptonContainer, EnvVar

client = APIClient(workspace_id="lab", auth_token=sys.argv[2], url=sys.argv[1])
assert client.info().workspace_name == "lab"
assert client.nodegroup.list_all()[0].metadata.id_ == "ng-a1"
container = LeptonContainer(command=["/bin/sh", "-c", "echo $A; exit $B"])
spec = LeptonJobUserSpec(resource_shape="cpu.small", container=container)
for code, end in (("0", "Completed"), ("3", "Failed")):
    spec.envs = [EnvVar(name="A", value="said it"), EnvVar(name="B", value=code)]
    job = client.job.create(LeptonJob(metadata=Metadata(id="real-client-" + code), spec=spec))
    while client.job.get(job).status.state.value not in ("Completed", "Failed"):
        time.sleep(0.1)
    assert client.job.get(job).status.state.value == end
    replica = client.job.get_replicas(job)[0]
    assert "".join(client.job.get_log(job, replica)) == "said it\\n"
names = [job.metadata.name for job in client.job.list_all()]
assert names[-2:] == ["real-client-0", "real-client-3"], names
from leptonai.api.v2.types.job import LeptonJob as Model
for job in client.job.list_all():
    Model.model_validate(job.model_dump(by_alias=True))
client.job.delete(job)
print("ok", len(names))
"""


def test_leptons_own_client_takes_the_server_for_real(workspace: Workspace) -> None:
    """What keeps the server honest: its answers parse in the models of the real client, our jobs among them."""
    if not (VENV / "bin" / "python").exists():
        pytest.fail(f"no leptonai in {VENV}; run tests/integration/lepton/install.sh {VENV}")
    submitted = workspace.nemotron(*workspace.brief("-r"))
    assert submitted.returncode == 0, submitted.stderr
    argv = [str(VENV / "bin" / "python"), "-c", CLIENT, workspace.url, TOKEN]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, env=workspace.environment({}), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("ok 3")
