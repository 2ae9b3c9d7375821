"""Why a run ends early."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from nemotron.errors import LimitError, OutOfTimeError
from nemotron.processes import notice
from nemotron.rl.stopping import Deadline, stop_reason


class Clock:
    """Time that passes when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("steps", "stops"),
    [
        ([10.0, 10.0, 10.0], [False, False, True]),  # 30 s gone, another 10 reach the limit of 40
        ([25.0], [True]),
        ([1.0, 15.0, 1.0, 10.0], [False, False, False, True]),  # the longest step counts, not the mean
    ],
)
def test_no_step_begins_that_might_end_too_late(steps: list[float], stops: list[bool]) -> None:
    clock = Clock()
    deadline = Deadline(40.0, clock)
    found = []
    for seconds in steps:
        clock.now += seconds
        found.append(deadline.after_step())
    assert found == stops


def test_the_time_is_days_hours_minutes_seconds() -> None:
    clock = Clock()
    assert Deadline.parse(None) is None
    parsed = Deadline.parse("01:02:03:04")
    assert parsed is not None
    assert parsed._limit_s == 93784
    assert stop_reason(1, {}, max_kl=None, deadline=Deadline(5.0, clock), may_end=True) is None
    stop = stop_reason(3, {}, max_kl=None, deadline=Deadline(0.0, clock), may_end=True)
    assert isinstance(stop, OutOfTimeError)
    assert stop.exit_code == 130
    assert "after step 3" in stop.message


def test_kl_is_limited_where_it_is_measured() -> None:
    stop = stop_reason(7, {"train/kl_penalty": 0.6}, max_kl=0.5, deadline=None, may_end=True)
    assert type(stop) is LimitError
    assert "0.600 nats per token in step 7, the limit is 0.5" in stop.message
    assert stop_reason(7, {"train/kl_penalty": 0.5}, max_kl=0.5, deadline=None, may_end=True) is None
    assert stop_reason(7, {"train/kl_penalty": 9.0}, max_kl=None, deadline=None, may_end=True) is None
    assert stop_reason(7, {"train/loss": 1.0}, max_kl=0.5, deadline=None, may_end=True) is None


def test_notice_of_a_scheduler_ends_a_run_that_can_go_on() -> None:
    with notice.listening():
        assert stop_reason(2, {}, max_kl=None, deadline=None, may_end=True) is None
        os.kill(os.getpid(), signal.SIGUSR1)
        stop = stop_reason(2, {}, max_kl=None, deadline=None, may_end=True)
        assert isinstance(stop, OutOfTimeError)
        assert "after step 2" in stop.message
        # After the last step there is nothing to cut short, and without a checkpoint nothing to go on from.
        assert stop_reason(2, {}, max_kl=None, deadline=None, may_end=False) is None


def test_notice_as_a_file(tmp_path: Path) -> None:
    (tmp_path / notice.FILE).touch()
    with notice.listening():
        notice.look_in(tmp_path)
        assert not notice.given(), "an earlier turn left it"
        (tmp_path / notice.FILE).touch()
        assert notice.given()
    assert not notice.given()
