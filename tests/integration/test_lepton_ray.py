"""`launch = "ray"` on a Lepton workspace on loopback: real Ray clusters of two nodes, which no run leaves behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.test_lepton import ENDLESS, STEPS, TINY, TOKEN, VENV, Workspace, followed_to_the_end
from tests.integration.test_lepton import workspace as workspace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PROFILE = "lepton_rl_nemo_rl_rlhf"
SIZES = ('launch = "ray"', "nodes = 2", 'ray_version = "2.58.0"', "start_timeout_s = 300")


@pytest.fixture(autouse=True)
def ray() -> None:
    if not (VENV / "bin" / "ray").exists():
        pytest.fail(f"no ray in {VENV}; run tests/integration/lepton/install.sh {VENV}")


def clusters(workspace: Workspace) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return list(httpx.get(f"{workspace.url}/rayclusters", headers=headers).json())


def processes_of(workspace: Workspace) -> list[int]:
    """Rays of this workspace alone: their variables name its folder. Who is ending has a moment for it."""
    end = time.monotonic() + 60
    while (found := alive_of(workspace)) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def alive_of(workspace: Workspace) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = entry.read_bytes()
        except OSError:
            continue
        if f"HOME={workspace.folder}/jobs/ray-".encode() in variables:
            found.append(int(entry.parent.name))
    return found


def handle(workspace: Workspace) -> dict[str, Any]:
    return dict(json.loads((workspace.run_dir() / "attempts" / "1" / "handle.json").read_text()))


def test_attached_over_two_nodes_to_success(workspace: Workspace) -> None:
    seen = "ray list nodes --format json 2>/dev/null | tr -d ' \\n' | grep -o ALIVE | wc -l"
    workspace.profile(
        *SIZES,
        'secrets = { HF_TOKEN = "hf-secret" }',
        f"startup_commands = {json.dumps([f'export PATH={VENV}/bin:$PATH', f'echo nodes: $({seen})'])}",
    )
    workspace.fault(lost_answer=1)
    done = workspace.nemotron(*TINY, *STEPS, "-r", PROFILE)
    assert done.returncode == 0, done.stderr + done.stdout
    steps = followed_to_the_end(workspace, done.stdout)
    assert (steps[0], steps[-1]) == ("1", "4")
    assert "nodes: 2" in done.stdout
    # One cluster, which is gone, with its processes; what it printed is still here.
    made = [c["body"] for c in workspace.calls() if (c["method"], c["path"][-12:]) == ("POST", "/rayclusters")]
    assert len({body["metadata"]["id"] for body in made}) == 1
    assert clusters(workspace) == []
    assert f"deleted the Ray cluster `{made[0]['metadata']['id']}`" in done.stderr
    assert processes_of(workspace) == []
    assert "step 4/4" in workspace.nemotron("runs", "logs", workspace.run_dir().name).stdout
    assert "finished" in workspace.nemotron("runs", "list").stdout
    # Every node has the variables, with the secret by its name and no value.
    for group in (made[0]["spec"]["head_group_spec"], *made[0]["spec"]["worker_group_specs"]):
        envs = {env["name"]: env for env in group["envs"]}
        assert envs["HF_TOKEN"] == {"name": "HF_TOKEN", "value_from": {"secret_name_ref": "hf-secret"}}
        assert envs["STRANGE"]["value"] == "a 'b' $(x) \n ü"
        assert group["affinity"] == {"allowed_dedicated_node_groups": ["ng-a1"]}
    # What the dry run shows is what is sent.
    shown = workspace.nemotron(*TINY, *STEPS, "-r", PROFILE, "--dry-run", "--json")
    request = json.loads(shown.stdout)["submission"]["request"]
    assert made[0]["spec"].keys() == request["body"]["spec"].keys()
    assert [call["method"] for call in request["then"]] == ["GET", "PUT", "POST", "DELETE"]


def test_a_failure_has_the_workers_code_and_leaves_no_cluster(workspace: Workspace) -> None:
    workspace.profile(*SIZES)
    done = workspace.nemotron(*TINY, "limits.max_kl=1e-9", *STEPS, "-r", PROFILE)
    assert done.returncode == 9, done.stderr
    assert "nats per token" in done.stdout
    assert clusters(workspace) == []


def test_detached_says_what_costs_and_cancel_ends_it(workspace: Workspace) -> None:
    workspace.profile(*SIZES)
    submitted = workspace.nemotron(*TINY, *ENDLESS, "-b", PROFILE)
    assert submitted.returncode == 0, submitted.stderr
    run = submitted.stdout.strip()
    assert f"costs money until it is deleted: `nemotron runs logs -f {run}`" in submitted.stderr
    follower = workspace.start("runs", "logs", "-f", run)
    assert follower.stdout is not None
    for line in follower.stdout:
        if "step 1/" in line:
            break
    assert json.loads(workspace.nemotron("runs", "show", run, "--json").stdout)["status"] == "running"
    # The service refuses the deletion: that is an error which says what is left, and the next try ends it.
    workspace.fault(no_delete=1)
    follower.send_signal(signal.SIGINT)
    assert follower.wait(180) == 130
    left = workspace.nemotron("runs", "cancel", run)
    assert left.returncode == 11
    assert "may still be there and cost money" in left.stderr
    assert f"`nemotron runs cancel {run}` deletes it" in left.stderr
    assert len(clusters(workspace)) == 1
    again = workspace.nemotron("runs", "cancel", run)
    assert again.returncode == 0, again.stderr
    assert clusters(workspace) == []
    # The worker was told and left a true status, and the mirror has it.
    assert json.loads((workspace.run_dir() / "status.json").read_text())["state"] == "interrupted"
    assert workspace.nemotron("runs", "cancel", run).returncode == 4
    resumed = workspace.nemotron("runs", "resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert workspace.nemotron("runs", "cancel", run).returncode == 0
    assert clusters(workspace) == []


def test_a_cluster_that_does_not_come_up_is_deleted(workspace: Workspace) -> None:
    workspace.profile(*SIZES[:-1], "start_timeout_s = 15")
    workspace.fault(never_ready=1)
    done = workspace.nemotron(*TINY, *STEPS, "-b", PROFILE)
    assert done.returncode == 11, done.stderr
    # Where the machine is busy, the head is not up by then either.
    assert re.search(r"is not ready after 15 s \((Ready|Starting), 0 of 1 workers\)", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert clusters(workspace) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_is_stopped_while_waiting_leaves_no_cluster(workspace: Workspace, number: int) -> None:
    workspace.profile(*SIZES)
    workspace.fault(never_ready=1)
    command = workspace.start(*TINY, *STEPS, "-b", PROFILE)
    wait_for_a_cluster(workspace)
    command.send_signal(number)
    _, err = command.communicate(timeout=180)
    assert command.returncode == 130, err
    assert "deleting the Ray cluster" in err
    assert clusters(workspace) == []


def test_who_is_killed_while_waiting_leaves_one_that_cancel_finds(workspace: Workspace) -> None:
    workspace.profile(*SIZES)
    workspace.fault(never_ready=1)
    command = workspace.start(*TINY, *STEPS, "-b", PROFILE)
    wait_for_a_cluster(workspace)
    command.kill()
    command.communicate(timeout=180)
    run = workspace.run_dir().name
    assert "queued" in workspace.nemotron("runs", "list").stdout
    done = workspace.nemotron("runs", "cancel", run)
    assert done.returncode == 0, done.stderr
    assert clusters(workspace) == []
    assert "cancelled" in workspace.nemotron("runs", "list").stdout


def test_a_service_that_goes_away_while_waiting_is_said(workspace: Workspace) -> None:
    workspace.profile(*SIZES)
    workspace.impatient()
    workspace.fault(never_ready=1)
    command = workspace.start(*TINY, *STEPS, "-b", PROFILE)
    wait_for_a_cluster(workspace)
    workspace.process.send_signal(signal.SIGTERM)
    workspace.process.wait(30)
    _, err = command.communicate(timeout=300)
    assert command.returncode == 11, err
    assert "may still be there and cost money" in err
    assert f"`nemotron runs cancel {workspace.run_dir().name}` deletes it" in err


def wait_for_a_cluster(workspace: Workspace) -> None:
    end = time.monotonic() + 90
    while not clusters(workspace):
        assert time.monotonic() < end
        time.sleep(0.2)


CLIENT = """
import sys, time
from leptonai.api.v2.client import APIClient
from leptonai.api.v2.types.affinity import LeptonResourceAffinity
from leptonai.api.v2.types.common import Metadata
from leptonai.api.v2.types.deployment import EnvVar, LeptonContainer
from leptonai.api.v2.types.raycluster import LeptonRayCluster, LeptonRayClusterUserSpec, RayHeadGroupSpec
from leptonai.api.v2.types.raycluster import RayWorkerGroupSpec
from ray.job_submission import JobSubmissionClient

url, token, ours = sys.argv[1:]
client = APIClient(workspace_id="lab", auth_token=token, url=url)
# What we sent parses in the client's own models, and nothing of it is unknown to them.
sent = LeptonRayCluster.model_validate_json(ours)
def unknown(model):
    fields = [getattr(model, name) for name in type(model).model_fields]
    more = [one for value in fields for one in (value if isinstance(value, list) else [value])]
    assert not getattr(model, "model_extra", None)
    for one in more:
        if hasattr(type(one), "model_fields"):
            unknown(one)
unknown(sent)
import json
def same(given, kept):
    for key, value in given.items():
        assert key in kept, key
        if isinstance(value, dict):
            same(value, kept[key])
        elif isinstance(value, list):
            for one, other in zip(value, kept[key], strict=True):
                if isinstance(one, dict):
                    same(one, other)
same(json.loads(ours), sent.model_dump(by_alias=True))

part = dict(
    resource_shape="cpu.small",
    min_replicas=1,
    affinity=LeptonResourceAffinity(allowed_dedicated_node_groups=["ng-a1"]),
    container=LeptonContainer(image="any"),
    envs=[EnvVar(name="A", value="said it")],
)
spec = LeptonRayClusterUserSpec(
    ray_version="2.58.0",
    head_group_spec=RayHeadGroupSpec(**part),
    worker_group_specs=[RayWorkerGroupSpec(group_name="g", **part)],
)
cluster = LeptonRayCluster(metadata=Metadata(id="real-client", name="real-client"), spec=spec)
assert client.raycluster.create(cluster)
while True:
    status = client.raycluster.get("real-client").status
    if status.state.value == "Ready" and status.readyWorkerReplicas == 1:
        break
    time.sleep(0.2)
assert [one.metadata.name for one in client.raycluster.list_all()] == ["real-client"]
jobs = JobSubmissionClient(f"{url}/rayclusters/real-client/dashboard", headers={"Authorization": f"Bearer {token}"})
for code, end in ((0, "SUCCEEDED"), (3, "FAILED")):
    job = jobs.submit_job(entrypoint=f"echo $A; exit {code}")
    while jobs.get_job_status(job) not in ("SUCCEEDED", "FAILED"):
        time.sleep(0.2)
    assert jobs.get_job_status(job) == end
    assert "said it" in jobs.get_job_logs(job)
change = LeptonRayCluster(spec=LeptonRayClusterUserSpec(suspend=True))
assert client.raycluster.update("real-client", change).status.state.value == "Stopped"
assert client.raycluster.delete("real-client")
assert client.raycluster.list_all() == []
print("ok")
"""


def test_leptons_own_client_takes_its_clusters_for_real(workspace: Workspace) -> None:
    """What keeps the server honest: the life of a cluster and of jobs on it by the clients of Lepton and Ray."""
    workspace.profile(*SIZES)
    # What we send is the same whatever becomes of it.
    workspace.fault(never_ready=1)
    command = workspace.start(*TINY, "grpo.max_num_steps=1", "-b", PROFILE)
    wait_for_a_cluster(workspace)
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=180)
    [ours] = [c["body"] for c in workspace.calls() if (c["method"], c["path"][-12:]) == ("POST", "/rayclusters")]
    argv = [str(VENV / "bin" / "python"), "-c", CLIENT, workspace.url, TOKEN, json.dumps(ours)]
    environment = {**workspace.environment({}), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("ok")
    assert processes_of(workspace) == []
