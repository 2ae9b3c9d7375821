"""A job that was sent although nobody heard the answer: its handle has no id, and what it was called finds it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from nemotron.executors.base import Executor, JobState
from nemotron.executors.lepton import executor as lepton
from nemotron.executors.ray_jobs import RayJobs
from nemotron.executors.shells import Done
from nemotron.executors.slurm import executor as slurm
from nemotron.runs.attempts import Handle
from tests.hostile_server import Hostile, Reply, answer
from tests.unit.executors.test_slurm_answers import NONE, Says

NAME = "nemotron-r1-1"
KINDS = {"lepton": lepton.Lepton, "ray": RayJobs}


class Cluster:
    """Lepton, which gives a job an id of its own, and Ray, which takes the one that it is given."""

    def __init__(self) -> None:
        self.server = Hostile(self.play)
        self.has_it = True
        self.asked: list[str] = []

    def play(self, path: str, body: bytes) -> Reply:
        method = self.server.head.split()[0].decode()
        self.asked.append(f"{method} {path.partition('?')[0]}")
        job = {"metadata": {"id": f"{NAME}-07", "name": NAME}, "status": {"state": "Running"}}
        found = {
            "/jobs": {"jobs": [job] if self.has_it else []},
            f"/jobs/{NAME}-07": job,
            f"/api/jobs/{NAME}": {"status": "RUNNING"} if self.has_it else None,
            f"/api/jobs/{NAME}/stop": {"stopped": True},
        }.get(path.partition("?")[0])
        return Reply(answer(json.dumps(found).encode(), "404 Not Found" if found is None else "200 OK"))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("LEPTON_WORKSPACE_TOKEN", "token")
    monkeypatch.setattr(lepton, "_QUIET_S", 0.1)
    found = Cluster()
    with found.server:
        yield found


def handle(url: str) -> Handle:
    facts: dict[str, Any] = {"executor": "any", "started_at": "", "run_dir": "/r", "number": 1, "mirrored": True}
    where = {"workspace": {"workspace_url": url}, "cluster": {"address": url, "token_env": None}}
    return Handle.model_validate({**facts, **where, "job_name": NAME, "job_id": None})


@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_and_can_be_ended(cluster: Cluster, kind: str) -> None:
    by: Executor = KINDS[kind]()
    asked = handle(cluster.server.url)
    assert by.state(asked) == JobState("running")
    by.cancel(asked)
    ends = {"lepton": f"PATCH /jobs/{NAME}-07", "ray": f"POST /api/jobs/{NAME}/stop"}
    assert cluster.asked[-1] == ends[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_is_not_there_is_lost_and_has_no_log(cluster: Cluster, kind: str) -> None:
    cluster.has_it = False
    by: Executor = KINDS[kind]()
    assert by.state(handle(cluster.server.url)).state == "lost"
    if kind == "lepton":
        assert by.read_log(handle(cluster.server.url), 0) == b""
        assert {call for call in cluster.asked if call != "GET /jobs"} == set()


def test_slurm_is_asked_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "squeue": Done(0, b"41\n", ""),
        "scontrol": Done(0, b"JobId=41 JobState=RUNNING Reason=None ExitCode=0:0\n", ""),
        "touch": Done(0, b"", ""),
        "scancel": Done(0, b"", ""),
    }
    shell = Says(answers)
    monkeypatch.setattr(slurm, "shell_of", lambda handle: shell)
    asked = handle("")
    assert slurm.Slurm().state(asked) == JobState("running")
    slurm.Slurm().cancel(asked)
    assert shell.asked[-1] == ["scancel", "41"]
    shell.answers = {**answers, "squeue": Done(0, b"", ""), "sacct": NONE}
    assert slurm.Slurm().state(asked) == JobState("lost", "it was never submitted")
    shell.answers = {**answers, "squeue": Done(1, b"", "slurm_load_jobs error: Unable to contact slurm controller\n")}
    unknown = slurm.Slurm().state(asked)
    assert (unknown.state, "Unable to contact" in unknown.reason) == ("unknown", True)
