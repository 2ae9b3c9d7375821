"""A sweep through a profile: a job for each run, whatever becomes of the others."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nemotron import api
from nemotron.executors import follow, handle_of
from nemotron.runs.folder import list_runs
from tests.in_process import Result, nemotron
from tests.unit.executors.test_ray_jobs import SOURCE, Head


class Taking(Head):
    """A head that takes jobs, but for those that it is told to refuse."""

    refused: tuple[int, ...] = ()
    becomes: list[dict[str, Any]]

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).posts += 1
        if self.posts in self.refused:
            self.answer(400, "no room for this one")
            return
        self.jobs[sent["submission_id"]] = self.becomes.pop(0) if self.becomes else {"status": "RUNNING"}
        self.answer(200, "{}")

    def do_GET(self) -> None:
        if self.path.endswith("/logs"):
            self.answer(200, json.dumps({"logs": f"said by {self.path.split('/')[3][-8:]}\n"}))
        else:
            super().do_GET()


@pytest.fixture
def head(tmp_path: Path) -> Iterator[type[Taking]]:
    kind = type("OwnTaking", (Taking,), {"jobs": {}, "posts": 0, "becomes": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        lines = [
            *("[lab]", 'executor = "ray"', f'address = "http://127.0.0.1:{server.server_address[1]}"'),
            *(f'shared = ["{SOURCE}", "{tmp_path}"]', f'remote_job_dir = "{tmp_path}/far"'),
        ]
        (tmp_path / "env.toml").write_text("\n".join(lines) + "\n")
        yield kind
        server.shutdown()


def sweep(folder: Path, *words: str) -> Result:
    words = ("steps", "run", "rlhf", "-c", "tiny", *words, "--sweep", "grpo.seed=1,2,3")
    return nemotron(*words, cwd=folder, bare=True)


def test_the_dry_run_shows_one_submission(head: type[Taking], tmp_path: Path) -> None:
    done = sweep(tmp_path, "-b", "lab", "-d")
    assert done.code == 0, done.stderr
    assert done.stdout.count('"submission_id"') == 1
    assert "--- sweep of 3 runs" in done.stdout
    assert not head.jobs
    assert not (tmp_path / "runs").exists()


def test_one_that_is_refused_stops_no_other_and_is_sent_by_resume(head: type[Taking], tmp_path: Path) -> None:
    head.refused = (2,)
    done = sweep(tmp_path, "-b", "lab")
    assert done.code == 11
    assert "no room for this one" in done.stderr
    assert "2 of 3 runs submitted" in done.stderr
    printed = done.stdout.split()
    runs = list_runs(tmp_path / "runs")
    assert len(runs) == 3
    assert set(printed) == {run.id for run in runs if run.status().state != "failed"}
    parts = [run.job().asked.sweep for run in runs]
    assert len({part.id for part in parts if part}) == 1
    assert sorted(part.values for part in parts if part) == [(("grpo.seed", text),) for text in "123"]

    again = sweep(tmp_path, "-b", "lab", "--resume")
    assert again.code == 0, again.stderr
    assert again.stderr.count("goes on already") == 2
    # The refused one got a second attempt; no run was made and no job sent twice.
    assert len(list_runs(tmp_path / "runs")) == 3
    assert head.posts == 4
    assert [name[-2:] for name in head.jobs] == ["-1", "-1", "-2"]


def test_attached_the_exit_code_is_that_of_the_first_that_failed(
    head: type[Taking], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing runs behind this head, so the last status of a run that it calls finished never comes.
    monkeypatch.setattr(follow, "LATE_S", 0.0)
    head.becomes = [
        {"status": "SUCCEEDED"},
        {"status": "FAILED", "driver_exit_code": 7},
        {"status": "FAILED", "driver_exit_code": 9},
    ]
    done = sweep(tmp_path, "-r", "lab")
    assert done.code == 7, done.stderr
    assert done.stdout.count("said by ") == 3
    assert "1 of 3 runs finished" in done.stderr
    assert "run 3 of 3 (grpo.seed=3): exit code 9" in done.stderr


def test_python_goes_on_with_a_run_where_it_was_submitted(
    head: type[Taking], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on this machine, which may be a login node."""
    monkeypatch.chdir(tmp_path)
    head.becomes = [{"status": "FAILED", "driver_exit_code": 7}]
    done = nemotron("steps", "run", "dpo", "-c", "tiny", "-b", "lab", bare=True)
    assert done.code == 0, done.stderr
    (run,) = list_runs(tmp_path / "runs")
    again = api.resume("last", progress=False)
    assert again.id == run.id
    assert again.exit_code is None
    handle = handle_of(run)
    assert handle is not None
    assert handle.executor == "ray"
    assert [name[-2:] for name in head.jobs] == ["-1", "-2"]
    # It goes on there now, so it is left alone.
    assert api.resume("last", progress=False).id == run.id
    assert len(head.jobs) == 2
