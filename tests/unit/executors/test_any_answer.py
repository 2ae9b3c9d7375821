"""Whatever a cluster's API answers is a state, data, or an error in words; soon, and in little memory."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemotron import snapshot
from nemotron.errors import ConfigError, ExecutorError, NemotronError, NotFoundError
from nemotron.executors import http, mirror
from nemotron.executors.base import JobState, Submission
from nemotron.executors.lepton import api, executor, ray_cluster
from nemotron.executors.lepton.executor import Lepton
from nemotron.executors.ray_jobs import RayJobs
from nemotron.profiles.load import Profile
from nemotron.profiles.model import LeptonProfile, RayProfile
from nemotron.runs.attempts import Handle
from nemotron.runs.folder import RunFolder
from tests.hostile_server import Hostile, Reply, answer, as_json, bodies, replies

LONGEST_S = 30.0
SECRET = "the-token-of-the-cluster"
JOB = {"metadata": {"id": "j-1", "name": "nemotron-r1-1"}, "status": {"state": "Failed"}}
MARK = "\x1enemotron status.json "
LOG = f'step 1\n{MARK}{{"state": "failed", "exit_code": 3}}\n'
LEPTON = ([JOB], {"jobs": [JOB]}, JOB, {"workspace_name": "lab"}, {"message": f"no {SECRET}"})
RAY = (
    {"status": "FAILED", "message": "m", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "driver_exit_code": 7},
    *({"logs": LOG}, {"ray_version": "2"}, [{"submission_id": "x"}], {"detail": f"no {SECRET}"}),
)
CODES = {ConfigError.exit_code, NotFoundError.exit_code, ExecutorError.exit_code}
SENT = Submission(
    executor="any",
    profile="lab",
    run_dir="/r",
    request={
        "body": {
            "submission_id": "nemotron-r1-1",
            "spec": {
                "envs": [],
                "affinity": {"allowed_dedicated_node_groups": ["g"]},
                "head_group_spec": {"envs": [], "affinity": {"allowed_dedicated_node_groups": ["g"]}},
            },
            "runtime_env": {"working_dir": "gcs://x.zip"},
        },
        "then": [
            {"path": "/rayclusters/c", "until": {"state": "Ready", "workers": 1, "at_most_s": 1}},
            {
                "path": "/rayclusters/c/dashboard/api/jobs/",
                "body": {"runtime_env": {"env_vars": {snapshot.VARIABLE: "x", "RAY_JOB_STOP_WAIT_TIME_S": "60"}}},
            },
        ],
    },
    environment={snapshot.VARIABLE: "x", "RAY_JOB_STOP_WAIT_TIME_S": "60"},
)


@pytest.fixture(scope="module")
def server() -> Iterator[Hostile]:
    with Hostile(lambda path, body: Reply(b"")) as hostile:
        yield hostile


@pytest.fixture(autouse=True)
def services(monkeypatch: pytest.MonkeyPatch) -> list[http.Service]:
    """A call may take a third of a second, and is not tried again. All that were made."""
    made: list[http.Service] = []
    begin = http.Service.__init__

    def impatient(self: http.Service, *words: Any, **given: Any) -> None:
        begin(self, *words, **{**given, "patience_s": 0.0, "whole_s": 0.3})
        made.append(self)

    monkeypatch.setattr(http.Service, "__init__", impatient)
    monkeypatch.setattr(executor, "_QUIET_S", 0.2)
    # Packing takes seconds, and asks nobody.
    monkeypatch.setattr(snapshot, "zipped", lambda: b"zip")
    monkeypatch.setattr(mirror, "packed", lambda *words, **given: {})
    monkeypatch.setenv("CLUSTER_TOKEN", SECRET)
    return made


def handle(server: Hostile) -> Handle:
    return Handle.model_validate(
        {
            "executor": "any",
            "started_at": "2025-01-31T15:45:01.000+00:00",
            "job_name": "nemotron-r1-1",
            "job_id": "j-1",
            "number": 1,
            "run_dir": "/r",
            "mirrored": True,
            "cluster": {"address": server.url, "token_env": "CLUSTER_TOKEN"},
            "workspace": {"workspace_url": server.url, "token_env": "CLUSTER_TOKEN"},
        }
    )


def lepton(server: Hostile) -> Profile:
    given = {"executor": "lepton", "workspace_url": server.url, "token_env": "CLUSTER_TOKEN", "node_group": "g"}
    return Profile("lab", LeptonProfile.model_validate(given), (), {}, {})


def ray(server: Hostile) -> Profile:
    given = {"executor": "ray", "address": server.url, "token_env": "CLUSTER_TOKEN"}
    return Profile("lab", RayProfile.model_validate(given), (), {}, {})


def questions(kind: Any, profile: Callable[[Hostile], Profile], server: Hostile, run: RunFolder, asked: Handle) -> Any:
    """All that a cluster is asked; each by a process of its own, as it were."""
    return {
        "state": lambda: kind().state(asked),
        "check": lambda: kind().check(profile(server)),
        "submit": lambda: kind().submit(run, SENT, {}, asked).model_extra,
        "log": lambda: kind().read_log(asked, 0),
        "fetch": lambda: kind().fetch(run, asked),
        "cancel": lambda: kind().cancel(asked),
        "release": lambda: kind().release(asked, JobState("finished")).model_extra,
    }


def answered(
    kind: Any, profile: Any, server: Hostile, run: RunFolder, reply: Reply, what: str, of: Any = handle
) -> None:
    # A log is listened to for as long as its job goes on, so one that hangs is none too long.
    log = replace(reply, ending="close") if reply.ending == "hang" else reply
    server.play = lambda path, body: log if path.endswith("/log") else reply
    started = time.monotonic()
    try:
        found = questions(kind, profile, server, run, of(server))[what]()
    except NemotronError as error:
        assert error.exit_code in CODES, error  # noqa: PT017 - many answers are no error
        assert SECRET not in f"{error.message} {error.hint}"  # noqa: PT017
    else:
        assert SECRET not in repr(found) or what in ("log", "submit", "release")
        if isinstance(found, JobState):
            assert isinstance(found.exit_code, int | None)
    assert time.monotonic() - started < LONGEST_S


def close(services: list[http.Service]) -> None:
    """Give back what an example took, when its log has been read."""
    for thread in threading.enumerate():
        if thread.name == "lepton-log":
            thread.join(LONGEST_S)
    while services:
        services.pop().close()


def on_a_cluster_of_lepton(server: Hostile) -> Handle:
    more = {"ray_cluster": "nemotron-c-1", "submitted": True, "log": "/r/attempts/1/logs/ray.log"}
    return handle(server).model_copy(update=more)


WHAT = st.sampled_from(["state", "check", "submit", "log", "fetch", "cancel"])
MANY = [False, pytest.param(True, marks=pytest.mark.full)]
REDIRECTED = Reply(answer(b"", "302 Found", "Location: http://elsewhere/login"))
DRIPPED = Reply(answer(b'"' + b"x" * 2000 + b'"'), "drip")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("many", MANY, ids=["some", "many"])
def test_any_answer_of_lepton(server: Hostile, services: list[http.Service], tmp_path: Path, many: bool) -> None:
    @settings(max_examples=(500 if "EVERY_BYTE" in os.environ else 120) if many else 8, deadline=None)
    @given(reply=replies(bodies(*LEPTON)), what=WHAT)
    @example(reply=Reply(answer(b"[1]")), what="state")
    @example(reply=Reply(answer(b'{"jobs": [3]}')), what="submit")
    @example(reply=Reply(answer(b"[[]]")), what="check")
    @example(reply=Reply(answer(b"[" * 100_000)), what="check")
    @example(reply=Reply(answer(b"[" * 100_000, "500 Bug")), what="check")
    @example(reply=Reply(answer(as_json(JOB)[:-1] + b', "x": "' + SECRET.encode() + b'"}', "400 No")), what="state")
    @example(reply=Reply(SECRET.encode() + b" is no HTTP\r\n\r\n"), what="check")
    @example(reply=DRIPPED, what="state")
    def holds(reply: Reply, what: str) -> None:
        answered(Lepton, lepton, server, RunFolder(tmp_path), reply, what)
        close(services)

    holds()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("many", MANY, ids=["some", "many"])
def test_any_answer_of_ray(server: Hostile, services: list[http.Service], tmp_path: Path, many: bool) -> None:
    @settings(max_examples=(500 if "EVERY_BYTE" in os.environ else 120) if many else 8, deadline=None)
    @given(reply=replies(bodies(*RAY)), what=WHAT)
    @example(reply=Reply(answer(b"[1]")), what="log")
    @example(reply=Reply(answer(as_json({"status": "FAILED", "driver_exit_code": 10**300}))), what="state")
    @example(reply=Reply(answer(as_json({"logs": "\x1enemotron \ud800 x\n"}))), what="fetch")
    @example(reply=REDIRECTED, what="check")
    @example(reply=Reply(answer(b"x" * 9, "401 No")), what="cancel")
    @example(reply=DRIPPED, what="log")
    def holds(reply: Reply, what: str) -> None:
        answered(RayJobs, ray, server, RunFolder(tmp_path), reply, what)
        close(services)

    holds()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("many", MANY, ids=["some", "many"])
def test_any_answer_of_a_ray_cluster_of_lepton(
    server: Hostile, services: list[http.Service], tmp_path: Path, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "_POLL_S", 0.05)
    (tmp_path / "attempts" / "1" / "logs").mkdir(parents=True)
    cluster = {"metadata": {"id": "c"}, "status": {"state": "Ready", "readyWorkerReplicas": 1}}
    stopped = {"status": {"state": "Stopped"}}

    @settings(max_examples=(500 if "EVERY_BYTE" in os.environ else 120) if many else 8, deadline=None)
    @given(reply=replies(bodies(*RAY, cluster, stopped)), what=st.one_of(WHAT, st.just("release")))
    @example(reply=Reply(answer(as_json(stopped))), what="state")
    @example(reply=Reply(answer(as_json({"status": {"readyWorkerReplicas": "many"}}))), what="submit")
    @example(reply=Reply(answer(b"x" * 9, "404 No")), what="state")
    @example(reply=Reply(answer(b"x" * 9, "404 No")), what="fetch")
    @example(reply=Reply(answer(b"x" * 9, "401 No")), what="release")
    @example(reply=DRIPPED, what="release")
    def holds(reply: Reply, what: str) -> None:
        answered(Lepton, lepton, server, RunFolder(tmp_path), reply, what, of=on_a_cluster_of_lepton)
        close(services)

    holds()


def test_an_answer_that_redirects_is_none(server: Hostile) -> None:
    """An empty page of a login was "there are no jobs"."""
    server.play = lambda path, body: REDIRECTED
    with pytest.raises(ExecutorError, match="302"):
        RayJobs().check(ray(server))


@pytest.mark.parametrize("token", [f"{SECRET}\n", f" {SECRET}", f"{SECRET}\x00", f"{SECRET}é"])
@pytest.mark.parametrize("which", ["lepton", "ray"])
def test_a_token_that_no_header_can_carry_is_not_shown(
    server: Hostile, monkeypatch: pytest.MonkeyPatch, token: str, which: str
) -> None:
    """The libraries' own words have it in them."""
    if "\x00" in token:
        # No variable holds one; what `lep workspace login` notes down may.
        with pytest.raises(ConfigError, match="cannot be sent") as caught:
            api.Api(api.Workspace(server.url, token))
    else:
        monkeypatch.setenv("CLUSTER_TOKEN", token)
        with pytest.raises(ConfigError, match="cannot be sent") as caught:
            Lepton().check(lepton(server)) if which == "lepton" else RayJobs().check(ray(server))
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"


def test_an_exit_code_is_one(server: Hostile) -> None:
    server.play = lambda path, body: Reply(answer(json.dumps({"status": "FAILED", "driver_exit_code": 7}).encode()))
    assert RayJobs().state(handle(server)) == JobState("failed", "", 7)
