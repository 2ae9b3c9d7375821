"""What becomes of a job on a Ray cluster of Lepton, as the cluster and Ray tell it, and of the cluster afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron.errors import ArtifactError, ExecutorError, NotFoundError
from nemotron.executors import ending, state_of
from nemotron.executors.base import How, JobState
from nemotron.executors.elsewhere import cancel, refresh
from nemotron.executors.launch import resume
from nemotron.executors.lepton import payload, ray_cluster
from nemotron.executors.lepton.api import Api
from nemotron.executors.lepton.executor import Lepton
from nemotron.executors.registry import executor_of
from nemotron.profiles.model import LeptonProfile
from nemotron.runs.attempts import Handle, attempts_of, begin_attempt
from nemotron.runs.folder import RunFolder
from nemotron.snapshot import VARIABLE as CODE
from tests.hostile_server import Hostile, Reply, answer
from tests.unit.runs.conftest import make_run as make_run
from tests.unit.runs.run_records import MakeRun

NAME = "nemotron-20250131-154501-8d01-1"
NO = "404 Not Found"


class Service:
    """Lepton with one cluster, and Ray on it with one job; the parts say what they are asked for."""

    def __init__(self) -> None:
        self.cluster: str | None = "Ready"
        self.job: dict[str, Any] | None = {"status": "RUNNING"}
        self.asked: list[str] = []
        self.server = Hostile(self.play)
        self.refuses = False

    def play(self, path: str, body: bytes) -> Reply:
        self.asked.append(f"{self.server.head.split()[0].decode()} {path}")
        if "/dashboard/" in path:
            if path.endswith("/logs"):
                found: Any = {"logs": "said\n\x1enemotron metrics.jsonl {}\n"}
            elif path.endswith("/stop"):
                self.job, found = {"status": "STOPPED"}, {}
            else:
                found = self.job
            return Reply(answer(json.dumps(found).encode(), "200 OK" if self.cluster and found is not None else NO))
        if path == "/rayclusters":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
            self.cluster = "Starting"
            return Reply(answer(b"{}"))
        if self.cluster is None:
            return Reply(answer(b"{}", NO))
        if self.asked[-1].startswith("DELETE ") and not self.refuses:
            self.cluster = None
            return Reply(answer(b"{}"))
        if self.refuses:
            return Reply(answer(b'{"message": "not now"}', "409 Conflict"))
        return Reply(answer(json.dumps({"status": {"state": self.cluster}}).encode()))


@pytest.fixture
def lepton(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Service, str]]:
    service = Service()
    monkeypatch.setenv("LEPTON_WORKSPACE_TOKEN", "token")
    monkeypatch.setattr(ray_cluster, "_POLL_S", 0.01)
    monkeypatch.setattr(ray_cluster, "PATIENCE_S", 0.2)
    monkeypatch.setattr(ray_cluster, "ASK_S", 0.2)
    monkeypatch.setattr(ending, "_POLL_S", 0.01)
    with service.server as server:
        yield service, server.url


def handle(url: str, run: Path = Path("/r"), **more: Any) -> Handle:
    facts = {
        "executor": "lepton",
        "started_at": "2025-01-31T15:45:01.000+00:00",
        "run_dir": "/mnt/r",
        "mirrored": True,
        "number": 1,
        "workspace": {"workspace_url": url},
        "ray_cluster": NAME,
        "job_name": "nemotron-r1-1",
        "job_id": "nemotron-r1-1",
        "log": str(run / "attempts" / "1" / "logs" / "ray.log"),
        "submitted": True,
    }
    return Handle.model_validate({**facts, **more})


@pytest.mark.parametrize("name", ["far", "a b", "a'b", 'a"b', "$(touch pwned)`x`", "ü 漢", "-x;y&z|<>*?[]"])
def test_the_entrypoint_copies_the_code_once_and_becomes_the_worker(tmp_path: Path, name: str) -> None:
    """On every folder: bash sees words, whatever they are called."""
    far, package, python = tmp_path / name, tmp_path / "package", tmp_path / "python"
    (package / "nemotron").mkdir(parents=True)
    (package / "nemotron" / "job.py").write_text("first")
    python.write_text('#!/bin/bash\nprintf "%s\\0" "$@" "${RAY_JOB_CONFIG_JSON_ENV_VAR-unset}"\n')
    python.chmod(0o755)
    given = {"executor": "lepton", "remote_job_dir": str(far), "python": str(python)}
    profile = LeptonProfile.model_validate({**given, "startup_commands": ["echo prepared >&2"]})
    text = payload.entrypoint(profile, f"{far}/runs/r", 3, How())
    env = {"PATH": "/usr/bin:/bin", "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {}}'}

    def words() -> list[str]:
        done = subprocess.run(["bash", "-c", text], cwd=package, env=env, capture_output=True, check=True)
        assert done.stderr == b"prepared\n"
        return done.stdout.decode().split("\0")[:-1]

    code = payload.code_dir(profile, f"{far}/runs/r")
    worker = [str(python), "-m", "nemotron.engines.worker", f"{far}/runs/r", "--attempt", "3"]
    # Ray's own settings of the job are not handed on: an engine that brings its own is refused by them.
    assert words()[2:] == [f"{far}/runs/r", code, *worker, "unset"]
    assert (Path(code) / "nemotron" / "job.py").read_text() == "first"
    (package / "nemotron" / "job.py").write_text("second")
    assert words()[2:4] == [f"{far}/runs/r", code]
    assert (Path(code) / "nemotron" / "job.py").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name, "package", "python"})
    assert len(list(Path(code).parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("cluster", "job", "submitted", "state"),
    [
        ("Ready", {"status": "RUNNING"}, True, JobState("running")),
        ("Ready", {"status": "SUCCEEDED"}, True, JobState("finished")),
        ("Ready", {"status": "FAILED", "driver_exit_code": 9}, True, JobState("failed", "", 9)),
        ("Starting", None, False, JobState("queued", f"no job yet; its Ray cluster `{NAME}` is Starting")),
        ("Ready", None, False, JobState("queued", f"no job yet; its Ray cluster `{NAME}` is Ready")),
        (None, None, False, JobState("lost", "it was never submitted")),
        (None, None, True, JobState("lost", f"its Ray cluster `{NAME}` is not there any more")),
        ("Stopped", None, True, JobState("lost", f"its Ray cluster `{NAME}` is Stopped")),
        ("Not Ready", None, True, JobState("unknown", f"its Ray cluster `{NAME}` is Not Ready")),
    ],
)
def test_states(
    lepton: tuple[Service, str], cluster: str | None, job: dict[str, Any] | None, submitted: bool, state: JobState
) -> None:
    service, url = lepton
    service.cluster, service.job = cluster, job
    assert Lepton().state(handle(url, submitted=submitted)) == state


def test_a_head_that_was_started_anew_has_lost_the_job(lepton: tuple[Service, str]) -> None:
    service, url = lepton
    service.job = None
    assert Lepton().state(handle(url)).state == "lost"


@pytest.mark.parametrize("name", ["../jobs/other", "A", "x/y", "", "x" * 37])
def test_no_other_thing_is_deleted_by_a_name_that_somebody_wrote(name: str) -> None:
    with pytest.raises(ArtifactError, match=r"`ray_cluster` in its `handle.json` is damaged"):
        executor_of(handle("http://127.0.0.1:1", ray_cluster=name))


@pytest.fixture
def started(make_run: MakeRun, lepton: tuple[Service, str]) -> Callable[..., RunFolder]:
    def start(**more: Any) -> RunFolder:
        run = make_run(run_id="r1")
        run.write_status(state="running")
        begin_attempt(run.path, handle(lepton[1], run.path, **more))
        return run

    return start


def test_looking_at_a_run_whose_job_is_over_deletes_its_cluster(
    lepton: tuple[Service, str], started: Callable[..., RunFolder]
) -> None:
    service, _ = lepton
    run = started()
    refresh(run)
    assert service.cluster == "Ready"
    service.job = {"status": "FAILED", "driver_exit_code": 7}
    refresh(run)
    assert service.asked[-1] == f"DELETE /rayclusters/{NAME}"
    # What it was is known without it, and what it printed.
    service.cluster = None
    kept = attempts_of(run.path)[-1].handle()
    assert Lepton().state(kept) == JobState("failed", "", 7)
    assert Lepton().read_log(kept, 0) == b"said\n"
    assert Lepton().read_log(kept, 2) == b"id\n"
    asked = len(service.asked)
    refresh(run)
    assert len(service.asked) == asked, "it is deleted once"


def test_what_cannot_be_deleted_is_said_and_tried_again(
    lepton: tuple[Service, str], started: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    service, _ = lepton
    run = started()
    service.refuses = True
    with pytest.raises(ExecutorError, match="may still be there and cost money") as caught:
        cancel(run)
    assert "`nemotron runs cancel r1` deletes it" in str(caught.value.hint)
    assert service.job == {"status": "STOPPED"}
    # The job is over, and yet there is something to cancel.
    service.refuses = False
    cancel(run)
    assert f"deleted the Ray cluster `{NAME}`" in capsys.readouterr().err
    assert state_of(run) == "cancelled"
    with pytest.raises(NotFoundError, match="there is nothing to cancel"):
        cancel(run)


def test_a_deletion_that_is_interrupted_is_said(
    lepton: tuple[Service, str], started: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    run = started()
    monkeypatch.setattr(ray_cluster, "_delete", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cancel(run)
    said = capsys.readouterr().err
    assert f"`{NAME}` of Lepton may still be there and cost money: the deletion was interrupted" in said
    assert "`nemotron runs cancel r1` deletes it" in said


def test_a_job_of_which_nothing_is_known_keeps_its_cluster(
    lepton: tuple[Service, str], started: Callable[..., RunFolder]
) -> None:
    """It may be at work; whoever goes on with the run must not take its machines away."""
    service, _ = lepton
    run = started()
    service.cluster, service.job = "Scaling", None
    with pytest.raises(ExecutorError, match=f"goes on: its Ray cluster `{NAME}` is Scaling"):
        resume(run, max_steps=None, command=["nemotron"])
    refresh(run)
    assert f"DELETE /rayclusters/{NAME}" not in service.asked
    service.cluster, service.job = "Ready", {"status": "SUCCEEDED"}
    refresh(run)
    assert service.asked.count(f"DELETE /rayclusters/{NAME}") == 1


def test_a_cluster_without_a_job_can_be_cancelled(
    lepton: tuple[Service, str], started: Callable[..., RunFolder]
) -> None:
    """The command was killed while it waited for the cluster."""
    service, _ = lepton
    run = started(submitted=False)
    service.cluster, service.job = "Starting", None
    assert state_of(run) == "queued"
    cancel(run)
    assert service.asked[-1] == f"DELETE /rayclusters/{NAME}"
    assert state_of(run) == "cancelled"


def test_who_is_interrupted_while_the_cluster_is_made_leaves_none(
    lepton: tuple[Service, str], started: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is not cut off: the cluster would come after it was deleted, and nobody would know of it."""
    service, _ = lepton
    answered, usual = [], Api.call

    def noted(self: Api, method: str, path: str, **more: Any) -> Any:
        found = usual(self, method, path, **more)
        answered.append(method)
        return found

    monkeypatch.setattr(Api, "call", noted)
    service.cluster = None
    run = started(submitted=False)
    profile = LeptonProfile(executor="lepton", nodes=2, remote_job_dir="/mnt/far")
    sent = ray_cluster.submission(
        profile, NAME, run_id="r1", run_dir="/mnt/r", number=1, environment={CODE: "v"}, how=How(), of_profile="two"
    )
    with pytest.raises(KeyboardInterrupt):
        ray_cluster.RayClusters().submit(run, sent, {CODE: "v"}, attempts_of(run.path)[-1].handle())
    assert service.cluster is None
    assert answered[-2:] == ["POST", "DELETE"]
