"""What the worker leaves behind in the status of a run: told to end, however often, or refused before it begins."""

from __future__ import annotations

import fcntl
import signal
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron.disk import lock
from nemotron.engines import worker
from nemotron.errors import OutputError
from nemotron.outcome import exit_code_of
from nemotron.runs.attempts import Handle, begin_attempt
from nemotron.runs.folder import LOCK, RunFolder
from tests.compiled_jobs import compiled
from tests.unit.engines.nemo_rl.world import make_run


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose job arrives where other code is installed."""
    run = make_run(tmp_path / "runs")
    begin_attempt(run.path, Handle.of_this_process())
    monkeypatch.setenv("NEMOTRON_CODE", "another")
    return run


def test_an_attempt_of_an_executor_says_why_it_was_refused(sent: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Also after the notice of an earlier end, when a scheduler starts the job again."""
    sent.write_status(state="stopped", error="the scheduler gave notice", exit_code=130)
    assert worker.main([str(sent.path), "--attempt", "1"]) == 10
    status = sent.status()
    assert (status.state, status.exit_code) == ("failed", 10)
    assert status.error is not None
    assert status.error.startswith("the job was sent by the code `another`")
    assert "warning" not in capsys.readouterr().err


def test_one_that_nobody_has_sent_leaves_the_run_as_it_is(sent: RunFolder) -> None:
    sent.write_status(state="interrupted", exit_code=130)
    assert worker.main([str(sent.path)]) == 10
    assert sent.status().state == "interrupted"


def test_a_run_that_another_process_holds_is_left_to_it(sent: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    sent.write_status(state="running")
    lock.release(sent.path / LOCK)
    with (sent.path / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert worker.main([str(sent.path), "--attempt", "1"]) == 10
    assert (sent.status().state, sent.status().error) == ("running", None)
    assert "warning: the status of the run does not say what follows: run `" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_keep_the_first_from_being_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    run = RunFolder.create(tmp_path, compiled())
    lock.release(run.path / LOCK)
    usual = RunFolder.write_status

    def asked_again(self: RunFolder, **fields: Any) -> None:
        signal.raise_signal(number)
        usual(self, **fields)

    def interrupted(*_: object) -> None:
        monkeypatch.setattr(RunFolder, "write_status", asked_again)
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "ENGINES", {"embedded": SimpleNamespace(run=interrupted)})
    with pytest.raises(KeyboardInterrupt):
        worker.work(run, {})
    assert (run.status().state, run.status().exit_code) == ("interrupted", 130)


@pytest.mark.parametrize("error", [OutputError("the disk is full"), AttributeError("half of it is gone"), None])
def test_what_is_raised_in_the_wake_of_an_interrupt_is_not_why_the_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception | None
) -> None:
    """Of ours or of a library's: what is broken off in mid-work may raise once more when it lets go of what it holds.
    What of it is for the user is still told."""
    run = RunFolder.create(tmp_path, compiled())
    lock.release(run.path / LOCK)

    def interrupted(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            if error is not None:
                raise error

    monkeypatch.setattr(worker, "ENGINES", {"embedded": SimpleNamespace(run=interrupted)})
    assert exit_code_of(lambda: worker.work(run, {}), ("words",)) == 130
    assert (run.status().state, run.status().exit_code, run.status().error) == ("interrupted", 130, None)
    told = capsys.readouterr().err.splitlines()[1:]
    assert told == (["warning: the disk is full"] if isinstance(error, OutputError) else [])


def test_an_error_after_an_interrupt_that_was_dealt_with_is_an_error() -> None:
    def goes_on() -> int:
        with suppress(KeyboardInterrupt):
            raise KeyboardInterrupt
        raise OutputError("the disk is full")

    assert exit_code_of(goes_on, ("words",)) == OutputError.exit_code
