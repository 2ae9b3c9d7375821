"""The log of a Lepton job, read while the job runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from nemotron.executors.lepton.executor import _Log


class Busy:
    """A service whose job prints several lines a second, for a while."""

    def ask(self, shape: Any, *_: Any, **__: Any) -> Any:
        rows = [{"metadata": {"id": "replica"}}]
        return shape.model_validate(rows if shape.__name__ == "Rows" else {"status": {"state": "Running"}})

    def stream(self, _: str) -> Iterator[bytes]:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            yield b"step\n"
            time.sleep(0.05)


def test_a_log_that_is_never_quiet_is_shown_while_it_grows() -> None:
    """Whoever followed a run of several steps a second saw its first line when the run had ended."""
    api: Any = Busy()
    log = _Log(api, "job")
    log.wait_until_quiet(1.5, 0.5)
    assert log.text().startswith(b"step\n")
    assert log._thread is not None
    assert log._thread.is_alive(), "it is not waited for to its end"
