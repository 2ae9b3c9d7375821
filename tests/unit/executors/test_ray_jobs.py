"""What would be sent to a Ray cluster, what is refused before, and what its stumbles come to."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nemotron import snapshot
from nemotron.errors import ArtifactError, ExecutorError, NotAvailableError
from nemotron.executors import alive, mirror, state_of
from nemotron.executors.base import JobState, Submission
from nemotron.executors.ray_jobs import RayJobs, _Log, _service
from nemotron.executors.registry import executor, executor_of
from nemotron.runs.attempts import Handle, begin_attempt
from nemotron.runs.folder import RunFolder
from tests.in_process import Result, nemotron
from tests.unit.runs.conftest import make_run as make_run
from tests.unit.runs.run_records import MakeRun

SOURCE = Path(snapshot.PACKAGE).parent


def said(folder: Path, *lines: str, words: tuple[str, ...] = ("--dry-run", "--json"), **env: str) -> Result:
    base = ["[lab]", 'executor = "ray"', f'shared = ["{SOURCE}"]', 'remote_job_dir = "/mnt/far"']
    keys = {line.partition(" ")[0] for line in lines}
    base = [line for line in base if line.partition(" ")[0] not in keys]
    if "address" not in keys:
        lines = (*lines, 'address = "https://head:8265"')
    (folder / "env.toml").write_text("\n".join([*base, *lines]) + "\n")
    return nemotron("steps", "run", "rlhf", "-c", "tiny", "-b", "lab", *words, cwd=folder, env=env, bare=True)


def body(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.stderr
    sent: dict[str, Any] = json.loads(result.stdout)["submission"]["request"]["body"]
    return sent


def test_the_body_is_all_that_is_sent(tmp_path: Path) -> None:
    sent = body(said(tmp_path, "entrypoint_num_gpus = 1", 'startup_commands = ["module load x"]', 'python = "py thon"'))
    assert sent["submission_id"].startswith("nemotron-")
    assert sent["submission_id"].endswith("-1")
    assert sent["entrypoint_num_gpus"] == 1
    assert sent["runtime_env"]["working_dir"] == f"gcs://_ray_pkg_nemotron_{snapshot.digest()}.zip"
    assert sent["runtime_env"]["env_vars"][snapshot.VARIABLE] == snapshot.digest()
    lines = sent["entrypoint"].splitlines()
    assert lines[0] == "set -eu"
    assert lines[2] == "module load x"
    # Not shared: the job unpacks its own folder, and says the rows again.
    assert lines[3].startswith("exec 'py thon' -c ")
    run = sent["submission_id"].removeprefix("nemotron-").removesuffix("-1")
    assert lines[-1].endswith(
        f"/mnt/far/runs/{run} . 'py thon' -m nemotron.engines.worker /mnt/far/runs/{run} --attempt 1"
    )


def test_a_shared_folder_needs_no_mirror(tmp_path: Path) -> None:
    sent = body(said(tmp_path, f'shared = ["{SOURCE}", "/mnt"]', 'code = "installed"'))
    assert len(sent["entrypoint"].splitlines()) == 2
    assert sent["entrypoint"].splitlines()[1].startswith("exec python3 -m nemotron.engines.worker /mnt/far/runs/")
    assert "working_dir" not in sent["runtime_env"]


def test_no_value_of_this_environment_stands_where_the_dashboard_shows_it(tmp_path: Path) -> None:
    refused = said(tmp_path, 'pass_env = ["HF_TOKEN"]', words=(), HF_TOKEN="hf-secret-value")
    assert refused.code == 3
    assert "its value would stand in what the dashboard shows of the job" in refused.stderr
    assert '`secrets = ["HF_TOKEN"]`' in refused.stderr
    kept = said(tmp_path, 'pass_env = ["HF_TOKEN"]', 'secrets = ["HF_TOKEN"]', HF_TOKEN="hf-secret-value")
    assert "HF_TOKEN" not in body(kept)["runtime_env"]["env_vars"]
    assert "hf-secret-value" not in kept.stdout + kept.stderr


@pytest.mark.parametrize(
    ("address", "warned"),
    [("http://head:8265", True), ("https://head:8265", False), ("http://localhost:8265", False)],
)
def test_a_token_in_the_clear_is_said(tmp_path: Path, address: str, warned: bool) -> None:
    found = said(tmp_path, f'address = "{address}"', 'token_env = "LAB_TOKEN"')
    assert ("the token goes to http://head:8265 in the clear" in found.stderr) is warned


def test_what_the_profile_has_to_say(tmp_path: Path) -> None:
    other = said(tmp_path, 'address = "ray://head:10001"')
    assert other.code == 3
    assert "the address of the dashboard: `http://head:8265`" in other.stderr
    nowhere = nemotron("profiles", "list", cwd=tmp_path, bare=True)
    assert "Traceback" not in nowhere.stderr
    text = (tmp_path / "env.toml").read_text().replace('remote_job_dir = "/mnt/far"\n', "").replace("ray://", "http://")
    (tmp_path / "env.toml").write_text(text)
    unplaced = nemotron("steps", "run", "rlhf", "-c", "tiny", "-b", "lab", cwd=tmp_path, bare=True)
    assert unplaced.code == 3
    assert "`remote_job_dir` is not set" in unplaced.stderr


class Head(BaseHTTPRequestHandler):
    """A head that loses answers, as one does whose connection breaks."""

    jobs: dict[str, dict[str, Any]]
    posts: int
    no_agent = False

    def do_GET(self) -> None:
        job = self.jobs.get(self.path.rpartition("/")[2])
        if self.path.startswith("/api/packages/"):
            self.answer(200, "")
        elif job is None:
            self.answer(404, "does not exist")
        else:
            self.answer(200, json.dumps(job))

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).posts += 1
        if self.no_agent:
            self.answer(500, "No available agent to submit job, please try again later.")
        elif sent["submission_id"] in self.jobs:
            self.answer(400, "Traceback (most recent call last):\n  ...\nValueError: Job already exists")
        else:
            self.jobs[sent["submission_id"]] = {"status": "RUNNING"}
            self.answer(500, "the answer that was lost")

    def answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def head() -> Iterator[tuple[type[Head], str]]:
    kind = type("OwnHead", (Head,), {"jobs": {}, "posts": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield kind, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def handle_for(address: str, **more: Any) -> Handle:
    cluster = {"address": address, "token_env": None}
    facts = {
        "executor": "ray",
        "started_at": "2025-01-31T15:45:01.000+00:00",
        "host": "h",
        "job_id": None,
        "run_dir": "/r",
    }
    return Handle.model_validate({**facts, "job_name": "nemotron-r1-1", "cluster": cluster, "number": 1, **more})


def test_an_answer_that_is_lost_makes_no_second_job(head: tuple[type[Head], str], tmp_path: Path) -> None:
    kind, address = head
    environment = {snapshot.VARIABLE: "x", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    request = {"body": {"submission_id": "nemotron-r1-1", "entrypoint": "true", "runtime_env": {}}}
    submission = Submission(executor="ray", profile="lab", run_dir="/r", request=request, environment=environment)
    sent = RayJobs().submit(RunFolder(tmp_path), submission, {}, handle_for(address))
    assert list(kind.jobs) == ["nemotron-r1-1"]
    again = RayJobs().submit(RunFolder(tmp_path), submission, {}, handle_for(address))
    assert (sent.model_extra or {})["job_id"] == (again.model_extra or {})["job_id"] == "nemotron-r1-1"
    # The second time it was asked for first.
    assert kind.posts == 2


def test_no_agent_is_said_with_what_to_do(head: tuple[type[Head], str]) -> None:
    kind, address = head
    kind.no_agent = True
    with pytest.raises(ExecutorError, match="No available agent") as caught:
        _service(address, None, patience_s=0.5).call("POST", "/api/jobs/", body={"submission_id": "x"})
    assert "--dashboard-agent-listen-port" in str(caught.value.hint)
    assert "--min-worker-port=0" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("job", "state"),
    [
        ({"status": "PENDING", "message": "waits for\nresources"}, JobState("queued", "waits for resources")),
        ({"status": "RUNNING", "message": "m"}, JobState("running")),
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, JobState("finished")),
        ({"status": "FAILED", "driver_exit_code": 7, "message": "m"}, JobState("failed", "", 7)),
        ({"status": "FAILED", "driver_exit_code": None, "message": "no env"}, JobState("failed", "no env")),
        (
            {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "node died"},
            JobState("node_failed", "node died"),
        ),
        ({"status": "STOPPED"}, JobState("cancelled")),
        ({"status": "NEW WORD"}, JobState("unknown")),
    ],
)
def test_states(head: tuple[type[Head], str], job: dict[str, Any], state: JobState) -> None:
    kind, address = head
    kind.jobs["j"] = job
    assert RayJobs().state(handle_for(address, job_id="j")) == state


def test_states_of_what_is_not_there(head: tuple[type[Head], str]) -> None:
    _, address = head
    states = [RayJobs().state(handle) for handle in (handle_for(address, job_id="gone"), handle_for(address))]
    assert [state.state for state in states] == ["lost", "lost"]
    assert "forgets all jobs" in states[0].reason


def test_a_forgotten_job_keeps_no_run_from_going_on(head: tuple[type[Head], str], make_run: MakeRun) -> None:
    """The guide says that such a run is resumed; that began with the log, of which the cluster knows nothing."""
    _, address = head
    run = make_run(run_id="r1")
    before = run.status()
    RayJobs().fetch(run, handle_for(address, job_id="gone", mirrored=True))
    assert run.status() == before


class Written:
    """A service whose log grows with every question."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def ask(self, shape: Any, method: str, path: str, *, most: int) -> Any:
        return shape(logs=self.texts.pop(0))


def test_half_a_row_for_the_mirror_is_not_shown() -> None:
    mark = "\x1enemotron metrics.jsonl "
    log = _Log(Written(f'step 1\n{mark}{{"a"', f'step 1\n{mark}{{"a": 1}}\nstep 2'), "j")  # type: ignore[arg-type]
    begun = log.text()
    assert (mirror.printed(begun), mirror.repeated(begun)) == (b"step 1\n", {})
    whole = log.text()
    assert (mirror.printed(whole), mirror.repeated(whole)) == (b"step 1\nstep 2", {"metrics.jsonl": [b'{"a": 1}']})
    # Of a mark itself a part may have arrived.
    assert mirror.printed(b"step 1\n\x1enemo") == b"step 1\n"


def test_the_package_is_the_same_for_the_same_code() -> None:
    assert snapshot.zipped() == snapshot.zipped()


@pytest.mark.parametrize(("name", "module"), [("ray", "ray_jobs"), ("lepton", "lepton.api")])
def test_without_an_http_client_the_extra_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended as a bug to be reported."""
    for loaded in list(sys.modules):
        if loaded.startswith(("nemotron.executors.http", f"nemotron.executors.{module}", "nemotron.executors.lepton")):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(NotAvailableError, match=f"jobs on `{name}` need the package `httpx`") as caught:
        executor(name)
    assert "[cluster]" in str(caught.value.hint)


def test_without_an_http_client_runs_can_still_be_listed(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(run_id="r1")
    run.write_status(state="running")
    begin_attempt(run.path, handle_for("http://head:8265", job_id="j"))
    monkeypatch.delitem(sys.modules, "nemotron.executors.ray_jobs")
    monkeypatch.delitem(sys.modules, "nemotron.executors.http")
    monkeypatch.setitem(sys.modules, "httpx", None)
    assert (state_of(run), alive(run)) == ("unknown", "unknown")


def test_a_handle_that_somebody_wrote_over_is_not_asked(make_run: MakeRun) -> None:
    """The token would go wherever it says."""
    run = make_run(run_id="r1")
    begin_attempt(run.path, handle_for("file:///etc", job_id="j"))
    assert alive(run) == "unknown"
    with pytest.raises(ArtifactError, match=r"`cluster.address` in its `handle.json` is damaged"):
        executor_of(handle_for("file:///etc", job_id="j"))
