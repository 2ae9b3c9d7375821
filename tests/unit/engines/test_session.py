"""The end of an attempt: a training that is done is finished, whatever becomes of its report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from nemotron.cli.main import main
from nemotron.disk import lock
from nemotron.engines import recorder
from nemotron.engines.embedded.session import session
from nemotron.errors import EngineError
from nemotron.rl.threads import ThreadPlan
from nemotron.runs.folder import LOCK, RunFolder
from tests.compiled_jobs import attempt_at, compiled

Spoil = Callable[[RunFolder, pytest.MonkeyPatch], None]


def no_plotly(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)


def in_the_way(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.report.mkdir()


def damaged_samples(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.samples.write_text("not JSON\n{}\n")


def another_jinja(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", ModuleType("jinja2"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_plotly, "reports need the package `plotly.offline`"),
        (in_the_way, "cannot write"),
        (damaged_samples, "this line is not a JSON object"),
        (another_jinja, "ImportError"),
    ],
)
def test_a_report_that_cannot_be_drawn_is_a_warning(
    spoil: Spoil, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder.create(tmp_path / "runs", compiled(view="judged_grpo"))
    try:
        with attempt_at(run) as attempt, session(attempt, ThreadPlan(1, 1, 0), seed=0, total=1, done=0) as work:
            work.recorder.step(1, {"train/reward": 0.5})
            spoil(run, monkeypatch)
            work.step = 1
        assert run.status().state == "finished"
        said = capsys.readouterr().err
        assert "warning: the report was not drawn" in said
        assert reason in said
        assert f"`nemotron runs report {run.path}`" in said
    finally:
        lock.release(run.path / LOCK)


def test_the_command_of_the_warning_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(tmp_path / "runs", compiled(view="judged_grpo"))
    lock.release(run.path / LOCK)
    assert main(["runs", "report", str(run.path)]) == 0
    assert run.report.is_file()


def test_the_status_says_how_far_a_run_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs, but not at every step, and when an error ends it."""
    run = RunFolder.create(tmp_path / "runs", compiled(view="judged_grpo"))
    seen: list[int] = []

    def work() -> None:
        with attempt_at(run) as attempt, session(attempt, ThreadPlan(1, 1, 0), seed=0, total=9, done=3) as open_session:
            for step, every_s in ((4, 1e9), (5, 1e9), (6, 0.0), (7, 1e9)):
                monkeypatch.setattr(recorder, "_TELL_EVERY_S", every_s)
                open_session.recorder.step(step, {"train/reward": 0.5})
                seen.append(run.status().steps_done)
            raise EngineError("it is over")

    try:
        with pytest.raises(EngineError):
            work()
        assert seen == [4, 4, 6, 6]
        assert run.status().steps_done == 7
    finally:
        lock.release(run.path / LOCK)
