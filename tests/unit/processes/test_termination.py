"""Signals that wait until what must be done as a whole is done."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from nemotron.processes.termination import held_back, terminated_like_interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    done: list[str] = []
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def work() -> None:
        with terminated_like_interrupted():
            with held_back():
                done.append("begun")
                signal.raise_signal(number)
                done.append("ended")
            done.append("behind it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["begun", "ended"]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_error_of_the_block_is_not_lost_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match="no more processes"), held_back():
        raise OSError("no more processes")
    assert signal.getsignal(signal.SIGINT) is before


def test_threads_get_no_signals_and_may_hold_back_all_the_same() -> None:
    def work() -> str:
        with held_back():
            return "done"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == "done"
