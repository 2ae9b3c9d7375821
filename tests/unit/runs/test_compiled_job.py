"""``job.json``: one reader, one writer, one format."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemotron import __version__
from nemotron.cli.main import main
from nemotron.config.schema.rm import RmRunConfig
from nemotron.disk import lock
from nemotron.errors import ArtifactError
from nemotron.executors import alive, state_of
from nemotron.job import CompiledJob, read_job
from nemotron.place import Place
from nemotron.runs.attempts import Handle, attempts_of, begin_attempt, reported
from nemotron.runs.folder import LOCK, RunFolder
from tests.compiled_jobs import compiled
from tests.unit.runs.run_records import MakeRun


def test_what_is_written_is_read() -> None:
    place = Place(
        name="dgx", is_here=False, nodes=2, gpus_per_node=8, shared=(Path("/lustre"),), modules={"torch": True}
    )
    job = compiled(
        place=place, inputs=[{"key": "k", "type": "checkpoint_hf", "path": "p"}], secret_variables={"a.b": "A_B"}
    )
    again = CompiledJob.model_validate_json(job.to_bytes())
    assert again == job
    assert (again.format, again.version) == (1, __version__)


OLD = {
    "id": "r",
    "step": "rl/nemo_rl/dpo",
    "config_name": "tiny",
    "engine": "embedded",
    "provenance": {"nemotron": "0.1.0"},
}


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (lambda job: OLD, "has no format number", "start it again with `nemotron steps run rl/nemo_rl/dpo -c tiny`"),
        (
            lambda job: {**job, "format": 2, "version": "9.1"},
            "has the format 2",
            "go on with the version that wrote it",
        ),
        (lambda job: {**job, "place": {**job["place"], "rack": 3}}, "has the key `place.rack`", "go on with that one"),
        (lambda job: {**job, "queue": "x", "version": "9.1"}, "has the key `queue`", "written by nemotron 9.1"),
        (lambda job: {**job, "engine": "warp"}, "is damaged: `engine`", "go on with that one"),
        (lambda job: [job], "not a JSON object", ""),
    ],
)
def test_a_job_that_this_version_cannot_read_is_one_clear_error(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], change: Any, message: str, hint: str
) -> None:
    run = make_run(run_id="r")
    lock.release(run.path / LOCK)
    path = run.path / "job.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ArtifactError, match=message) as caught:
        read_job(path)
    assert hint in (caught.value.hint or "")
    runs_dir = str(run.path.parent)
    assert main(["runs", "resume", "r", "--runs-dir", runs_dir]) == ArtifactError.exit_code
    said = capsys.readouterr().err
    assert message in said
    assert "bug in nemotron" not in said
    # The list shows the others, and says which one it cannot read.
    assert main(["runs", "list", "--runs-dir", runs_dir]) == 0
    said = capsys.readouterr()
    assert "unreadable" in said.out
    assert message in said.err


def test_a_config_of_another_model_is_refused_by_key() -> None:
    with pytest.raises(ArtifactError, match=f"this is {__version__}, which reads its config otherwise: `") as caught:
        compiled(config={"rm": {}}).settings(RmRunConfig)
    assert "compile it again" in str(caught.value.hint)


def test_every_attempt_keeps_its_logs(make_run: MakeRun) -> None:
    run = make_run()
    first = begin_attempt(run.path, Handle.of_this_process())
    (first.logs / "judge.log").write_text("why it died")
    second = begin_attempt(run.path, Handle.of_this_process())
    assert [attempt.number for attempt in attempts_of(run.path)] == [1, 2]
    assert second.logs != first.logs
    assert (first.logs / "judge.log").read_text() == "why it died"
    assert second.handle().executor == "local"


def test_an_attempt_keeps_no_value_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["nemotron", "steps", "run", "rlhf", "a.api_key=sk-secret"])
    assert Handle.of_this_process().command == ("nemotron", "steps", "run", "rlhf", "a.api_key=...")


def test_the_state_joins_what_the_worker_wrote_with_what_the_executor_says() -> None:
    assert [reported("running", answer) for answer in ("yes", "no", "unknown")] == ["running", "killed", "unknown"]
    assert [reported("failed", answer) for answer in ("yes", "no", "unknown")] == ["failed"] * 3


def test_a_run_of_another_executor_is_not_called_killed(make_run: MakeRun) -> None:
    run = make_run()
    run.write_status(state="running")
    begin_attempt(run.path, Handle(executor="another", started_at="2025-01-31T15:45:01+00:00"))
    lock.release(run.path / LOCK)
    assert (alive(run), state_of(run)) == ("unknown", "unknown")


def test_a_file_system_without_locks_is_not_known_and_no_crash(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    run.write_status(state="running")
    lock.release(run.path / LOCK)

    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert (alive(run), state_of(run)) == ("unknown", "unknown")
    with run.lock():
        run.write_status(state="failed")
    assert "file system without locks" in capsys.readouterr().err
    assert state_of(run) == "failed"


def test_the_worker_is_one_line_that_says_errors_as_the_command_does(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(run_id="r", step="convert/hf_to_megatron", engine="plain", config={"hf_model": 3})
    lock.release(run.path / LOCK)
    words = [sys.executable, "-m", "nemotron.engines.worker"]
    done = subprocess.run([*words, str(run.path)], capture_output=True, text=True, check=False)
    assert done.returncode == ArtifactError.exit_code, done.stderr
    assert done.stderr.startswith("error: run `r` was compiled by nemotron")
    status = RunFolder.open(run.path).status()
    assert (status.state, status.exit_code) == ("failed", ArtifactError.exit_code)
    done = subprocess.run([*words, str(tmp_path / "nowhere")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (4, f"error: no run in `{tmp_path / 'nowhere'}`")
